"""`export-pipelines api` and `export-pipelines token` as people use them."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from export_pipelines.local.children import free_port
from tests.support.command_line import CommandLine
from tests.support.pages import make_tables, write_project


@pytest.fixture
def command(database: str, catalog_url: str, tmp_path: Path) -> CommandLine:
    """The command line in a project with data sets."""
    root = tmp_path / "project"
    root.mkdir()
    write_project(root)
    make_tables(database)
    return CommandLine(root, {"DATABASE_URL": database, "DAGSTER_PG_URL": catalog_url})


@contextmanager
def service(command: CommandLine, *options: str) -> Iterator[tuple[str, str, subprocess.Popen[str]]]:
    """The service in a process of its own: its address and its token."""
    port = free_port()
    process = command.start("api", "--port", str(port), *options)
    try:
        assert process.stdout is not None
        token = process.stdout.readline().removeprefix("token: ").strip()
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if httpx.get(f"{url}/health/live", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        assert process.poll() is None, process.communicate()
        yield url, token, process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def memory(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def test_the_service_prints_a_token_serves_and_ends_at_once_when_told(command: CommandLine) -> None:
    with service(command) as (url, token, process):
        assert (command.root / ".local/keys/local.token").read_text().strip() == token
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=url, headers=headers, trust_env=False) as client:
            told = client.post("/requests", json={"dataset": "flights", "limit": 5})
            assert told.status_code == 202
            for each in client.get("/datasets").json()["datasets"]:
                assert client.get(each["links"]["preview"], params={"limit": 5}).status_code == 200
            with client.stream("GET", told.json()["links"]["events"]) as events:
                text = events.iter_text()
                assert "Pending" in next(text)
                size, begun = memory(process.pid), time.monotonic()
                process.send_signal(signal.SIGTERM)
                assert "event: end" not in "".join(text)  # ended in order, not cut off
        assert process.wait(60) == 0 and time.monotonic() - begun < 20
        assert size < 250_000_000
        assert process.stderr is not None and "Traceback" not in process.stderr.read()


def test_each_start_makes_another_token(command: CommandLine) -> None:
    with service(command) as (_, first, process):
        process.send_signal(signal.SIGINT)
        process.wait(60)
    with service(command) as (url, second, _):
        assert first != second
        for token, status in ((first, 401), (second, 200)):
            answer = httpx.get(f"{url}/datasets", headers={"Authorization": f"Bearer {token}"}, trust_env=False)
            assert answer.status_code == status


def test_another_address_wants_a_token_to_exist(command: CommandLine) -> None:
    refused = command("api", "--host", "0.0.0.0", "--port", str(free_port()))
    assert refused.code == 1 and "there is no token yet" in refused.err and "token create" in refused.err


def test_a_broken_service_document_is_not_served(command: CommandLine) -> None:
    file = command.root / "resources/service/defs.yaml"
    file.parent.mkdir()
    file.write_text("type: export_pipelines.Service\nattributes: {concurency: 3}\n")
    refused = command("api", "--port", str(free_port()))
    assert refused.code == 1 and "concurency" in refused.err and "defs.yaml:2" in refused.err


def test_tokens_are_made_listed_and_revoked(command: CommandLine) -> None:
    made = command("token", "create", "nightly", "--user", "ann", "--scope", "read", "--expires", "90d")
    assert made.code == 0, made.err
    assert made.out.startswith("ep_") and made.out.count("\n") == 1 and "ann (read)" in made.err
    more = command("token", "create", "ci", "--group", "finance", "--environment", "default", "--json").json
    assert more["scopes"] == ["read", "request"] and more["groups"] == ["finance"] and more["user"] == "ci"
    listed = command("token", "list").out
    assert "nightly" in listed and made.out.strip() not in listed
    assert command("token", "revoke", "nightly").code == 0
    assert [each["name"] for each in command("token", "list", "--json").json] == ["ci"]
    states = {each["name"]: each["state"] for each in command("token", "list", "--all", "--json").json}
    assert states == {"nightly": "revoked", "ci": "valid"}
    again = command("token", "revoke", "nightly")
    assert again.code == 1 and "no valid token" in again.err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["create", "x", "--expires", "soon"], 2, "no time"),
        (["create", "x", "--expires", "2020-01-01"], 2, "is over"),
        (["create", "x", "--scope", "root"], 2, "root"),
        (["create", "x", "--environment", "moon"], 1, "no environment"),
        (["create", ""], 2, "no name"),
        (["revoke", "nothing"], 1, "no valid token"),
    ],
)
def test_wrong_wishes_for_tokens_make_none(command: CommandLine, arguments: list[str], code: int, told: str) -> None:
    result = command("token", *arguments)
    assert result.code == code and told in result.err
    assert command("token", "list", "--all", "--json").json == []
