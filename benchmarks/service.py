"""Exports on demand as people meet them: over HTTP, with everything running that `export-pipelines up` starts.

Dagster's web server, its daemon and its code server, the API and the worker share the machine with the database and
with the clients that measure.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measure import peak_memory, say, spread, table
from benchmarks.served import RESOURCES, WORKSPACE, processes_below, running, write_project
from benchmarks.server import Database
from export_pipelines.local.children import free_port

_TOKEN = re.compile(rb"with the token (\S+)")
_COLUMNS = ", ".join(f"n % {1000 + c} AS c{c}" for c in range(19))
_KEYS = 2_897
_WIDE_ROWS = 40_000
_DATA_SET = """
type: export_pipelines.DataSet
attributes:
  table: public.s_{name}
  row_limit: 100000000
  filters: {{n: {{type: integer}}}}
"""
_WIDENED = "  widen: {column: extra, keys: discover}\n"
_MORE = {"orders": "", "many": "", "tenth": _WIDENED, "dense": _WIDENED}
_FILES = {
    **{f"assets/bench/{name}/defs.yaml": _DATA_SET.format(name=name) + more for name, more in _MORE.items()},
    "workspace.yaml": WORKSPACE,
    "resources/defs.yaml": RESOURCES
    + """---
type: export_pipelines.Service
attributes:
  max_pending_per_user: 100000
  rates:
    requests_per_user: 100000/second
    requests_per_address: 100000/second
    exports_per_user: 100000/second
""",
}


def run(base: Database, pairs: int) -> str:
    """Measure; the result as Markdown."""
    root = base.folder / "service"
    write_project(root, _FILES)
    _tables(base)
    with _up(base, root) as up:
        parts = [_single(up, pairs), _cancelling(up, pairs), _crowd(up), _memory_line(up)]
    return "\n".join(parts)


def _tables(base: Database) -> None:
    """What is asked for, unless it is there."""
    if base.run("SELECT to_regclass('s_dense')")[0][0] is not None:
        return
    say("making tables …")
    base.run(f"CREATE TABLE s_orders AS SELECT n, {_COLUMNS} FROM generate_series(1, 80000) n")
    base.run(f"CREATE TABLE s_many AS SELECT n, {_COLUMNS} FROM generate_series(1, 6000000) n")
    for name, keep in (("s_tenth", f"k % 10 = n % 10 AND k <= {_KEYS}"), ("s_dense", "true")):
        base.run(
            f"CREATE TABLE {name} AS SELECT n, (SELECT jsonb_object_agg('key_' || k, (n * k) % 99991) "
            f"FROM generate_series(1, {_KEYS}) k WHERE {keep}) AS extra FROM generate_series(1, {_WIDE_ROWS}) n"
        )
    base.run("VACUUM ANALYZE", "CHECKPOINT")


@dataclass
class _Up:
    """The running service."""

    url: str
    token: str
    api: int
    """Process of the API."""
    numbers: Iterator[int] = field(default_factory=lambda: count(int(time.time()) % 10**6 * 100))
    peak: float = 0.0

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers, trust_env=False, timeout=300)

    def question(self, dataset: str, limit: int, **more: Any) -> dict[str, Any]:
        """One that nobody has asked before."""
        return {
            "dataset": f"bench/{dataset}",
            "filters": {"n__lt": 10**9 - next(self.numbers)},
            "limit": limit,
            **more,
        }

    def note_memory(self) -> None:
        self.peak = max(self.peak, peak_memory(self.api))


@contextmanager
def _up(base: Database, root: Path) -> Iterator[_Up]:
    port, api_port = str(free_port()), str(free_port())
    command = ("up", "--no-open", "--port", port, "--api-port", api_port)
    with running(base, root, *command, ready=_TOKEN.search) as process:
        token = _TOKEN.search((root / "up.out").read_bytes())
        assert token
        time.sleep(10)
        yield _Up(f"http://127.0.0.1:{api_port}", token[1].decode(), _listening(process, api_port))


def _listening(up: int, port: str) -> int:
    """The process of the API, below `up`."""
    for each in processes_below(up):
        command = Path(f"/proc/{each}/cmdline").read_bytes().split(b"\0")
        if b"api" in command and port.encode() in command:
            return each
    raise RuntimeError("the API is not there")


def _downloadable(up: _Up, client: httpx.Client, question: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Seconds from the POST to the first byte of the file, told of by its events; and the status."""
    begun = time.perf_counter()
    asked = client.post("/requests", json=question)
    if asked.status_code != 202:
        raise RuntimeError(asked.text)
    with client.stream("GET", asked.json()["links"]["events"]) as events:
        for line in events.iter_lines():
            if line.startswith("event: end"):
                break
    status: dict[str, Any] = client.get(asked.headers["location"]).json()
    if status["status"] != "Succeeded":
        raise RuntimeError(str(status))
    with client.stream("GET", status["links"]["download"]) as answer:
        answer.raise_for_status()
        next(answer.iter_bytes())
    up.note_memory()
    return time.perf_counter() - begun, status


def _single(up: _Up, pairs: int) -> str:
    lines = []
    cases: list[tuple[str, str, int, str, int]] = [
        ("1,000 rows × 20, CSV", "orders", 1_000, "csv", pairs * 4),
        ("80,000 rows × 20, CSV", "orders", 80_000, "csv", pairs),
        ("80,000 rows × 20, Parquet", "orders", 80_000, "parquet", pairs),
        (f"40,000 rows × {_KEYS:,}, a tenth of the cells filled, CSV", "tenth", 40_000, "csv", 3),
        (f"40,000 rows × {_KEYS:,}, dense, CSV", "dense", 40_000, "csv", 2),
        (f"40,000 rows × {_KEYS:,}, a tenth of the cells filled, Parquet", "tenth", 40_000, "parquet", 2),
    ]
    with up.client() as client:
        _downloadable(up, client, up.question("orders", 10))
        for title, dataset, rows, kind, times in cases:
            taken = []
            for _ in range(times):
                time.sleep(0.5)
                taken.append(_downloadable(up, client, up.question(dataset, rows, format=kind))[0])
            measured = spread(taken)
            say(f"{title}: {measured.text()} s")
            lines.append([title, measured.text(), str(times)])
    return table(["POST to the first byte of the download", "median (min–max) s", "times"], lines)


def _cancelling(up: _Up, pairs: int) -> str:
    taken = []
    with up.client() as client:
        for _ in range(pairs):
            where = client.post("/requests", json=up.question("many", 6_000_000)).headers["location"]
            _until(lambda where=where: client.get(where).json()["status"] == "Processing")
            time.sleep(1)
            begun = time.perf_counter()
            client.delete(where).raise_for_status()
            _until(lambda where=where: client.get(where).json()["status"] == "Cancelled")
            taken.append(time.perf_counter() - begun)
    measured = spread(taken)
    say(f"cancel: {measured.text()} s")
    return f"DELETE of a request at work to Cancelled, its query ended: {measured.text()} s.\n"


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


_CLIENTS, _SECONDS = 50, 60


def _crowd(up: _Up) -> str:
    """50 clients call once a second each while three exports are at work; a third of the calls are requests."""
    with up.client() as client:
        busy = [client.post("/requests", json=up.question("many", 6_000_000)).headers["location"] for _ in range(3)]
        _until(lambda: all(client.get(each).json()["status"] == "Processing" for each in busy))
        seconds, ids = asyncio.run(_clients(up))
        still = [client.get(each).json()["status"] for each in busy]
        up.note_memory()
        say(f"the three: {still}")
        for each in busy:
            client.delete(each)
        lines = [
            [kind, str(len(found)), *(f"{1000 * _percentile(found, p):.0f}" for p in (50, 95, 99, 100))]
            for kind, found in sorted(seconds.items())
        ]
        for line in lines:
            say(" ".join(line))
        text = table(["call", "times", "p50 ms", "p95", "p99", "most"], lines)
        return (
            f"{_CLIENTS} clients, one call a second each, for {_SECONDS} s; three exports {set(still)}:\n\n{text}"
            + _all(up, client, ids)
        )


class _Line:
    """A connection that is kept, and as little of HTTP as these calls need: what measures must not need the processor
    that it measures."""

    def __init__(self, up: _Up) -> None:
        self._port = int(up.url.rpartition(":")[2])
        self._head = f"Host: 127.0.0.1:{self._port}\r\nAuthorization: Bearer {up.token}\r\n"

    async def call(self, method: str, path: str, question: dict[str, Any] | None = None) -> tuple[float, bytes]:
        """Seconds until the whole answer is here, and its body. Raises RuntimeError: it is no success."""
        body = json.dumps(question).encode() if question else b""
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if question else ""
        begun = time.perf_counter()
        self._writer.write(f"{method} {path} HTTP/1.1\r\n{self._head}{kind}\r\n".encode() + body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        size = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        answer = await self._reader.readexactly(int(size[1]) if size else 0)
        taken = time.perf_counter() - begun
        if not head.startswith(b"HTTP/1.1 2"):
            raise RuntimeError(str(head + answer))
        return taken, answer

    async def __aenter__(self) -> _Line:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def _clients(up: _Up) -> tuple[dict[str, list[float]], list[str]]:
    seconds: dict[str, list[float]] = {}
    ids: list[str] = []

    async def one(number: int) -> None:
        await asyncio.sleep(number / _CLIENTS)
        async with _Line(up) as line:
            begun, own = time.perf_counter(), ""
            for turn in range(_SECONDS):
                # The same mix of calls in each second.
                match (turn + number) % 3 if own else 0:
                    case 0:
                        kind, question = "POST /requests", up.question("orders", 1 + number)
                        taken, answer = await line.call("POST", "/requests", question)
                        own = json.loads(answer)["id"]
                        ids.append(own)
                    case 1:
                        kind, (taken, _) = "GET /requests/{id}", await line.call("GET", f"/requests/{own}")
                    case _:
                        kind, (taken, _) = "GET /datasets", await line.call("GET", "/datasets")
                seconds.setdefault(kind, []).append(taken)
                await asyncio.sleep(max(0.0, begun + turn + 1 - time.perf_counter()))

    await asyncio.gather(*(one(number) for number in range(_CLIENTS)))
    return seconds, ids


def _percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _all(up: _Up, client: httpx.Client, ids: list[str]) -> str:
    """Wait for all; how they ended."""
    begun = time.perf_counter()
    live = list(dict.fromkeys(ids))
    ended: Counter[str] = Counter()
    while live:
        for each in live[:50]:
            status = client.get(f"/requests/{each}").json()
            if status["status"] not in ("Pending", "Processing"):
                ended[status["status"]] += 1
                live.remove(each)
        say(f"{len(live)} left")
        time.sleep(3)
    up.note_memory()
    seconds = time.perf_counter() - begun
    return (
        f"\nOf the {len(ids):,} requests that they asked, {dict(ended)}, {len(set(ids)):,} of them different; the last "
        f"{seconds:.0f} s after the clients had gone.\n"
    )


def _memory_line(up: _Up) -> str:
    return f"Greatest resident memory of the API's process in all of this: {up.peak:.0f} MB.\n"
