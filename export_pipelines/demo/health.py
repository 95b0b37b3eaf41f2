"""The four tables of a health service, generated: batches of vaccines, vaccinations, certificates, an audit trail.

They are for MariaDB and MySQL, and hold what their dumps must not lose: numbers beyond 63 bits, fractions of a second,
bits, sets, JSON, binary codes, names with accents, and emoji.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import islice
from random import Random
from typing import Any

from export_pipelines.demo.loading import LoadProgress, silent, statements
from export_pipelines.demo.texts import SENTENCES, Writer
from export_pipelines.errors import SourceError, TargetError
from export_pipelines.sources.mysql import MysqlSource

ROWS = {"vaccine_batch": 2_000, "vaccination": 200_000, "certificate": 50_000, "audit_trail": 100_000}
"""Tables, in the order of loading, and the rows of each at scale 1."""
START, END = datetime(2024, 1, 1), datetime(2025, 1, 1)
"""Between these two everything happens, in UTC; but the audit trail, of which the rows of more than 90 days are cleaned
up, is of the same length and ends with the day before it is loaded."""

_LOCK = "export_pipelines demo health"
_CHUNK_ROWS = 2_000
# No text holds this one, so it can stand for the quotes around values.
_QUOTE = "\x1c"
_DAYS = (END - START).days
# Half of the numbers of the audit trail are 2**63 or above.
_MIDDLE = 1 << 63

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Table:
    """A table to generate: how its rows are made from a random number generator and their number."""

    name: str
    columns: str
    rows: Callable[[Random, Sizes], Iterator[Row]]


@dataclass(frozen=True)
class Sizes:
    """How many rows there are of each table, and the day (UTC) whose beginning ends the audit trail."""

    scale: float
    today: date

    def of(self, table: str) -> int:
        """Rows of a table; at least one."""
        return max(1, round(ROWS[table] * self.scale))


def load(url: str, progress: LoadProgress = silent, *, scale: float = 1.0, today: date | None = None) -> dict[str, int]:
    """Load the four tables into the MariaDB or MySQL database at `url` (which exists); the rows loaded by this call.

    352,000 rows at `scale` 1, some 70 MB there, in about 15 seconds of a quiet machine (two cores). The same `scale`
    on the same day (`today`, in UTC; that of the clock when absent) gives the same rows. Nothing is done when they were
    loaded before, also when rows were cleaned up since. Of two at once the second waits. The rows are one transaction:
    after a crash the tables are empty, and the next call fills them.

    Raises:
        SourceError: the database is unreachable or refuses.
        TargetError: it holds tables of these names which this program did not make.
    """
    import pymysql

    with closing(MysqlSource(url).connect()) as connection, connection.cursor() as cursor:
        try:
            cursor.execute("SET time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES'")
            _wait_for_others(cursor)
            return _load_once(connection, cursor, progress, Sizes(scale, today or _today()))
        except pymysql.MySQLError as error:
            transient = isinstance(error, pymysql.err.OperationalError)
            raise SourceError(f"demo data: {error.args[-1]}", transient=transient) from error


def rows(table: str, scale: float = 1.0, today: date | None = None) -> Iterator[Row]:
    """The rows of a table as they are loaded on a day (`today`, in UTC), in the order of their times."""
    found = next(each for each in TABLES if each.name == table)
    return found.rows(Random(f"export_pipelines/health/{table}"), Sizes(scale, today or _today()))


def _today() -> date:
    return datetime.now(UTC).date()


def _wait_for_others(cursor: Any) -> None:
    """Only one loads at a time; the lock goes with the connection."""
    cursor.execute("SELECT GET_LOCK(CONCAT(%s, ' ', MD5(DATABASE())), 600)", [_LOCK])
    if cursor.fetchone()[0] != 1:
        raise SourceError("demo data: another process has been loading them for ten minutes", transient=True)


def _load_once(connection: Any, cursor: Any, progress: LoadProgress, sizes: Sizes) -> dict[str, int]:
    if _is_loaded(cursor):
        return {}
    # Statements that make tables commit by themselves; the marker is a row of the transaction that fills them.
    connection.begin()
    loaded = {table.name: _fill(cursor, table, progress, sizes) for table in TABLES}
    cursor.execute("INSERT INTO demo_state VALUES (UTC_TIMESTAMP(), %s)", [json.dumps(loaded)])
    connection.commit()
    cursor.execute(f"ANALYZE TABLE {', '.join(ROWS)}")
    return loaded


def _is_loaded(cursor: Any) -> bool:
    """Whether the marker is there; if not, the tables are made, as far as they are missing."""
    cursor.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()")
    present = {name for (name,) in cursor.fetchall()}
    if "demo_state" not in present and (strange := sorted(present & set(ROWS))):
        raise TargetError(
            f"the database holds tables that the demo did not make: {', '.join(strange)}",
            hint="load the demo into another database, or drop them if nobody needs them",
        )
    cursor.execute(
        "CREATE TABLE IF NOT EXISTS demo_state (loaded_at datetime NOT NULL, row_counts json NOT NULL) ENGINE = InnoDB"
    )
    for statement in statements("health.sql").split(";\n"):
        if statement.strip() and not any(f"CREATE TABLE {name} " in statement for name in present):
            cursor.execute(statement)
    cursor.execute("SELECT count(*) FROM demo_state")
    return bool(cursor.fetchone()[0])


def _fill(cursor: Any, table: Table, progress: LoadProgress, sizes: Sizes) -> int:
    total, loaded = sizes.of(table.name), 0
    into = f"INSERT INTO {table.name} ({', '.join(table.columns.split())}) VALUES "
    found = rows(table.name, sizes.scale, sizes.today)
    while chunk := list(islice(found, _CHUNK_ROWS)):
        cursor.execute(into + _values(chunk))
        loaded += len(chunk)
        progress(table.name, loaded, total)
    return loaded


def _values(some: Sequence[Row]) -> str:
    """Rows as INSERT takes them. Escaped all at once, which is several times quicker than PyMySQL's value by value."""
    text = ",".join(f"({','.join(map(_literal, row))})" for row in some)
    return text.replace("\\", "\\\\").replace("'", "''").replace(_QUOTE, "'")


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return f"{_QUOTE}{value}{_QUOTE}"
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"X{_QUOTE}{value.hex()}{_QUOTE}"
    return str(value) if isinstance(value, int | float) else f"{_QUOTE}{value}{_QUOTE}"


def _times(rng: Random, number: int, resolution: int) -> Iterator[datetime]:
    """So many moments of the year in order, busy by day and quiet by night, in steps of `resolution` microseconds."""
    # On a grid of its own each stays apart from the next, and all of the year is used.
    step = timedelta(days=_DAYS) / number
    for place in range(number):
        at = START + step * (place + rng.random())
        # Two of three that would fall into the night come in the working hours of that day.
        if not 7 <= at.hour < 19 and rng.random() < 2 / 3:
            at = at.replace(hour=rng.randrange(8, 18))
        yield at.replace(microsecond=at.microsecond // resolution * resolution)


def _sorted_times(rng: Random, number: int, resolution: int = 1_000_000) -> list[datetime]:
    return sorted(_times(rng, number, resolution))


def _vaccine_batches(rng: Random, sizes: Sizes) -> Iterator[Row]:
    number = sizes.of("vaccine_batch")
    for place in range(number):
        vaccine, manufacturer, storage = rng.choice(_VACCINES)
        received = (START + timedelta(days=place * _DAYS // number)).date()
        yield (
            place + 1,
            f"{rng.choice('ABEFNPXW')}{rng.choice('AKLRT')}{place:05d}",
            vaccine,
            manufacturer,
            4_740_000_000_000 + rng.randrange(10_000_000_000),
            rng.choice((100, 195, 450, 1_170)),
            received,
            received + timedelta(days=rng.randrange(90, 900)),
            Decimal(rng.randrange(250, 19_500)) / 100,
            None if storage == "fridge" else Decimal(rng.choice((-250, -705, -800))) / 10,
            storage,
            rng.random() < 0.01,
            rng.choice(SENTENCES["et"]) if rng.random() < 0.05 else None,
        )


def _vaccinations(rng: Random, sizes: Sizes) -> Iterator[Row]:
    number, batches = sizes.of("vaccination"), sizes.of("vaccine_batch")
    vaccines = [row[2] for row in rows("vaccine_batch", sizes.scale)]
    for place, created in enumerate(_sorted_times(rng, number), 1):
        # From a batch that was received in the weeks before.
        batch = max(1, place * batches // number - rng.randrange(1 + batches // 20))
        yield (
            place,
            created,
            rng.getrandbits(256).to_bytes(32, "big"),
            vaccines[batch - 1],
            rng.choices((1, 2, 3, 4), (40, 35, 20, 5))[0],
            batch,
            rng.choice(_FACILITIES),
            created.date() - timedelta(days=rng.choice((0, 0, 0, 0, 1, 3))),
            rng.choice(("left", "left", "right", None)),
            timedelta(minutes=rng.choice((15, 30))) if rng.random() < 0.8 else None,
            rng.choice(SENTENCES["raw"])[:200] if rng.random() < 0.01 else None,
        )


def _certificates(rng: Random, sizes: Sizes) -> Iterator[Row]:
    number = sizes.of("certificate")
    for place, issued in enumerate(_sorted_times(rng, number, 1)):
        status = rng.choices(("valid", "revoked", "superseded"), (94, 1, 5))[0]
        kind, holder = rng.choice(("vaccination", "vaccination", "test", "recovery")), _name(rng)
        yield (
            _code(place),
            issued,
            kind,
            status,
            (issued + timedelta(days=rng.randrange(200))).date() if status == "revoked" else None,
            holder,
            _payload(rng, kind, holder, issued),
            rng.getrandbits(512).to_bytes(64, "big"),
        )


def _payload(rng: Random, kind: str, holder: str, issued: datetime) -> str:
    """The JSON of a certificate, as its issuer wrote it: in Unicode, or escaped."""
    content = {
        "ver": "1.3.0",
        "nam": holder,
        "dob": str(date(1930, 1, 1) + timedelta(days=rng.randrange(32_000))),
        kind[:1]: {"dn": rng.randint(1, 4), "sd": 2, "tg": "840539006", "ratio": rng.random(), "iat": str(issued)},
        "remark": rng.choice((None, "", "✓", '"quoted", with a comma', "back\\slash\nnew line")),
    }
    return json.dumps(content, ensure_ascii=rng.random() < 0.3)


def _audit_trail(rng: Random, sizes: Sizes) -> Iterator[Row]:
    number, certificates = sizes.of("audit_trail"), sizes.of("certificate")
    writer = Writer(rng, 200)
    later = sizes.today - END.date()
    for place, at in enumerate(_sorted_times(rng, number, 1_000)):
        action = rng.choices(_ACTIONS, (20, 50, 10, 10, 9, 1))[0]
        yield (
            _MIDDLE - number // 2 + place,
            at + later,
            rng.choice(_ACTORS),
            action,
            ",".join(flag for flag in ("api", "batch", "delegated", "urgent") if rng.random() < 0.15),
            None if action == "login" else _code(rng.randrange(certificates)),
            _address(rng),
            round(rng.lognormvariate(-3, 1), 4),
            writer.text(1) if rng.random() < 0.3 else rng.choice((None, "")),
        )


def _address(rng: Random) -> bytes | None:
    """An address of documentation, of version 4 or 6; some entries have none."""
    sort = rng.random()
    if sort < 0.7:
        return bytes((192, 0, 2, rng.randrange(256)))
    return bytes.fromhex("20010db8") + rng.getrandbits(96).to_bytes(12, "big") if sort < 0.95 else None


def _code(place: int) -> str:
    return f"URN:UVCI:01:EE:{place * 2_654_435_761 % 2**40:012X}"


def _name(rng: Random) -> str:
    name = f"{rng.choice(_FIRST_NAMES)} {rng.choice(_LAST_NAMES)}"
    return f"{name} {rng.choice('🌻🎈🇪🇪')}" if rng.random() < 0.01 else name


_VACCINES = (
    ("Covid-19 mRNA XBB.1.5", "Näidis Pharma GmbH", "ultra-cold"),
    ("Influenza, quadrivalent", "Sample Biologics S.A.", "fridge"),
    ("Tick-borne encephalitis", "Exemple Santé", "fridge"),
    ("Measles, mumps, rubella", "Sample Biologics S.A.", "freezer"),
    ("Diphtheria, tetanus, pertussis", "Näidis Pharma GmbH", "fridge"),
    ("Human papillomavirus", "Przykład Sp. z o.o.", "fridge"),
)
_FACILITIES = (
    *(f"Perearstikeskus nr {number}" for number in range(1, 60)),
    "Tartu Ülikooli näidiskliinik",
    "Põhja-Eesti haigla, „vana maja“",
    "Õpetajate polikliinik; 2. korrus",
    "Приморская клиника",
)
_FIRST_NAMES = ("Õnne", "Jüri", "Mari-Liis", "Владимир", "Zoë", "Björn", "Łucja", "José", "李", "Siobhán", "Ahmed")
_LAST_NAMES = ("Tamm", "Kõiv", "O'Brien", "Mägi", "Иванов", "Müller", "Šimić", "Nuñez", "小明", "Žukauskas", "Dall'Ò")
_ACTORS = (*(f"nurse{number:03d}@clinic.example" for number in range(150)), "system", "arst „Õ“", "auditor@state")
_ACTIONS = ("login", "view", "create", "change", "print", "revoke")

TABLES = (
    Table(
        "vaccine_batch",
        "id batch_number vaccine manufacturer gtin doses received expires price lowest_degree storage withdrawn note",
        _vaccine_batches,
    ),
    Table(
        "vaccination",
        "id created patient_code vaccine dose batch_id facility given_on side watched_for note",
        _vaccinations,
    ),
    Table("certificate", "code issued kind status revoked holder payload signature", _certificates),
    Table("audit_trail", "id at actor action flags subject ip seconds details", _audit_trail),
)
"""The four tables, in the order of loading."""
