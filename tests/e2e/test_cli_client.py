"""`export-pipelines client` as people use it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from tests.support.pages import write_project


@pytest.fixture
def command(database: str, catalog_url: str, tmp_path: Path) -> CommandLine:
    root = tmp_path / "project"
    root.mkdir()
    write_project(root)
    return CommandLine(root, {"DATABASE_URL": database, "DAGSTER_PG_URL": catalog_url})


def test_clients_are_made_listed_rotated_and_revoked(command: CommandLine) -> None:
    made = command("client", "create", "copy", "--table", "shop.*", "--table", "other.things", "--json").json
    assert made["tables"] == ["other.things", "shop.*"] and made["algorithm"] == "sha256" and len(made["key"]) == 64
    text = command("client", "create", "plain", "--table", "*")
    assert text.code == 0 and text.out.startswith("id: ") and "\nkey: " in text.out
    turned = command("client", "rotate", made["id"], "--keep", "12h", "--json").json
    assert turned["key"] != made["key"] and turned["previous_until"]
    listed = command("client", "list").out
    assert "copy" in listed and made["key"] not in listed and turned["key"] not in listed
    assert command("client", "revoke", made["id"]).code == 0
    states = {each["name"]: each["state"] for each in command("client", "list", "--all", "--json").json}
    assert states == {"copy": "revoked", "plain": "valid"}
    again = command("client", "revoke", made["id"])
    assert again.code == 1 and "no valid client" in again.err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["create", "x"], 2, "--table"),
        (["create", "x", "--table", "Shop"], 2, "no pattern"),
        (["create", "", "--table", "*"], 2, "no name"),
        (["rotate", "nothing", "--keep", "soon"], 2, "no time"),
        (["rotate", "nothing"], 1, "no valid client"),
    ],
)
def test_wrong_wishes_for_clients_make_none(command: CommandLine, arguments: list[str], code: int, told: str) -> None:
    result = command("client", *arguments)
    assert result.code == code and told in result.err
    assert command("client", "list", "--all", "--json").json == []
