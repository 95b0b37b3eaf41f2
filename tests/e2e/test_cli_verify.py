"""verify, heads, keygen and sign on the command line: of a project, and of an archive alone."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from export_pipelines.local.postgres import Address
from tests.support.command_line import CommandLine, Result
from tests.support.dagster_project import EVENTS, Folder, make_events, new_project
from tests.support.servers import new_database

TABLE = "sales/events"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, postgres: Address) -> Iterator[CommandLine]:
    """A project with a signing key, whose ten days are archived and cleaned up: 20 signed entries."""
    from export_pipelines.catalog.migrate import migrate

    with new_database(postgres) as source, new_database(postgres) as catalog:
        migrate(catalog, "export_pipelines")
        make_events(source)
        root = tmp_path_factory.mktemp("project")
        new_project(root).write("assets/sales/events/defs.yaml", EVENTS)
        cli = CommandLine(
            root,
            {
                "DATABASE_URL": source,
                "DAGSTER_PG_URL": catalog,
                "EXPORT_PATH": str(root / "exports"),
                "ARCHIVE_URL": (root / "archive").as_uri(),
                "DAGSTER_HOME": str(root / "home"),
            },
        )
        key = root / "signing.pem"
        assert cli("keygen", str(key)).code == 0
        Folder(root).write(
            "resources/signing/defs.yaml", f"type: export_pipelines.SigningKey\nattributes: {{file: {key}}}\n"
        )
        ran = cli("run", "--all", "--json")
        assert ran.code == 0, ran.err
        yield cli


@pytest.fixture
def copy(done: CommandLine, tmp_path: Path) -> Path:
    """A copy of the archive, as an auditor has it."""
    return Path(shutil.copytree(done.root / "archive", tmp_path / "copy"))


@pytest.fixture
def auditor(tmp_path: Path, done: CommandLine) -> CommandLine:
    """A machine with the program and the public key, and no project."""
    (tmp_path / "auditor").mkdir()
    shutil.copy(done.root / "signing.pem.pub", tmp_path / "auditor" / "key.pub")
    return CommandLine(tmp_path / "auditor")


def problems(result: Result) -> str:
    return "\n".join(each for report in result.json for each in report["problems"])


def test_a_project_with_a_key_signs_and_verifies_by_itself(done: CommandLine) -> None:
    assert stat.S_IMODE((done.root / "signing.pem").stat().st_mode) == 0o600
    told = done("verify", "--json")
    assert told.code == 0, told.err
    (report,) = told.json
    assert (report["artifacts"], report["total"], report["rows"], report["signed"]) == (10, 10, 200, 20)
    assert report["never"] == 0 and report["head"][0] == 20
    assert "intact" in done("verify").out


def test_an_auditor_needs_the_folder_and_the_public_key_only(auditor: CommandLine, copy: Path) -> None:
    told = auditor("verify", "--archive", str(copy), "--public-key", "key.pub", "--json")
    assert told.code == 0, told.err
    assert (told.json[0]["rows"], told.json[0]["signed"]) == (200, 20)
    assert auditor("verify", TABLE, "--archive", str(copy), "--partition", "2025-01-03", "--json").json[0]["rows"] == 20
    assert auditor("verify", "--archive", str(copy / "nowhere")).code == 1
    assert auditor("verify", "sales/none", "--archive", str(copy)).code == 1


def test_damage_is_exit_code_1_and_named(auditor: CommandLine, copy: Path) -> None:
    file = sorted(copy.rglob("*.csv.gz"))[3]
    file.write_bytes(file.read_bytes()[:-1])
    told = auditor("verify", "--archive", str(copy), "--json")
    assert told.code == 1 and file.name in problems(told)
    assert told.json[0]["intact"] is False
    shown = auditor("verify", "--archive", str(copy))
    assert "1 problem" in shown.out and file.name in shown.err


def test_heads_that_were_kept_show_a_rollback(auditor: CommandLine, copy: Path, done: CommandLine) -> None:
    head = auditor("heads", "--archive", str(copy)).out.strip()
    assert head.startswith(f"{TABLE}=20:") and done("heads").out.strip() == head
    assert auditor("verify", "--archive", str(copy), "--expect", head).code == 0
    (copy / "sales/events/manifests/00000020.json").unlink()
    shutil.rmtree(copy / "sales/events/signatures")
    assert auditor("verify", "--archive", str(copy)).code == 0
    told = auditor("verify", "--archive", str(copy), "--expect", head, "--json")
    assert told.code == 1 and "--expect knows 20: its tail is cut off" in problems(told)
    shutil.rmtree(copy / "sales")
    gone = auditor("verify", "--archive", str(copy), "--expect", head, "--json")
    assert gone.code == 1 and "the chain ends at manifest 0" in problems(gone)
    assert auditor("verify", "--archive", str(copy), "--expect", "nonsense").code == 2


def test_the_catalog_knows_of_a_table_that_is_gone_from_the_archive(done: CommandLine) -> None:
    (done.root / "archive" / "sales").rename(done.root / "away")
    try:
        told = done("verify", "--json")
    finally:
        (done.root / "away").rename(done.root / "archive" / "sales")
    assert told.code == 1 and "the catalog knows 20: its tail is cut off" in problems(told)


def test_a_budget_goes_on_where_the_state_says_it_ended(auditor: CommandLine, copy: Path) -> None:
    largest = max(sum(each.stat().st_size for each in day.parent.iterdir()) for day in copy.rglob("*.csv.gz"))
    seen = rounds = 0
    for _ in range(20):
        told = auditor("verify", "--archive", str(copy), "--budget", str(4 * largest), "--state", "s.json", "--json")
        assert told.code == 0, told.err
        (report,) = told.json
        seen, rounds = seen + report["artifacts"], rounds + 1
        if not report["never"]:
            break
    assert seen >= 10 and 1 < rounds < 10
    forgetful = auditor("verify", "--archive", str(copy), "--minutes", "5")
    assert "give --state FILE" in forgetful.err and forgetful.code == 0
    assert auditor("verify", "--archive", str(copy), "--budget", "lots").code == 2


def test_objects_in_no_tables_folder_are_told(auditor: CommandLine, copy: Path) -> None:
    (copy / "stray.txt").write_text("x")
    told = auditor("verify", "--archive", str(copy), "--json")
    assert told.code == 0
    assert [report["unaccounted"] for report in told.json if not report["table"]] == [["stray.txt"]]


def test_sign_makes_up_for_signatures_and_refuses_a_damaged_chain(done: CommandLine, tmp_path: Path) -> None:
    table = done.root / "archive" / "sales" / "events"
    kept = Path(shutil.copytree(table, tmp_path / "kept"))
    try:
        for name in ("00000020.sig", "00000019.sig", "head/00000020.json"):
            (table / "signatures" / name).unlink()
        told = done("verify", "--json")
        assert told.code == 1 and "export-pipelines sign" in problems(told)
        signed = done("sign", "--json")
        assert signed.code == 0, signed.err
        assert signed.json[0]["signed"] == 2
        assert done("verify", "--json").code == 0
        entry = table / "manifests" / "00000005.json"
        entry.write_text(entry.read_text().replace('"run_id"', ' "run_id"'))
        (table / "signatures" / "00000020.sig").unlink()
        refused = done("sign", "--json")
        assert refused.code == 1 and refused.json[0]["signed"] == 0
        assert "manifest 6 does not follow" in refused.json[0]["problems"][0]
    finally:
        shutil.rmtree(table)
        shutil.copytree(kept, table)


def test_keygen_overwrites_nothing(auditor: CommandLine) -> None:
    assert auditor("keygen", "mine.pem").code == 0
    before = (auditor.root / "mine.pem").read_bytes()
    again = auditor("keygen", "mine.pem")
    assert again.code == 1 and "exists" in again.err
    assert (auditor.root / "mine.pem").read_bytes() == before
    wrong = auditor("verify", "--archive", str(auditor.root), "--public-key", "mine.pem")
    assert wrong.code == 1 and "public key" in wrong.err
