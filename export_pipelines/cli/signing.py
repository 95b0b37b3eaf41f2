"""The commands `keygen` and `sign`: keys to sign manifests with, and signatures that are missing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from export_pipelines.cli import output
from export_pipelines.cli.archive import archived_tables
from export_pipelines.errors import RequestError

if TYPE_CHECKING:
    from export_pipelines.signing import Signer
    from export_pipelines.stores.base import Store


@dataclass(frozen=True)
class _Signed:
    """What became of the chain of one table."""

    table: str
    signed: int
    problems: tuple[str, ...]


@click.command("keygen")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def keygen_command(file: Path) -> None:
    """Make an Ed25519 key pair: the private key in FILE, readable for its owner only, the public one in FILE.pub.

    Name FILE in resources/ (`export_pipelines.SigningKey`), and give FILE.pub to who verifies.
    """
    from export_pipelines.signing import make_keys, read_public_key

    public = make_keys(file)
    click.echo(f"{file}: the private key; keep a copy where nobody else gets at it")
    click.echo(f"{public}: the public key, fingerprint {read_public_key(public)}")


@click.command("sign")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def sign_command(tables: tuple[str, ...], as_json: bool) -> int:
    """Sign the manifests that have no signature, and the head, after checking the chain: all tables without a TABLE.

    Files are not read. A chain with a problem is not signed; exit code 1. Normally each manifest is signed when it is
    written; this is for those from before there was a key, and after a crash.
    """
    from export_pipelines.cli.project import opened

    with opened() as project:
        signer = project.signing.signer
        if signer is None:
            raise RequestError(
                "there is no key to sign with", hint="name one in resources/: export_pipelines.SigningKey; see `keygen`"
            )
        done = [
            _sign(store, table, project.catalog.head(table, store.url), signer)
            for store, table in archived_tables(project, tables)
        ]
    if as_json:
        output.as_json([asdict(each) for each in done])
    else:
        for each in done:
            click.echo(f"{each.table}: {output.count(each.signed, 'manifest')} signed")
            for problem in each.problems:
                click.secho(f"error: {each.table}: {problem}", err=True, fg="red")
    return 1 if any(each.problems for each in done) else 0


def _sign(archive: Store, table: str, known: tuple[int, str] | None, signer: Signer) -> _Signed:
    """Sign one chain, if nothing else is wrong with it; say what is wrong with it afterwards."""
    from export_pipelines.steps.chain_check import Expected, check_chain
    from export_pipelines.steps.signatures import seal_all

    expected = [Expected(*known, "the catalog")] if known else []
    before = check_chain(archive, table, expected=expected)
    if before.problems:
        return _Signed(table, 0, tuple(before.problems))
    signed = seal_all(archive, table, before.last, signer)
    after = check_chain(archive, table, expected=expected, keys=signer.keys)
    return _Signed(table, signed, tuple(after.problems))
