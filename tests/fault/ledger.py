"""The ledger: every row version of a table under constant change, noted by triggers in the transaction that makes it.

A *version* is one state of a row, numbered as it is written; a *life* is a row from its INSERT to its DELETE, whatever
becomes of it in between. Both numbers are columns of the row itself, so that they are in each exported file, too.

    ledger.birth    a version, with what it says
    ledger.death    how it ended: updated, deleted (by a user), or cleanup (by the program under test)
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg2

from tests.support.processes import context

DAYS = ("2025-01-01", "2025-01-02", "2025-01-03")
ROWS_A_DAY = 24
PAUSE = 4711
"""Advisory lock: writers share it for each of their transactions, who takes it whole makes them wait."""

LEDGER = """
DROP SCHEMA IF EXISTS ledger CASCADE;
CREATE SCHEMA ledger;
CREATE SEQUENCE ledger.version;
CREATE SEQUENCE ledger.life;
CREATE TABLE ledger.birth (version bigint PRIMARY KEY, life bigint, id bigint, at timestamptz, note text, amount text);
CREATE TABLE ledger.death (version bigint PRIMARY KEY, how text, number bigserial, xid xid8);
CREATE FUNCTION ledger.stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.version := nextval('ledger.version');
  NEW.life := coalesce(NEW.life, nextval('ledger.life'));
  RETURN NEW;
END $$;
CREATE FUNCTION ledger.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' AND current_setting('application_name') = 'export_pipelines' THEN
    PERFORM fault.maybe_full();
  END IF;
  IF TG_OP <> 'INSERT' THEN
    INSERT INTO ledger.death (version, how, xid) VALUES (OLD.version, CASE
      WHEN TG_OP = 'UPDATE' THEN 'updated'
      WHEN current_setting('application_name') = 'export_pipelines' THEN 'cleanup' ELSE 'deleted' END,
      pg_current_xact_id());
  END IF;
  IF TG_OP <> 'DELETE' THEN
    INSERT INTO ledger.birth VALUES (NEW.version, NEW.life, NEW.id, NEW.at, NEW.note, NEW.amount::text);
  END IF;
  RETURN NULL;
END $$;
"""

_COLUMNS = "id bigint, at timestamptz NOT NULL, note text, amount numeric, life bigint, version bigint, extra text"

TRIGGERS = """
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION ledger.stamp();
CREATE TRIGGER ledger AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION ledger.note();
"""

PLAIN = f"DROP TABLE IF EXISTS t CASCADE; CREATE TABLE t ({_COLUMNS}, PRIMARY KEY (id)) WITH (fillfactor = 70);"
PARTITIONED = f"""
DROP TABLE IF EXISTS t CASCADE;
CREATE TABLE t ({_COLUMNS}, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (MINVALUE) TO ('2025-01-02 00:00Z');
CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM ('2025-01-02 00:00Z') TO (MAXVALUE);
"""

_INSERT = (
    "INSERT INTO t (id, at, note, amount) SELECT (random() * 1e15)::bigint, %(day)s::timestamptz "
    "+ random() * interval '23 hours', repeat(md5(random()::text), %(long)s), round((random() * 1000)::numeric, 2) "
    "FROM generate_series(1, %(n)s)"
)
_ONE = (
    "(SELECT id FROM t WHERE at >= %(day)s AND at < %(day)s::timestamptz + interval '1 day' ORDER BY random() LIMIT 1)"
)
_UPDATE = f"UPDATE t SET note = md5(random()::text), amount = amount + 1 WHERE id = {_ONE}"
_MOVE = f"UPDATE t SET at = %(other)s::timestamptz + random() * interval '23 hours' WHERE id = {_ONE}"
_DELETE = f"DELETE FROM t WHERE id = {_ONE}"


def make_table(url: str, *, partitioned: bool) -> None:
    """The table and its ledger, empty; what was there before goes."""
    with closing(psycopg2.connect(url, application_name="suite")) as connection:
        connection.autocommit = True
        connection.cursor().execute((PARTITIONED if partitioned else PLAIN) + LEDGER + TRIGGERS)


def insert_rows(cursor: Any, day: str, number: int = 1, long: int = 1) -> None:
    """Rows of a day."""
    cursor.execute(_INSERT, {"day": day, "n": number, "long": long})


@dataclass
class Writers:
    """Some processes that change the table all the time. They live through whatever befalls the server."""

    url: str
    seed: int
    number: int = 2
    work: Callable[[str, int], None] | None = None
    """What a process does with URL and seed; `write` if nothing else is said."""
    _processes: list[Any] = field(default_factory=list)

    def start(self) -> None:
        for n in range(self.number):
            process = context.Process(target=self.work or write, args=(self.url, self.seed * 10 + n), daemon=True)
            process.start()
            self._processes.append(process)

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join(10)
        self._processes.clear()


@contextmanager
def paused(url: str) -> Iterator[None]:
    """No writer is in the middle of a transaction, and none begins one."""
    with closing(psycopg2.connect(url, application_name="suite")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", (PAUSE,))
        yield


def write(url: str, seed: int) -> None:
    """Change the table until killed."""
    rng = random.Random(seed)
    while True:
        with suppress(psycopg2.Error), closing(psycopg2.connect(url, application_name="writer")) as connection:
            _write(connection, rng)
        time.sleep(0.1)


def _write(connection: Any, rng: random.Random) -> None:
    while True:
        with connection.cursor() as cursor:
            try:
                _transaction(cursor, rng)
                connection.rollback() if rng.random() < 0.1 else connection.commit()
            except psycopg2.Error:
                connection.rollback()
        time.sleep(rng.uniform(0.005, 0.04))


def _transaction(cursor: Any, rng: random.Random) -> None:
    """One to three changes, some of them in a subtransaction, now and then with a pause that others run into."""
    cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", (PAUSE,))
    for _ in range(rng.choice((1, 1, 2, 3))):
        inner = rng.random() < 0.2
        if inner:
            cursor.execute("SAVEPOINT inner_one")
        _change(cursor, rng)
        if inner:
            cursor.execute("ROLLBACK TO inner_one" if rng.random() < 0.3 else "RELEASE inner_one")
        if rng.random() < 0.05:
            time.sleep(rng.uniform(0.02, 0.15))


def _change(cursor: Any, rng: random.Random) -> None:
    day = rng.choice(DAYS)
    cursor.execute("SELECT count(*) FROM t WHERE at >= %s AND at < %s::timestamptz + interval '1 day'", (day, day))
    crowd = cursor.fetchone()[0] / ROWS_A_DAY
    kind = rng.choices(("insert", "update", "move", "delete"), (5 * (1 - min(crowd, 1)), 2, 0.5, 0.2 + crowd))[0]
    if kind == "insert":
        insert_rows(cursor, day, rng.choice((1, 1, 3)))
    else:
        statement = {"update": _UPDATE, "move": _MOVE, "delete": _DELETE}[kind]
        cursor.execute(statement, {"day": day, "other": rng.choice(DAYS)})
