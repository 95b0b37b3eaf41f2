"""The ledger in MariaDB: triggers note each row version, and how it ended, in the transaction that makes it.

The same as `tests.fault.ledger`, in MySQL's dialect. Versions and lives are numbered by UUID_SHORT(), which gives no
number twice, not even after a crash. A cleanup is told from a user by its account: by
USER(), since CURRENT_USER() is the trigger's own definer.
"""

from __future__ import annotations

import random
import time
from contextlib import closing, suppress
from datetime import datetime, timedelta
from typing import Any

import pymysql

from tests.fault.ledger import DAYS, ROWS_A_DAY
from tests.support.mariadb import mysql_connection

TRIGGER = "ledger_delete"
"""What a definition acknowledges."""
DISK_FULL = "fault_disk_full"
"""While somebody has this lock, deletions by the program fail as on a full disk."""

_LEDGER = (
    "CREATE OR REPLACE TABLE ledger.birth (version BIGINT PRIMARY KEY, life BIGINT, id VARCHAR(80), at DATETIME(6), "
    "note TEXT, amount VARCHAR(40), KEY (life))",
    "CREATE OR REPLACE TABLE ledger.death (version BIGINT PRIMARY KEY, how VARCHAR(10), "
    "number BIGINT AUTO_INCREMENT UNIQUE)",
    # Versions of batches whose outcome nobody was told.
    "CREATE OR REPLACE TABLE ledger.doubted (version BIGINT PRIMARY KEY)",
)
_BIRTH = "INSERT INTO ledger.birth VALUES (NEW.version, NEW.life, NEW.id, NEW.at, NEW.note, NEW.amount);"
_TRIGGERS = (
    "CREATE TRIGGER stamp_insert BEFORE INSERT ON t FOR EACH ROW "
    "SET NEW.version = UUID_SHORT(), NEW.life = COALESCE(NEW.life, UUID_SHORT())",
    "CREATE TRIGGER stamp_update BEFORE UPDATE ON t FOR EACH ROW SET NEW.version = UUID_SHORT()",
    f"CREATE TRIGGER ledger_insert AFTER INSERT ON t FOR EACH ROW BEGIN {_BIRTH} END",
    "CREATE TRIGGER ledger_update AFTER UPDATE ON t FOR EACH ROW BEGIN "
    f"INSERT INTO ledger.death (version, how) VALUES (OLD.version, 'updated'); {_BIRTH} END",
    f"""CREATE TRIGGER {TRIGGER} AFTER DELETE ON t FOR EACH ROW BEGIN
  IF USER() LIKE 'program@%' AND IS_USED_LOCK('{DISK_FULL}') IS NOT NULL AND RAND() < 0.5 THEN
    SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1114, MESSAGE_TEXT = 'The table ''t'' is full';
  END IF;
  INSERT INTO ledger.death (version, how) VALUES (OLD.version, IF(USER() LIKE 'program@%', 'cleanup', 'deleted'));
END""",
)

_REST = "note TEXT, amount DECIMAL(12,2), life BIGINT, version BIGINT, extra TEXT, KEY (version)"
KINDS = {
    "dense": f"id BIGINT AUTO_INCREMENT PRIMARY KEY, at TIMESTAMP(6) NOT NULL DEFAULT 0, {_REST}",
    "sparse": f"id BIGINT PRIMARY KEY, at DATETIME(6) NOT NULL, {_REST}",
    "text": f"id VARCHAR(80) PRIMARY KEY, at DATETIME(6) NOT NULL, {_REST}",
    "partitioned": f"id BIGINT, at DATETIME(6) NOT NULL, {_REST}, PRIMARY KEY (id, at)",
    "keyless": f"id BIGINT, at DATETIME(6) NOT NULL, {_REST}",
    "by key": f"id BIGINT PRIMARY KEY, at DATETIME(6) NOT NULL, {_REST}",
}
"""Tables by the key that they have; `by key` is read by a query that is opaque."""
_PARTITIONS = (
    " PARTITION BY RANGE COLUMNS (at) (PARTITION a VALUES LESS THAN ('2025-01-02'), "
    "PARTITION b VALUES LESS THAN (MAXVALUE))"
)

_WITHIN = "at >= %(day)s AND at < %(day)s + INTERVAL 1 DAY"
_CHANGES = {
    "update": "UPDATE t SET note = %(note)s, amount = amount + 1 WHERE version = %(version)s",
    "touch": "UPDATE t SET note = note WHERE version = %(version)s",
    "move": "UPDATE t SET at = %(at)s WHERE version = %(version)s",
    "rename": "UPDATE t SET id = %(id)s WHERE version = %(version)s",
    "delete": "DELETE FROM t WHERE version = %(version)s",
    "replace": "REPLACE INTO t (id, at, note, amount) SELECT id, at, note, amount FROM t WHERE version = %(version)s",
    "again": "REPLACE INTO t (id, at, note, amount) SELECT id, at, %(note)s, amount FROM t WHERE version = %(version)s",
}


def make_mysql_table(admin: str, kind: str) -> None:
    """The table and its ledger, empty; what was there before goes."""
    made = f"CREATE OR REPLACE TABLE t ({KINDS[kind]}) ENGINE = InnoDB{_PARTITIONS if kind == 'partitioned' else ''}"
    with closing(mysql_connection(admin)) as connection, connection.cursor() as cursor:
        for statement in (made, *_LEDGER, *_TRIGGERS):
            cursor.execute(statement)


def insert_mysql_rows(cursor: Any, kind: str, rng: random.Random, day: str, number: int = 1, long: int = 1) -> None:
    """Rows of a day; their notes have all that CSV and literals trip over."""
    rows = [(_moment(rng, day), _note(rng, long), _amount(rng)) for _ in range(number)]
    if kind == "dense":
        cursor.executemany("INSERT INTO t (at, note, amount) VALUES (%s, %s, %s)", rows)
    else:
        rows = [(_id(kind, rng), *row) for row in rows]
        cursor.executemany("INSERT INTO t (id, at, note, amount) VALUES (%s, %s, %s, %s)", rows)


def write_mysql(url: str, seed: int) -> None:
    """Change the table until killed. What kind of table it is follows `#` in the URL."""
    rng = random.Random(seed)
    url, _, kind = url.partition("#")
    while True:
        with suppress(pymysql.Error, OSError), closing(mysql_connection(url, autocommit=False)) as connection:
            _write(connection, kind, rng)
        time.sleep(0.1)


def _write(connection: Any, kind: str, rng: random.Random) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION innodb_lock_wait_timeout = 2, SESSION lock_wait_timeout = 2")
        while True:
            try:
                _transaction(cursor, kind, rng)
                connection.rollback() if rng.random() < 0.1 else connection.commit()
            except (pymysql.err.OperationalError, pymysql.err.IntegrityError):
                connection.rollback()
            time.sleep(rng.uniform(0.005, 0.04))


def _transaction(cursor: Any, kind: str, rng: random.Random) -> None:
    """One to three changes, some of them undone to a savepoint, now and then with a pause that others run into."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        inner = rng.random() < 0.2
        if inner:
            cursor.execute("SAVEPOINT inner_one")
        _change(cursor, kind, rng)
        if inner:
            cursor.execute("ROLLBACK TO inner_one" if rng.random() < 0.3 else "RELEASE SAVEPOINT inner_one")
        if rng.random() < 0.05:
            time.sleep(rng.uniform(0.02, 0.15))


def _change(cursor: Any, kind: str, rng: random.Random) -> None:
    day = rng.choice(DAYS)
    cursor.execute(f"SELECT version FROM t WHERE {_WITHIN}", {"day": day})
    versions = [row[0] for row in cursor.fetchall()]
    crowd = min(len(versions) / ROWS_A_DAY, 1)
    names = ("insert", *_CHANGES)
    weights = (5 * (1 - crowd), 1.5, 0.5, 0.5, 0.3, 0.2 + crowd, 0.3, 0.3)
    name = rng.choices(names, weights)[0]
    if name == "insert" or not versions:
        insert_mysql_rows(cursor, kind, rng, day, rng.choice((1, 1, 3)))
        return
    values = {"version": rng.choice(versions), "note": _note(rng), "at": _moment(rng, rng.choice(DAYS))}
    cursor.execute(_CHANGES[name], {**values, "id": _id(kind, rng)})


def _moment(rng: random.Random, day: str) -> datetime:
    return datetime.fromisoformat(day) + timedelta(microseconds=rng.randrange(86_400_000_000))


def _id(kind: str, rng: random.Random) -> object:
    number = rng.randrange(10**15)
    return f"k'{number:x}, \"\\{rng.choice('éß🙂')}" if kind == "text" else number


def _note(rng: random.Random, long: int = 1) -> str:
    return f"{rng.getrandbits(128):032x}" * long + rng.choice(("", "", '", "', "\\", "\n", "\r\n", "é🙂", "'", "\\n"))


def _amount(rng: random.Random) -> str | None:
    return None if rng.random() < 0.1 else f"{rng.uniform(-10, 1000):.2f}"
