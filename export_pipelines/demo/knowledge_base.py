"""A knowledge base of versioned rows, generated: what a crawler of public agencies' web sites would store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, partial
from hashlib import sha256
from itertools import islice
from random import Random

from export_pipelines.demo.loading import Cursor, LoadProgress, copy_rows, load_once, silent
from export_pipelines.demo.texts import Writer

SCHEMA = "knowledge_base"
DAYS = 10
"""Days before `today` over which versions are spread."""
MOST_VERSIONS = 8
"""A thing has one to so many versions."""

_DAY = 86_400
_LATE_SHARE = 0.05
_CHUNK_ROWS = 500
# No text holds these three, so they can stand for what is escaped last.
_NULL, _COLUMN, _ROW = "\x1c", "\x1d", "\x1e"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Value = str | int | float | bool | bytes | None | Sequence[str]
"""What a generated row may hold; a sequence of strings is an array."""


@dataclass(frozen=True)
class Version:
    """One version of a thing: `thing` and `number` count from 0, `at` is seconds since 1970."""

    at: int
    thing: int
    number: int
    is_last: bool


@dataclass(frozen=True)
class Table:
    """A table to generate: `things` at scale 1, and how the values of one version are made."""

    name: str
    things: int
    columns: str
    row: Callable[[Generator, Version], tuple[Value, ...]]


def load(url: str, scale: float = 1.0, progress: LoadProgress = silent, *, today: date | None = None) -> dict[str, int]:
    """Load the five tables into schema `knowledge_base` of the database at `url`; the rows loaded by this call.

    About 99,000 rows at `scale` 1, 75 MB as CSV, in about 6 seconds of a quiet machine (two cores).
    The same `scale` and `today` give the same rows. Versions lie in the ten days before the midnight (UTC) at which
    `today` begins, a few in the hour after it: an export at that midnight takes nearly all that are not the newest.
    `today` is the present day when absent.

    Empty when they were loaded before, also when rows were cleaned up since. A crash leaves nothing behind.

    Raises:
        SourceError: the database is unreachable or refuses.
        TargetError: the schema holds tables that are not ours.
    """
    midnight = datetime.combine(today or datetime.now(UTC).date(), time(), UTC)
    return load_once(url, SCHEMA, partial(_fill, scale=scale, midnight=midnight, progress=progress))


def _fill(cursor: Cursor, scale: float, midnight: datetime, progress: LoadProgress) -> dict[str, int]:
    rows = {}
    for table in TABLES:
        generator = Generator(table, scale, midnight)
        rows[table.name] = copy_rows(
            cursor,
            f"{SCHEMA}.{table.name}",
            table.columns.split(),
            generator.chunks(),
            progress=partial(_tell, progress, table.name, len(generator.versions)),
        )
        cursor.execute(f"ANALYZE {SCHEMA}.{table.name}")
    return rows


def _tell(progress: LoadProgress, table: str, total: int, rows: int) -> None:
    progress(table, rows, total)


class Generator:
    """Makes the rows of one table in the order of their times, as COPY's text format."""

    def __init__(self, table: Table, scale: float, midnight: datetime) -> None:
        self.rng = Random(f"export_pipelines/{table.name}")
        self.writer = Writer(self.rng)
        self.table = table
        self.scale = scale
        self.midnight = int(midnight.timestamp())
        self.things = _base_ids(table.name, _scaled(table.things, scale))
        self.versions = sorted(self._versions(), key=lambda version: (version.at, version.thing))

    def chunks(self) -> Iterator[bytes]:
        """The rows, some hundreds at a time."""
        rows = (self.table.row(self, version) for version in self.versions)
        while batch := list(islice(rows, _CHUNK_ROWS)):
            yield _copy_text(batch)

    def uuid(self) -> str:
        """A random UUID."""
        return _uuid(self.rng)

    def other(self, table: str) -> str:
        """base_id of some thing of another table."""
        things = next(other.things for other in TABLES if other.name == table)
        return self.rng.choice(_base_ids(table, _scaled(things, self.scale)))

    def created(self, version: Version) -> str:
        """When the thing was first made: some days before its versions, the same for all of them."""
        return _timestamp(self.midnight - DAYS * _DAY - version.thing % 1_000 * 7_919)

    def _versions(self) -> Iterator[Version]:
        span = range(self.midnight - DAYS * _DAY, self.midnight)
        for thing in range(len(self.things)):
            times = sorted(self.rng.sample(span, self.rng.randint(1, MOST_VERSIONS)))
            if self.rng.random() < _LATE_SHARE:
                times[-1] = self.midnight + self.rng.randrange(3_600)
            for number, at in enumerate(times):
                yield Version(at, thing, number, is_last=number == len(times) - 1)


def _agency(make: Generator, version: Version) -> tuple[Value, ...]:
    rng = make.rng
    name = f"{rng.choice(('Amet', 'Inspektsioon', 'Agency', 'Keskus', 'Служба'))} {version.thing}"
    homepage = rng.choice((f"https://agency-{version.thing}.example/", "", None))
    description = make.writer.text(rng.randint(1, 3)) if rng.random() < 0.9 else None
    deleted = version.is_last and rng.random() < 0.03
    at = _timestamp(version.at)
    return (make.uuid(), make.things[version.thing], name, description, homepage, deleted, make.created(version), at)


def _source(make: Generator, version: Version) -> tuple[Value, ...]:
    rng = make.rng
    kind = rng.choice(("website", "website", "api", "upload"))
    settings = {
        "depth": rng.randint(1, 9),
        "languages": rng.sample(["et", "ru", "en", "عربي"], 2),
        "selectors": {"content": 'main > div[class="text"]', "skip": ["nav", "\\/kontakt\\/"]},
        "note": make.writer.title() if rng.random() < 0.4 else None,
    }
    return (
        make.uuid(),
        make.things[version.thing],
        make.other("agency"),
        f"Allikas {version.thing}, v{version.number + 1}",
        f"https://site-{version.thing}.example/et/avaleht?page=1&q=%C3%B5igus",
        kind,
        json.dumps(settings, ensure_ascii=rng.random() < 0.5),
        rng.choice(("0 3 * * *", "*/30 6-18 * * 1-5", None)) if kind != "upload" else None,
        version.is_last and rng.random() < 0.03,
        make.created(version),
        _timestamp(version.at),
    )


def _source_file(make: Generator, version: Version) -> tuple[Value, ...]:
    rng = make.rng
    extension, mime = rng.choice(_MIME)
    base_id = f"file-{make.things[version.thing][:12]}"
    text = make.writer.text(rng.randint(3, 12)) if rng.random() < 0.95 else rng.choice((None, ""))
    return (
        f"{base_id}-v{version.number + 1}",
        base_id,
        make.other("source"),
        f"Lisa {version.thing} – “määrus”, {version.number + 1}. redaktsioon.{extension}",
        f"files/{base_id[5:7]}/{base_id}/{version.number + 1}.{extension}",
        sha256((text or "").encode()).digest(),
        mime,
        rng.randint(2_000, 9_000_000_000 if rng.random() < 0.001 else 9_000_000),
        None if text is None else f"{rng.random() * 90:.3f}",
        text,
        make.created(version),
        _timestamp(version.at),
    )


def _source_run_page(make: Generator, version: Version) -> tuple[Value, ...]:
    rng = make.rng
    status = rng.choices((200, 304, 404, 500), (90, 4, 4, 2))[0]
    ending = rng.choice(("", ".html", ".pdf"))
    fetched = status == 200
    return (
        make.uuid(),
        make.things[version.thing],
        make.other("source"),
        make.uuid(),
        f"https://site-{version.thing % 1_300}.example/{rng.choice(('et', 'ru', 'en'))}/leht-{version.thing}{ending}",
        status,
        make.writer.title() if fetched else None,
        make.writer.text(rng.randint(1, 3)) if fetched else "",
        None if status < 400 else f"HTTP {status}: {make.writer.title()}\n\tat fetch(page.py:{rng.randint(1, 400)})",
        _timestamp(version.at - rng.randrange(1, 600), rng.randrange(1_000_000)),
        _timestamp(version.at),
    )


def _source_run_report(make: Generator, version: Version) -> tuple[Value, ...]:
    rng = make.rng
    running = version.is_last and rng.random() < 0.05
    errors = [make.writer.title() for _ in range(rng.choice((0, 0, 0, 1, 3)))]
    pages = rng.randint(0, 5_000)
    seconds = rng.randrange(10, 3_000)
    started = _timestamp(version.at - seconds)[:-6]
    return (
        make.uuid(),
        make.things[version.thing],
        make.other("source"),
        "running" if running else rng.choice(("partly failed", "failed")) if errors else "succeeded",
        pages,
        rng.randint(0, pages),
        rng.randint(0, 300),
        pages * rng.randint(4_000, 900_000),
        errors,
        None if running else f"{seconds} seconds",
        started,
        None if running else _timestamp(version.at)[:-6],
        _timestamp(version.at),
    )


_MIME = (
    ("pdf", "application/pdf"),
    ("docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    ("txt", "text/plain; charset=utf-8"),
    ("xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
)

TABLES = (
    Table("agency", 300, "id base_id name description homepage is_deleted created_at updated_at", _agency),
    Table(
        "source",
        1_300,
        "id base_id agency_base_id name url kind settings schedule is_deleted created_at updated_at",
        _source,
    ),
    Table(
        "source_file",
        2_400,
        "id base_id source_base_id file_name storage_path sha256 mime_type size_bytes extraction_seconds "
        "extracted_text created_at updated_at",
        _source_file,
    ),
    Table(
        "source_run_page",
        10_000,
        "id base_id source_base_id run_id url http_status title cleaned_text error_message fetched_at updated_at",
        _source_run_page,
    ),
    Table(
        "source_run_report",
        8_000,
        "id base_id source_base_id status pages_found pages_changed files_found bytes_fetched errors duration "
        "started_at finished_at updated_at",
        _source_run_report,
    ),
)
"""The five tables, in the order of loading."""


@cache
def _base_ids(table: str, things: int) -> tuple[str, ...]:
    """base_ids of the things of `table`; other tables refer to them."""
    rng = Random(f"export_pipelines/{table}/base_id")
    return tuple(_uuid(rng) for _ in range(things))


def _uuid(rng: Random) -> str:
    return f"{rng.getrandbits(128):032x}"


def _scaled(things: int, scale: float) -> int:
    return max(1, round(things * scale))


def _timestamp(seconds: int, microseconds: int = 0) -> str:
    return (_EPOCH + timedelta(seconds=seconds, microseconds=microseconds)).isoformat(" ")


def _copy_text(rows: Sequence[tuple[Value, ...]]) -> bytes:
    """`rows` in COPY's text format. Escaped all at once, which is several times quicker than value by value."""
    text = _ROW.join(_COLUMN.join(map(_field, row)) for row in rows) + _ROW
    text = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return text.replace(_NULL, "\\N").replace(_COLUMN, "\t").replace(_ROW, "\n").encode()


def _field(value: Value) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return _NULL
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    return str(value) if isinstance(value, int | float) else _array(value)


def _array(items: Sequence[str]) -> str:
    quoted = (item.replace("\\", "\\\\").replace('"', '\\"') for item in items)
    return "{" + ",".join(f'"{item}"' for item in quoted) + "}"
