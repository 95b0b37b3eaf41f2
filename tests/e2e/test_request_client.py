"""`export-pipelines request` against a real service: it asks, follows, downloads, resumes, cancels."""

from __future__ import annotations

import csv
import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from tests.support.faulty_proxy import Fault, error_answer, faulty_proxy
from tests.support.pages import Served, served
from tests.support.servers import run_sql
from tests.support.threads import wait_until

# Commands in processes of their own take their time: part of `make test-all`.
pytestmark = pytest.mark.slow


@pytest.fixture
def service(tmp_path: Path, database: str, catalog_url: str) -> Iterator[Served]:
    root = tmp_path / "service"
    root.mkdir()
    with served(root, database, catalog_url) as up:
        yield up


@pytest.fixture
def cli(tmp_path: Path, service: Served) -> CommandLine:
    """The client, far from any project."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    variables = {"EXPORT_PIPELINES_URL": service.url, "EXPORT_PIPELINES_TOKEN": service.token("ann")}
    return CommandLine(folder, variables)


def only_part(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_an_answer_is_asked_for_followed_and_downloaded_under_the_name_that_was_given(
    service: Served, cli: CommandLine, database: str
) -> None:
    with service.working():
        asked = cli("request", "flights", "-F", "carrier=UA", "-F", "dep_delay>=60", "--columns", "carrier,dep_delay",
                    "--compression", "none", "-o", "late.csv")  # fmt: skip
    assert asked.code == 0, asked.err + asked.out
    with (cli.root / "late.csv").open() as file:
        rows = list(csv.DictReader(file))
    ((wanted,),) = run_sql(database, "SELECT count(*) FROM flights WHERE carrier = 'UA' AND dep_delay >= 60")
    assert len(rows) == wanted > 0
    assert {row["carrier"] for row in rows} == {"UA"} and min(float(row["dep_delay"]) for row in rows) >= 60
    digest = hashlib.sha256((cli.root / "late.csv").read_bytes()).hexdigest()
    assert f"late.csv: {wanted} rows" in asked.out and digest in asked.out
    assert only_part(cli.root) == ["late.csv"]
    again = cli("request", "flights", "-F", "carrier=UA", "-o", "late.csv")
    assert again.code == 1 and "late.csv exists" in again.err, "nothing is asked, nothing overwritten"


def test_a_download_that_breaks_off_goes_on_where_it_was(service: Served, cli: CommandLine) -> None:
    downloads: list[str] = []

    def choose(line: str) -> Fault | None:
        if "/events" in line:
            return Fault(answer=error_answer(503, "busy"))
        if "/download" in line:
            downloads.append(line)
            return Fault(cut_after=30_000) if len(downloads) < 3 else None
        return None

    with faulty_proxy(service.url) as proxy, service.working():
        proxy.choose = choose
        asked = cli("request", "flights", "-F", "carrier:in=UA,AA", "--compression", "none", "-o", "some.csv",
                    "--url", proxy.endpoint)  # fmt: skip
    assert asked.code == 0, asked.err + asked.out
    assert len(downloads) == 3 and "going on" in asked.err
    assert len((cli.root / "some.csv").read_text().splitlines()) == 1501
    entries = service.audit("download.started")
    starts = [str(entry["detail"]["bytes"]).partition("-")[0] for entry in entries]
    assert starts[0] == "all" and 0 < int(starts[1]) < int(starts[2])
    assert only_part(cli.root) == ["some.csv"]


@pytest.mark.parametrize("rest", ["the beginning", "of another file", "longer"])
def test_what_an_earlier_call_left_is_gone_on_with_if_it_is_of_the_same_file(
    service: Served, cli: CommandLine, rest: str
) -> None:
    with service.working():
        question = ("request", "flights", "-F", "carrier=UA", "--compression", "none")
        assert cli(*question, "-o", "whole.csv").code == 0
        whole = (cli.root / "whole.csv").read_bytes()
        left = {"the beginning": whole[:5000], "of another file": b"x" * 5000, "longer": whole + b"x"}[rest]
        (cli.root / "again.csv.part").write_bytes(left)
        again = cli(*question, "-o", "again.csv")
    assert again.code == 0, again.err
    assert (cli.root / "again.csv").read_bytes() == whole
    begun = [str(entry["detail"]["bytes"]) for entry in service.audit("download.started")]
    assert any(each.startswith("5000-") for each in begun) == (rest != "longer")


def test_ctrl_c_cancels_what_waits_and_says_so(service: Served, cli: CommandLine) -> None:
    process = cli.start("request", "flights", "-F", "carrier=DL", "-o", "x.csv")
    wait_until(lambda: service.service.requests.find(username="ann"), 60)
    (row,) = service.service.requests.find(username="ann")
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 130, err
    found = service.service.requests.get(row.id)
    assert "interrupted; cancelled" in err and found is not None and found.state == "cancelled"
    assert only_part(cli.root) == []


def test_only_asking_prints_an_id_and_the_id_goes_on_later(service: Served, cli: CommandLine) -> None:
    asked = cli("request", "flights", "-F", "carrier=B6", "--format", "json", "--compression", "gzip", "--no-wait")
    assert asked.code == 0, asked.err
    service.answer_all()
    later = cli("request", "--id", asked.out.strip(), "--json")
    assert later.code == 0, later.err
    assert later.json["status"] == "Succeeded" and later.json["rows"] == 750
    assert (cli.root / later.json["path"]).stat().st_size == later.json["file"]["bytes"]


def test_errors_say_what_to_do_and_wrong_questions_are_wrong_usage(service: Served, cli: CommandLine) -> None:
    for arguments, code, said in (
        (("flights", "-F", "carier=UA"), 2, "carrier"),
        (("flights", "-F", "dep_delay"), 2, "is no filter"),
        (("flights", "-F", "dep_delay>=soon"), 2, "is no integer"),
        (("flihgts",), 1, "flights"),
        (("flights", "--token", "ep_wrong"), 1, "token"),
        (("flights", "--url", "http://127.0.0.1:1"), 1, "cannot be reached"),
        ((), 2, "give a DATASET"),
    ):
        asked = cli("request", *arguments)
        assert asked.code == code and said in asked.err, (arguments, asked)
    row = service.service.requests.find(limit=1)
    assert not row and only_part(cli.root) == []


def test_a_failed_export_is_told_with_its_reason(service: Served, cli: CommandLine) -> None:
    asked = cli("request", "flights", "-F", "carrier=AA", "--no-wait")
    (row,) = service.service.requests.find()
    service.begin(row)
    service.service.requests.fail(row.id, "the source is away", "ask again later")
    later = cli("request", "--id", asked.out.strip())
    assert later.code == 1 and "the export failed: the source is away" in later.err and "ask again later" in later.err


def test_data_sets_are_listed_and_described(service: Served, cli: CommandLine) -> None:
    listed = cli("request", "--list")
    assert listed.code == 0 and "demo/flights" in listed.out and "salaries" not in listed.out, listed.err
    described = cli("request", "flights", "--describe")
    assert described.code == 0, described.err
    for said in ("Flights from New York", "dep_delay", "numeric", "Two letters of the airline", "starts_with"):
        assert said in described.out


def test_the_token_of_this_machine_is_taken_within_its_project_and_given_to_no_other_host(
    service: Served, cli: CommandLine
) -> None:
    from export_pipelines.cli.request import _local_token

    token = service.folder.root / ".local/keys/local.token"
    token.parent.mkdir(parents=True, exist_ok=True)
    token.write_text(service.token("ann") + "\n")
    here = CommandLine(service.folder.root, {"EXPORT_PIPELINES_URL": service.url})
    assert here("request", "--list").code == 0
    outside = CommandLine(cli.root, {"EXPORT_PIPELINES_URL": service.url})
    refused = outside("request", "--list")
    assert refused.code == 1 and "EXPORT_PIPELINES_TOKEN" in refused.err
    os.environ["EXPORT_PIPELINES_PROJECT"] = str(service.folder.root)
    assert _local_token(service.url) == token.read_text().strip()
    for foreign in ("https://example.org", "http://127.0.0.1@example.org", "http://127.0.0.1.example.org"):
        assert _local_token(foreign) is None
