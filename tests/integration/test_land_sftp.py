"""Landing files of an SFTP server: whole or not at all, from the server that is known, and from its folder alone."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest
from pydantic import ValidationError

from export_pipelines.errors import RequestError, SourceError
from export_pipelines.specs.load import LoadDefinition, LoadSpec
from export_pipelines.steps.land import LandContext, land, landed_files, list_files
from export_pipelines.stores.filesystem import FilesystemStore
from tests.support.sftp_server import PASSWORD, USER, SftpServer, public, sftp_server

ID = "shop/orders"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SftpServer]:
    monkeypatch.setenv("SHOP_PASSWORD", PASSWORD)
    (tmp_path / "drop").mkdir()
    with sftp_server(tmp_path / "drop") as running:
        yield running


def context(tmp_path: Path, source: dict[str, Any]) -> LandContext:
    spec = LoadSpec.model_validate({"source": source, "target": {"table": "shop.orders"}})
    definition = LoadDefinition(name="orders", group="shop", folder=tmp_path, spec=spec)
    return LandContext(definition, FilesystemStore(tmp_path / "landing"))


def landed(ctx: LandContext) -> dict[str, bytes]:
    return {entry.name: ctx.store.get(entry.file.key) for entry in landed_files(ctx.store, ID)}


def test_files_of_an_sftp_server_land_as_they_are_and_once(tmp_path: Path, server: SftpServer) -> None:
    large = os.urandom((5 << 20) + 7)
    wanted = {"a.csv": b"id\n1\n", "in/b c.csv.gz": gzip.compress(b"id\n2\n"), "in/large.csv": large, "empty.csv": b""}
    for name, data in {**wanted, "other.txt": b""}.items():
        (server.root / name).parent.mkdir(exist_ok=True)
        (server.root / name).write_bytes(data)
    ctx = context(tmp_path, {**server.source, "pattern": "**/*.csv*"})
    assert list_files(ctx) == sorted(wanted) and ctx.load.spec.by_file
    assert [entry.name for entry in land(ctx).landed] == sorted(wanted)
    assert landed(ctx) == wanted
    assert landed_files(ctx.store, ID)[2].url == f"sftp://127.0.0.1:{server.port}/in/b%20c.csv.gz"
    assert server.logins == 2

    (server.root / "a.csv").write_bytes(b"id\n1\n3\n")
    again = land(ctx)
    assert ([entry.name for entry in again.landed], again.unchanged) == (["a.csv"], 3)


def test_a_server_that_answers_less_than_it_was_asked_for_loses_nothing(tmp_path: Path, server: SftpServer) -> None:
    data = os.urandom(300_000)
    (server.root / "a.csv").write_bytes(data)
    server.most_bytes = 20_001
    ctx = context(tmp_path, server.source)
    land(ctx)
    assert landed(ctx) == {"a.csv": data}


@pytest.mark.parametrize("step", ["login", "subsystem"])
def test_a_server_that_does_not_answer_is_not_waited_for_without_end(
    tmp_path: Path, server: SftpServer, step: str
) -> None:
    server.silent.add(step)
    with pytest.raises(SourceError) as silent:
        land(context(tmp_path, {**server.source, "connect_timeout": 1, "read_timeout": 1}))
    assert silent.value.transient and "refuses" not in silent.value.message


def test_a_file_that_ends_before_its_size_does_not_land(tmp_path: Path, server: SftpServer) -> None:
    (server.root / "a.csv").write_bytes(os.urandom(300_000))
    server.ends_at = 100_000
    ctx = context(tmp_path, server.source)
    with pytest.raises(SourceError, match="has 300000 bytes, and 131072 came") as cut:
        land(ctx)
    assert cut.value.transient and landed(ctx) == {}


def test_a_key_and_known_hosts_are_another_way_to_log_in(tmp_path: Path, server: SftpServer) -> None:
    (server.root / "a.csv").write_bytes(b"id\n1\n")
    key = paramiko.ECDSAKey.generate()
    key.write_private_key_file(str(tmp_path / "key"), password="open sesame")
    server.allowed.append(key)
    (tmp_path / "known").write_text(f"[127.0.0.1]:{server.port} {public(server.key)}\n")
    way = {"key_file": str(tmp_path / "key"), "known_hosts": str(tmp_path / "known")}
    source = {name: value for name, value in server.source.items() if name not in ("password", "host_key")} | way
    with pytest.raises(RequestError, match="no private key that can be opened"):
        list_files(context(tmp_path, source))
    passphrase = {"env": "UNSET_PASSPHRASE", "default": "open sesame"}
    assert list_files(context(tmp_path, {**source, "passphrase": passphrase})) == ["a.csv"]


def test_a_server_with_another_key_is_not_talked_to(tmp_path: Path, server: SftpServer) -> None:
    source = {**server.source, "host_key": public(paramiko.ECDSAKey.generate())}
    with pytest.raises(SourceError, match="another key than the one that is known") as refused:
        land(context(tmp_path, source))
    assert not refused.value.transient and server.logins == 0
    (tmp_path / "known").write_text(f"other.example.org {public(server.key)}\n")
    source = {**server.source, "host_key": None, "known_hosts": str(tmp_path / "known")}
    with pytest.raises(RequestError, match=f"has no key of .127.0.0.1.:{server.port}"):
        land(context(tmp_path, source))
    assert server.logins == 0


def test_a_wrong_password_is_no_matter_of_another_try(
    tmp_path: Path, server: SftpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "wrong-secret")
    with pytest.raises(SourceError, match="refuses the login") as refused:
        land(context(tmp_path, server.source))
    assert not refused.value.transient and "wrong-secret" not in str(refused.value)


def test_a_connection_that_is_cut_in_a_file_lands_nothing_of_it(tmp_path: Path, server: SftpServer) -> None:
    data = os.urandom(8 << 20)
    (server.root / "a.csv").write_bytes(data)
    ctx = context(tmp_path, server.source)
    server.cut_after = [5 << 20] * 3
    with pytest.raises(SourceError, match="failed at") as cut:
        land(ctx)
    assert cut.value.transient and landed(ctx) == {}
    assert not [each for each in (tmp_path / "landing").rglob("*") if each.is_file()]
    server.cut_after = [5 << 20]
    land(ctx)
    assert landed(ctx) == {"a.csv": data}


def test_a_server_that_is_away_is_worth_another_try(tmp_path: Path, server: SftpServer) -> None:
    ctx = context(tmp_path, server.source)
    server.stop()
    with pytest.raises(SourceError, match="does not answer") as away:
        land(ctx)
    assert away.value.transient


@pytest.mark.parametrize("follows_links", [False, True])
def test_links_of_a_server_lead_nowhere(tmp_path: Path, server: SftpServer, follows_links: bool) -> None:
    server.follows_links = follows_links
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "s.csv").write_text("secret")
    (server.root / "folder").symlink_to(tmp_path / "secret")
    ctx = context(tmp_path, {**server.source, "pattern": "**/*"})
    assert land(ctx).landed == ()
    (server.root / "link.csv").symlink_to(tmp_path / "secret" / "s.csv")
    if follows_links:
        with pytest.raises(SourceError, match=r"link\.csv is no regular file"):
            land(ctx)
    else:
        land(ctx)
    assert landed(ctx) == {}


@pytest.mark.parametrize("name", ["../evil.csv", "/etc/passwd", "..", "a\nb.csv"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, server: SftpServer, name: str) -> None:
    (server.root / "a.csv").write_text("x")
    server.more_names = [name]
    ctx = context(tmp_path, server.source)
    # paramiko leaves `..` out itself.
    if name == "..":
        assert list_files(ctx) == ["a.csv"]
    else:
        with pytest.raises(SourceError, match="no name"):
            land(ctx)
        assert landed(ctx) == {}


def test_a_file_that_still_grows_waits(tmp_path: Path, server: SftpServer) -> None:
    for name in ("new.csv", "old.csv"):
        (server.root / name).write_text("x")
    os.utime(server.root / "old.csv", (1, 1))
    result = land(context(tmp_path, {**server.source, "settle_seconds": 60}))
    assert ([entry.name for entry in result.landed], result.waiting) == (["old.csv"], ("new.csv",))


def test_a_file_that_changes_after_it_was_listed_does_not_land_so(tmp_path: Path, server: SftpServer) -> None:
    (server.root / "a.csv").write_text("x")
    ctx = context(tmp_path, server.source)
    from export_pipelines.steps.land_sources import file_source

    source = file_source(ctx.load.spec, None, None)
    (found,) = source.list()
    with pytest.raises(SourceError, match="was changed") as changed, source.open(found, "") as download:
        assert download is not None
        with (server.root / "a.csv").open("a") as file:
            file.write("y")
        list(download.pieces)
    assert changed.value.transient


def test_a_folder_that_a_server_does_not_have_is_an_error(tmp_path: Path, server: SftpServer) -> None:
    with pytest.raises(SourceError, match="does not have the folder '/none'") as missing:
        land(context(tmp_path, {**server.source, "path": "/none"}))
    assert not missing.value.transient


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"host_key": None}, "no server is trusted unseen"),
        ({"known_hosts": "/k"}, "give either host_key or known_hosts"),
        ({"key_file": "/k"}, "give either password or key_file"),
        ({"passphrase": {"env": "X"}}, "that of a `key_file`"),
        ({"host_key": "SHA256:abc"}, "write type and key"),
    ],
)
def test_a_definition_says_how_both_know_each_other(change: dict[str, Any], message: str) -> None:
    login = {"user": USER, "password": {"env": "P"}, "host_key": public(paramiko.ECDSAKey.generate())}
    source = {"type": "sftp", "host": "sftp.example.org", **login, **change}
    with pytest.raises(ValidationError, match=message):
        LoadSpec.model_validate({"source": source, "target": {"table": "shop.orders"}})
