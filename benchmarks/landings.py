"""Reading the chain of a table's landings, as each run does: from bundles, and from the single manifests."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from benchmarks.measure import ratios, say, seconds, spread, table
from benchmarks.server import Database
from export_pipelines.manifest import FileProof, LandedManifest, digest, to_bytes
from export_pipelines.steps import chain
from export_pipelines.steps.chain_keys import manifest_key
from export_pipelines.steps.land_storing import Chain
from export_pipelines.stores.filesystem import FilesystemStore

_TABLE = "shop/orders"
_FILES = 20_000


def run(base: Database, pairs: int) -> str:
    """Measure; the result as Markdown."""
    root = base.folder / "landings"
    shutil.rmtree(root, ignore_errors=True)
    _write(root)
    store = FilesystemStore(root)
    first = seconds(lambda: Chain.read(store, _TABLE))
    say(f"{_FILES:,} manifests are written, and bundled …")
    ours: list[float] = []
    singly: list[float] = []
    for _ in range(pairs):
        ours.append(seconds(lambda: Chain.read(store, _TABLE)))
        singly.append(seconds(lambda: list(chain.digested(store, _TABLE))))
    lines = [
        ["from bundles, s", spread(ours).text()],
        ["from single manifests, s", spread(singly).text()],
        ["ratio of the pairs", ratios(ours, singly).text()],
        ["the read that writes the bundles, s", f"{first:.2f}"],
    ]
    return f"{_FILES:,} landed files, on a file system.\n\n" + table(["", ""], lines)


def _write(root: Path) -> None:
    """The chain, without waiting for the disk as a landing does."""
    previous = ""
    for number in range(1, _FILES + 1):
        sha = sha256(str(number).encode()).hexdigest()
        name = f"2026/05/orders-{number:07}.csv"
        proof = FileProof(key=f"{_TABLE}/landed/{sha}/{name}", size=1, sha256=sha, raw_size=1, raw_sha256=sha)
        entry = LandedManifest(
            sequence=number, previous_sha256=previous, table=_TABLE, written=datetime.now(UTC), run_id=sha[:36],
            source="folder", name=name, url=f"file:///srv/{name}", version=sha[:20], file=proof,
            fetched=datetime.now(UTC), definition_version=sha[:16],
        )  # fmt: skip
        data = to_bytes(entry)
        previous = digest(data)
        path = root / manifest_key(_TABLE, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
