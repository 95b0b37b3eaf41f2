"""A project whose stores say to whom files are encrypted: through Dagster and the command line."""

from __future__ import annotations

from pathlib import Path

import pyrage
import pytest

from tests.support.command_line import CommandLine
from tests.support.dagster_project import EVENTS, RESOURCES, Folder, make_events, new_project, query

# Commands in processes of their own take their time: part of `make test-all`.
pytestmark = pytest.mark.slow

MAGIC = b"age-encryption.org/v1\n"
ENCRYPTED = "url: {env: ARCHIVE_URL}, encryption: {recipients: [RECIPIENT]}"
IDENTITY = """
---
type: export_pipelines.AgeIdentity
attributes: {env: AGE_IDENTITY}
"""


@pytest.fixture
def identity() -> pyrage.x25519.Identity:
    return pyrage.x25519.Identity.generate()


@pytest.fixture
def folder(tmp_path: Path, identity: pyrage.x25519.Identity) -> Folder:
    """A project whose archive names a recipient, for all tables that archive in it."""
    made = new_project(tmp_path)
    encrypted = ENCRYPTED.replace("RECIPIENT", str(identity.to_public()))
    made.write("resources/defs.yaml", RESOURCES.replace("url: {env: ARCHIVE_URL}", encrypted) + IDENTITY)
    made.write("assets/sales/events/defs.yaml", EVENTS)
    return made


@pytest.fixture
def cli(folder: Folder, database: str, storage_url: str) -> CommandLine:
    make_events(database)
    variables = {
        "DATABASE_URL": database,
        "DAGSTER_PG_URL": storage_url,
        "EXPORT_PATH": str(folder.root / "exports"),
        "ARCHIVE_URL": (folder.root / "archive").as_uri(),
        "DAGSTER_HOME": str(folder.root / "home"),
    }
    return CommandLine(folder.root, variables)


def stored_files(folder: Folder) -> list[Path]:
    return [path for name in ("exports", "archive") for path in (folder.root / name).rglob("events-2*.gz*")]


def test_what_a_store_says_holds_for_export_archive_cleanup_verify_and_restore(
    cli: CommandLine, folder: Folder, identity: pyrage.x25519.Identity, database: str, storage_url: str
) -> None:
    ran = cli("run", "--all", "--json")
    assert ran.code == 0, ran.err
    files = [path for path in stored_files(folder) if not path.name.endswith(".identities.zst")]
    assert len(files) == 20 and all(path.name.endswith(".csv.gz.age") for path in files)
    assert all(path.read_bytes().startswith(MAGIC) for path in files)
    assert query(database, "SELECT count(*) FROM events") == [(0,)]

    blind = cli("verify", "--json")
    assert blind.code == 0
    [report] = blind.json
    assert (report["intact"], report["sealed"], report["rows"]) == (True, 10, 0)
    assert "rows were not counted" in report["limits"]
    assert "not opened" in (told := cli("verify")).out and "rows were not counted" in told.err
    refused = cli("restore", "sales/events", "--all", "--into", "again")
    assert refused.code == 1 and "is encrypted" in refused.err and "AGE_IDENTITY" in refused.err

    cli.variables["AGE_IDENTITY"] = str(identity)
    [report] = cli("verify", "--json").json
    assert (report["sealed"], report["rows"], report["limits"]) == (0, 200, "")
    restored = cli("restore", "sales/events", "--all", "--into", "again")
    assert restored.code == 0, restored.err
    assert query(database, "SELECT count(*), count(DISTINCT id) FROM again") == [(200, 200)]
    previews = "SELECT count(*) FROM event_logs WHERE event LIKE '%row 17%' OR event LIKE '%\"preview\"%'"
    assert query(storage_url, previews) == [(0,)]


def test_a_run_with_the_identity_reads_its_archive_back_as_rows(
    cli: CommandLine, folder: Folder, identity: pyrage.x25519.Identity
) -> None:
    cli.variables["AGE_IDENTITY"] = str(identity)
    assert cli("run", "--all").code == 0
    assert [report["rows"] for report in cli("verify", "--json").json] == [200]


def test_the_encryption_of_a_table_comes_before_that_of_its_stores(
    folder: Folder, identity: pyrage.x25519.Identity
) -> None:
    def effective() -> tuple[str, ...]:
        spec = folder.load().tables["sales/events"].table.spec.encryption
        return spec.recipients if spec else ()

    own, export = (str(pyrage.x25519.Identity.generate().to_public()) for _ in range(2))
    assert effective() == (str(identity.to_public()),)
    resources = folder.root / "resources/defs.yaml"
    text = resources.read_text()
    resources.write_text(
        text.replace("{env: EXPORT_PATH}", f"{{env: EXPORT_PATH}}, encryption: {{recipients: [{export}]}}")
    )
    assert effective() == (export,)
    folder.write("assets/sales/events/defs.yaml", EVENTS + f"  encryption: {{recipients: [{own}]}}\n")
    assert effective() == (own,)


def test_check_names_the_line_of_a_bad_recipient_and_the_table_is_not_exported(
    cli: CommandLine, folder: Folder, identity: pyrage.x25519.Identity
) -> None:
    folder.write("assets/sales/events/defs.yaml", EVENTS + "  encryption:\n    recipients:\n      - age1oops\n")
    checked = cli("check", "--offline")
    assert checked.code == 1
    assert "assets/sales/events/defs.yaml:8: encryption.recipients: " in checked.err, checked.err
    assert "number 1 is not a recipient" in checked.err
    assert cli("run", "--all").code == 1
    assert stored_files(folder) == []


def test_check_tells_a_private_identity_in_a_definition_without_repeating_it(
    cli: CommandLine, folder: Folder, identity: pyrage.x25519.Identity
) -> None:
    folder.write("assets/sales/events/defs.yaml", EVENTS + f"  encryption: {{recipients: [{identity}]}}\n")
    checked = cli("check", "--offline")
    assert checked.code == 1 and "private identity" in checked.err and str(identity) not in checked.err + checked.out


def test_check_says_what_cannot_be_done_without_an_identity(
    cli: CommandLine, folder: Folder, identity: pyrage.x25519.Identity, tmp_path: Path
) -> None:
    checked = cli("check")
    assert checked.code == 0, checked.err
    assert "no identity is here" in checked.err and "restore cannot open them" in checked.err
    folder.write(
        "assets/sales/events/select.sql", "SELECT id, note FROM events WHERE at < %(window_end)s GROUP BY 1, 2"
    )
    folder.write("assets/sales/events/delete.sql", "DELETE FROM events WHERE at < %(window_end)s")
    refused = cli("check")
    assert refused.code == 1 and "a cleanup by key or by content is refused" in refused.err
    cli.variables["AGE_IDENTITY"] = str(identity)
    checked = cli("check")
    assert checked.code == 0 and "no identity is here" not in checked.err
    cli.variables["AGE_IDENTITY"] = "AGE-SECRET-KEY-1BROKEN"
    broken = cli("check")
    assert broken.code == 1 and "has no identity on line 1" in broken.err and "1BROKEN" not in broken.err


def test_check_warns_of_an_identity_file_that_others_can_read(
    cli: CommandLine, folder: Folder, identity: pyrage.x25519.Identity
) -> None:
    file = folder.write("identity.txt", f"{identity}\n")
    file.chmod(0o644)
    resources = folder.root / "resources/defs.yaml"
    resources.write_text(resources.read_text().replace("{env: AGE_IDENTITY}", f"{{file: {file}}}"))
    assert "can be read by others" in cli("check", "--offline").err
    file.chmod(0o600)
    assert "can be read by others" not in cli("check", "--offline").err
