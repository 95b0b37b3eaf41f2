"""The read API: a client that signs each call (HAWK) reads a loaded table of lineitem to its end, page by page.

`export-pipelines api` serves; the client and the database share the machine with it. The peer is `psql`, which gives
the same rows as JSON in one stream.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import orjson

from benchmarks.load import TYPES
from benchmarks.measure import say, seconds, table
from benchmarks.served import OURS, RESOURCES, environment, running, write_project
from benchmarks.server import Database, load_lineitem
from export_pipelines.local.children import free_port
from export_pipelines.sources.hawk import signed

_PACKAGE = "hawk@9.0.2"
_SCRIPT = """
const Hawk = require('hawk');
const [first, id, key] = process.argv.slice(2);
const credentials = { id, key, algorithm: 'sha256' };
(async () => {
  let rows = 0;
  for (let uri = first; uri;) {
    const { header, artifacts } = Hawk.client.header(uri, 'GET', { credentials });
    const reply = await fetch(uri, { headers: { authorization: header } });
    const payload = await reply.text();
    if (reply.status !== 200) throw new Error(payload);
    const headers = Object.fromEntries(reply.headers.entries());
    await Hawk.client.authenticate({ headers }, credentials, artifacts, { payload, required: true });
    const page = JSON.parse(payload);
    rows += page.results.length;
    uri = page.next;
  }
  console.log(rows);
})().catch((error) => { console.error(error); process.exit(1); });
"""
_RESOURCES = f"""{RESOURCES}---
type: export_pipelines.PostgresConnection
attributes: {{resource_key: warehouse, url: {{env: DATABASE_URL}}}}
---
type: export_pipelines.FilesystemStore
attributes: {{resource_key: landing, path: {{env: EXPORT_PATH}}}}
---
type: export_pipelines.Service
attributes:
  rates: {{pages_per_user: 100000/second, pages_per_address: 100000/second}}
"""


def run(base: Database, scale: float) -> str:
    """Measure; the result as Markdown."""
    rows = load_lineitem(base, scale)
    root = base.folder / "reading"
    _load(base, root)
    command = [*OURS, "client", "create", "bench", "--table", "bench.*", "--json"]
    made = json.loads(_run(base, root, command, stdout=subprocess.PIPE).stdout)
    url = f"http://127.0.0.1:{free_port()}"
    port = url.rpartition(":")[2]
    with running(base, root, "api", "--port", port, ready=lambda _: _answers(url)):
        first = f"{url}/api/v1/table-data/bench/lineitem?orientation=records"
        say(f"reading {rows:,} rows …")
        pages, taken, cpu = _read(first, made["id"], made["key"])
        say(f"{rows / taken:,.0f} rows a second; with npm's hawk …")
        npm = seconds(lambda: _npm(root, first, made["id"], made["key"], rows))
    select = "SELECT row_to_json(l) FROM lineitem l"
    theirs = seconds(lambda: _psql(base, select))
    tenth = len(pages) // 10
    ordered = sorted(pages)
    early, late = 1000 * median(pages[:tenth]), 1000 * median(pages[-tenth:])
    lines = [
        ["rows a second", f"{rows / taken:,.0f}"],
        ["page: median, p99, slowest, ms", f"{1000 * median(pages):.1f}, {1000 * ordered[int(len(pages) * 0.99)]:.1f}, "
         f"{1000 * ordered[-1]:.0f}"],
        ["median of the first tenth of the pages, and of the last, ms", f"{early:.1f}, {late:.1f}"],
        ["processor time of the client, ms a page", f"{1000 * cpu / len(pages):.1f}"],
        ["npm's `hawk`, the whole table, each answer's signature checked, rows a second", f"{rows / npm:,.0f}"],
        ["`psql` of the same rows as JSON, rows a second", f"{rows / theirs:,.0f} (ratio {theirs / taken:.2f})"],
    ]  # fmt: skip
    return f"{rows:,} rows, {len(pages):,} pages of records.\n\n" + table(["", ""], lines)


def _load(base: Database, root: Path) -> None:
    """The table, loaded from a file as every table is."""
    columns = {name: {"type": kind} for name, kind in TYPES.items()}
    attributes = {
        "source": {"type": "folder", "path": str(root / "drops"), "settle_seconds": 0},
        "target": {"table": "bench.lineitem", "published": True},
        "columns": columns,
    }
    files = {
        "workspace.yaml": "load_from: []\n",
        "resources/defs.yaml": _RESOURCES,
        "assets/bench/lineitem/defs.yaml": json.dumps({"type": "export_pipelines.LoadTable", "attributes": attributes}),
    }
    write_project(root, files)
    (root / "drops").mkdir(exist_ok=True)
    with (root / "drops" / "lineitem.csv").open("wb") as out:
        command: list[str | Path] = [
            base.programs / "psql",
            "-X",
            "-q",
            base.source,
            "-c",
            "COPY lineitem TO STDOUT CSV HEADER",
        ]
        subprocess.run(command, stdout=out, check=True)
    say("loading …")
    _run(base, root, [*OURS, "load", "run", "bench/lineitem"])


def _run(base: Database, root: Path, command: list[str], **more: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, cwd=root, env=environment(base), check=True, **more)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/live", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _read(url: str, client: str, key: str) -> tuple[list[float], float, float]:
    """Read all pages; the seconds of each, of all, and the client's processor time."""
    pages: list[float] = []
    following: str | None = url
    with httpx.Client(trust_env=False, timeout=60) as http:
        begun, cpu = time.perf_counter(), time.process_time()
        while following:
            before = time.perf_counter()
            call = signed(client, key.encode(), "GET", following)
            answer = http.get(following, headers={"Authorization": call.header})
            pages.append(time.perf_counter() - before)
            if answer.status_code != 200:
                raise RuntimeError(answer.text)
            kind = answer.headers["content-type"]
            if not call.is_answered_by(answer.headers["server-authorization"], answer.content, kind):
                raise RuntimeError("the answer is not signed by the service")
            page: dict[str, Any] = orjson.loads(answer.content)
            following = page["next"]
        return pages, time.perf_counter() - begun, time.process_time() - cpu


def _npm(root: Path, first: str, client: str, key: str, rows: int) -> None:
    """Read all with the client of HAWK's own authors, in Node."""
    folder = root / "npm"
    folder.mkdir(exist_ok=True)
    (folder / "package.json").write_text("{}")
    (folder / "read.js").write_text(_SCRIPT)
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", _PACKAGE]
    subprocess.run(install, cwd=folder, check=True)
    plain = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    command = ["node", "read.js", first, client, key]
    done = subprocess.run(command, cwd=folder, env=plain, stdout=subprocess.PIPE, check=True)
    if int(done.stdout) != rows:
        raise RuntimeError(f"it read {int(done.stdout)} of {rows} rows")


def _psql(base: Database, select: str) -> None:
    command: list[str | Path] = [base.programs / "psql", "-X", "-q", base.source, "-c", f"COPY ({select}) TO STDOUT"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
