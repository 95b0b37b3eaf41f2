"""The audit log: append-only by the database itself, and a chain in which nothing can be changed unnoticed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest

from export_pipelines.catalog.audit import Actor, AuditEntry, AuditLog, Head, write_audit
from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.errors import CatalogError, IntegrityError, RequestError
from tests.support.command_line import CommandLine
from tests.support.dagster_project import new_project
from tests.support.servers import run_sql

AUDIT = "export_pipelines.audit"


@pytest.fixture
def pool(catalog_url: str) -> Iterator[CatalogPool]:
    made = CatalogPool(catalog_url)
    yield made
    made.close()


@pytest.fixture
def log(pool: CatalogPool) -> AuditLog:
    """A log of five entries."""
    for number in range(1, 6):
        write(pool, AuditEntry("request.created", f"r{number}", detail={"ä": 'a"b', "n": number, "x": None}))
    return AuditLog(pool)


def write(pool: CatalogPool, *entries: AuditEntry, who: str = "ann") -> None:
    with pool.transaction() as cursor:
        write_audit(cursor, Actor(who, "192.0.2.1"), *entries)


def by_force(url: str, *statements: str) -> None:
    """As an administrator who has switched the triggers off."""
    run_sql(url, f"ALTER TABLE {AUDIT} DISABLE TRIGGER USER")
    for each in statements:
        run_sql(url, each)
    run_sql(url, f"ALTER TABLE {AUDIT} ENABLE TRIGGER USER")


def age(url: str, number: int, days: int = 500) -> None:
    """The first entries are from long ago; the chain is as the database would have made it then."""
    run_sql(url, f"ALTER TABLE {AUDIT} DISABLE TRIGGER USER")
    run_sql(url, f"UPDATE {AUDIT} SET at = at - interval '{days} days' WHERE id <= {number}")
    run_sql(
        url,
        f"""DO $$
        DECLARE one record; last text := '';
        BEGIN
          FOR one IN SELECT id FROM {AUDIT} ORDER BY id LOOP
            UPDATE {AUDIT} SET previous = last WHERE id = one.id;
            UPDATE {AUDIT} SET sha256 = encode(sha256(convert_to(jsonb_build_array(id, to_char(at AT TIME ZONE 'UTC',
              'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), who, action, subject, outcome, address, detail, previous)::text,
              'UTF8')), 'hex') WHERE id = one.id RETURNING sha256 INTO last;
          END LOOP;
        END $$""",
    )
    run_sql(url, f"ALTER TABLE {AUDIT} ENABLE TRIGGER USER")


def test_an_untouched_log_is_whole_and_its_head_is_found_again(pool: CatalogPool, log: AuditLog) -> None:
    head = log.head()
    assert head is not None and head.id == 5
    write(pool, AuditEntry("login", "bob"), who="bob")
    found = log.verify(Head.parse(str(head)))
    assert (found.entries, found.first, found.head) == (6, 1, log.head())


def test_writers_at_the_same_time_make_one_chain(pool: CatalogPool, log: AuditLog) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: write(pool, AuditEntry("login", f"u{n}")), range(40)))
    assert log.verify().entries == 45


def test_what_a_writer_says_of_number_time_and_digests_does_not_count(catalog_url: str, log: AuditLog) -> None:
    run_sql(
        catalog_url,
        f"INSERT INTO {AUDIT} VALUES (77, '2001-01-01', 'eve', 'login', 'eve', 'ok', '', '{{}}', 'x', 'y')",
    )
    assert log.verify().entries == 6
    assert log.newest(1)[0].at.year > 2001


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE {AUDIT} SET who = 'bob'",
        f"DELETE FROM {AUDIT} WHERE id = 3",
        f"DELETE FROM {AUDIT}",
        f"TRUNCATE {AUDIT}",
        "DELETE FROM export_pipelines.audit_setting",
        f"INSERT INTO {AUDIT} SELECT * FROM {AUDIT} WHERE id = 1 ON CONFLICT (id) DO UPDATE SET who = 'bob'",
    ],
)
def test_even_the_owner_can_neither_change_nor_delete_an_entry(catalog_url: str, log: AuditLog, statement: str) -> None:
    if "ON CONFLICT" in statement:
        run_sql(catalog_url, statement)  # the number is the next one, so there is no conflict
    else:
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run_sql(catalog_url, statement)
    assert log.verify().entries >= 5
    assert {each.who for each in log.entries()} == {"ann"}


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (f"UPDATE {AUDIT} SET who = 'bob' WHERE id = 3", "entry 3 of the audit log was changed"),
        (f"UPDATE {AUDIT} SET detail = '{{}}' WHERE id = 1", "entry 1 of the audit log was changed"),
        (f"UPDATE {AUDIT} SET at = at + interval '1 microsecond' WHERE id = 5", "entry 5 of the audit log was changed"),
        (f"UPDATE {AUDIT} SET previous = sha256 WHERE id = 4", "entry 4 of the audit log does not follow entry 3"),
        (f"DELETE FROM {AUDIT} WHERE id = 3", "entry 3 of the audit log is missing"),
        (f"DELETE FROM {AUDIT} WHERE id < 3", "begins with entry 3"),
    ],
)
def test_verify_names_the_first_entry_that_an_administrator_has_touched(
    catalog_url: str, log: AuditLog, statement: str, said: str
) -> None:
    by_force(catalog_url, statement)
    with pytest.raises(IntegrityError, match=said):
        log.verify()


def test_an_entry_that_was_put_in_is_found(catalog_url: str, log: AuditLog) -> None:
    by_force(
        catalog_url,
        f"UPDATE {AUDIT} SET id = -id WHERE id > 2",
        f"UPDATE {AUDIT} SET id = 1 - id WHERE id < 0",
        f"INSERT INTO {AUDIT} SELECT 3, at, 'eve', action, subject, outcome, address, detail, sha256, "
        f"encode(sha256('x'), 'hex') FROM {AUDIT} WHERE id = 2",
    )
    with pytest.raises(IntegrityError, match="entry 3 of the audit log was changed"):
        log.verify()


def test_a_head_that_was_kept_elsewhere_finds_a_cut_end_and_a_log_written_anew(catalog_url: str, log: AuditLog) -> None:
    head = log.head()
    by_force(catalog_url, f"DELETE FROM {AUDIT} WHERE id = 5")
    assert log.verify().entries == 4, "without it nothing is seen"
    with pytest.raises(IntegrityError, match="ends with entry 4, and entry 5 was in it"):
        log.verify(head)
    run_sql(catalog_url, f"INSERT INTO {AUDIT} (who, action, subject, outcome) VALUES ('eve', 'login', 'eve', 'ok')")
    with pytest.raises(IntegrityError, match="entry 5 of the audit log is not the one that was expected"):
        log.verify(head)


def test_a_text_that_is_no_head_is_refused() -> None:
    for text in ("", "5", "x:" + "a" * 64, "5:abc"):
        with pytest.raises(RequestError, match="is no head"):
            Head.parse(text)


def test_what_is_older_than_it_has_to_be_kept_can_go_and_the_chain_goes_on(catalog_url: str, log: AuditLog) -> None:
    age(catalog_url, 3)
    head = log.head()
    assert log.prune() == 3
    assert log.prune() == 0
    found = log.verify(head)
    assert (found.first, found.entries) == (4, 3)
    pruned = log.newest(1)[0]
    assert pruned.action == "audit.pruned" and (pruned.detail["through"], pruned.detail["entries"]) == (3, 3)
    by_force(catalog_url, f"DELETE FROM {AUDIT} WHERE id = 4")
    with pytest.raises(IntegrityError, match="begins with entry 5"):
        log.verify()


def test_the_newest_entry_stays_whatever_its_age(catalog_url: str, log: AuditLog) -> None:
    age(catalog_url, 5)
    with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="not all"):
        run_sql(catalog_url, f"DELETE FROM {AUDIT}")
    with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="only its oldest"):
        run_sql(catalog_url, f"DELETE FROM {AUDIT} WHERE id = 2")
    assert log.prune() == 4
    assert log.verify().first == 5


def test_how_long_entries_are_kept_is_changed_with_an_entry_only(catalog_url: str, log: AuditLog) -> None:
    assert not log.keep(400)
    assert log.keep(500) and log.keep(30)
    changes = [each.detail for each in log.entries(action="audit.keep")]
    assert [(each["from"], each["to"]) for each in changes] == [("400 days", "500 days"), ("500 days", "30 days")]
    with pytest.raises(CatalogError, match="for a day at least"):
        log.keep(0)


@pytest.fixture
def service_url(catalog_url: str) -> Iterator[str]:
    """The catalog by a role that has what `roles` grants to the service."""
    from export_pipelines.cli.roles_service import catalog_grants

    role = f"service_{os.urandom(4).hex()}"
    run_sql(catalog_url, f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'service'")
    for statement in catalog_grants(f'"{role}"', "export_pipelines"):
        run_sql(catalog_url, statement)
    yield f"postgresql://{role}:service@{urlsplit(catalog_url).netloc.rpartition('@')[2]}{urlsplit(catalog_url).path}"
    run_sql(catalog_url, f'DROP OWNED BY "{role}"')
    run_sql(catalog_url, f'DROP ROLE "{role}"')


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE {AUDIT} SET who = 'bob'",
        f"DELETE FROM {AUDIT}",
        f"TRUNCATE {AUDIT}",
        f"ALTER TABLE {AUDIT} DISABLE TRIGGER USER",
        f"DROP TABLE {AUDIT}",
        "UPDATE export_pipelines.audit_setting SET keep = '1 day'",
        "SELECT export_pipelines.audit_set_keep(1)",
        "SET session_replication_role = replica",
        "CREATE TABLE export_pipelines.mine (id int)",
        "CREATE OR REPLACE FUNCTION export_pipelines.audit_prune() RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'",
    ],
)
def test_the_role_of_the_service_cannot_touch_what_is_written(service_url: str, log: AuditLog, statement: str) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run_sql(service_url, statement)
    assert log.verify().entries == 5


def test_the_role_of_the_service_writes_reads_keeps_longer_and_prunes(
    catalog_url: str, service_url: str, log: AuditLog
) -> None:
    age(catalog_url, 2)
    pool = CatalogPool(service_url)
    write(pool, AuditEntry("login", "bob"))
    own = AuditLog(pool)
    assert own.keep(450)
    assert own.prune() == 2
    assert own.verify().entries == 6
    pool.close()


@pytest.fixture
def cli(tmp_path: Path, catalog_url: str, database: str) -> CommandLine:
    variables = {
        "DATABASE_URL": database,
        "DAGSTER_PG_URL": catalog_url,
        "EXPORT_PATH": str(tmp_path / "exports"),
        "ARCHIVE_URL": (tmp_path / "archive").as_uri(),
    }
    return CommandLine(new_project(tmp_path).root, variables)


def test_the_command_lists_and_filters(cli: CommandLine, pool: CatalogPool, log: AuditLog) -> None:
    write(pool, AuditEntry("login", "bob", "refused"), who="bob")
    listed = cli("audit", "list")
    assert listed.code == 0, listed.err
    assert listed.out.count("request.created") == 5 and "192.0.2.1" in listed.out
    for options, number in (
        (("--who", "bob", "--outcome", "refused"), 1),
        (("--action", "request.*", "--subject", "r3", "--since", "1h"), 1),
        (("--until", "2020-01-01"), 0),
    ):
        assert len(cli("audit", "list", *options, "--json").json) == number, options
    assert len(list(log.entries(action="request.*"))) == 5 and not list(log.entries(action="request"))
    assert [each.id for each in log.newest(2)] == [6, 5]
    wrong = cli("audit", "list", "--since", "yesterday")
    assert wrong.code == 2 and "is no time" in wrong.err


def test_the_command_verifies_and_its_export_can_be_checked_without_this_program(
    cli: CommandLine, log: AuditLog, catalog_url: str, tmp_path: Path
) -> None:
    head = cli("audit", "head").out.strip()
    verified = cli("audit", "verify", "--expect", head)
    assert verified.code == 0 and "5 entries from 1 are whole, and entry 5" in verified.out, verified.err
    file = tmp_path / "audit.jsonl"
    assert cli("audit", "export", "--to-file", str(file)).code == 0
    assert cli("audit", "export", "--to-file", str(file)).code == 2
    last = ""
    for line in map(json.loads, file.read_text().splitlines()):
        assert hashlib.sha256(line["text"].encode()).hexdigest() == line["sha256"]
        assert json.loads(line["text"])[-1] == last == line["previous"]
        last = line["sha256"]
    assert f"5:{last}" == head
    by_force(catalog_url, f"UPDATE {AUDIT} SET who = 'bob' WHERE id = 2")
    broken = cli("audit", "verify")
    assert broken.code == 1 and "entry 2 of the audit log was changed" in broken.err


def test_the_command_prunes_by_the_setting_of_the_service(cli: CommandLine, log: AuditLog, catalog_url: str) -> None:
    age(catalog_url, 3, days=40)
    service = cli.root / "resources/service/defs.yaml"
    service.parent.mkdir()
    service.write_text("type: export_pipelines.Service\nattributes: {audit_keep_days: 30}\n")
    pruned = cli("audit", "prune")
    assert pruned.code == 0 and "3 entries deleted; now kept for 30 days" in pruned.out, pruned.out + pruned.err
    assert log.verify().first == 4
