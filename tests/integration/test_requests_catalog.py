"""Requests in the catalog: one question is one request, and every change has one winner and an audit entry."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest

from export_pipelines.catalog.audit import Actor
from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.catalog.requests import Asked, RequestFile, RequestRow, Requests
from export_pipelines.errors import RequestError
from export_pipelines.manifest import FileProof
from export_pipelines.specs.format import Compression, FormatName
from export_pipelines.specs.query import Query

SECRET = b"a secret of thirty-two characters"
ANN, BEN, OPS = Actor("ann", "127.0.0.1"), Actor("ben"), Actor("ops")
FILE = RequestFile(
    proof=FileProof(key="requests/x", size=1, sha256="0" * 64, raw_size=1, raw_sha256="1" * 64),
    name="x.csv",
    media_type="text/csv",
    columns=("a",),
)


@pytest.fixture
def pool(catalog_url: str) -> Iterator[CatalogPool]:
    pool = CatalogPool(catalog_url, size=8)
    yield pool
    pool.close()


@pytest.fixture
def requests(pool: CatalogPool) -> Requests:
    return Requests(pool)


def question(dataset: str = "g/flights", **more: Any) -> Query:
    return Query(dataset=dataset, format=FormatName.CSV, compression=Compression.NONE, **more)


def ask(requests: Requests, query: Query | None = None, who: Actor = ANN, **more: Any) -> tuple[RequestRow, bool]:
    return requests.ask(query or question(), "v1", Asked(who), secret=SECRET, **more)


def finish(requests: Requests, row: RequestRow, keep_hours: float = 72) -> RequestRow | None:
    assert requests.begin(row.id, "run") is not None
    return requests.succeed(row.id, "run", "file:///x", FILE, 5, 50, keep_hours)


def actions(pool: CatalogPool) -> list[str]:
    return [row["action"] for row in pool.rows("SELECT action FROM audit ORDER BY id")]


def test_a_hundred_equal_questions_at_once_are_one_request(requests: Requests, pool: CatalogPool) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda n: ask(requests, who=Actor(f"user{n % 10}")), range(100)))
    assert len({row.id for row, _ in found}) == 1
    assert sum(made for _, made in found) == 1
    assert len(requests.subscribers(found[0][0].id)) == 10


def test_the_id_is_derived_from_the_question_and_the_data_version(requests: Requests) -> None:
    first, _ = ask(requests)
    other, _ = ask(requests, question(limit=5))
    assert first.id != other.id
    assert len(first.id) == 26


def test_a_fresh_answer_is_given_again_and_an_old_one_is_not(requests: Requests) -> None:
    row, _ = ask(requests)
    finish(requests, row)
    fresh = {"fresh_since": datetime.now(UTC) - timedelta(minutes=10)}
    assert ask(requests, **fresh)[1] is False
    again, made = ask(requests, fresh_since=datetime.now(UTC) + timedelta(seconds=1))
    assert made and again.id != row.id


def test_another_data_version_is_another_request(requests: Requests) -> None:
    row, _ = ask(requests)
    finish(requests, row)
    other, made = requests.ask(question(), "v2", Asked(ANN), secret=SECRET)
    assert made and other.id != row.id


def test_a_question_to_newer_data_does_not_join_one_to_older_data(requests: Requests) -> None:
    row, _ = ask(requests)
    other, made = requests.ask(question(), "v2", Asked(BEN), secret=SECRET)
    assert made and other.id != row.id
    assert requests.ask(question(), "v2", Asked(ANN), secret=SECRET)[0].id == other.id


@pytest.mark.parametrize("ending", ["cancelled", "failed", "expired"])
def test_what_was_cancelled_failed_or_expired_is_never_served(requests: Requests, ending: str) -> None:
    row, _ = ask(requests)
    if ending == "cancelled":
        requests.leave(row.id, ANN)
    elif ending == "failed":
        requests.fail(row.id, "it broke", "")
    else:
        finish(requests, row, keep_hours=0)
        assert [each.id for each in requests.expiring()] == [row.id]
        assert requests.expired(row.id) is not None
    again, made = ask(requests)
    assert made and again.id != row.id and again.state == "pending"


def test_a_cancelled_request_that_still_runs_does_not_hinder_the_next(requests: Requests) -> None:
    row, _ = ask(requests)
    requests.begin(row.id, "run")
    left = requests.leave(row.id, ANN)
    assert left is not None and left.state == "processing" and left.cancel_at is not None
    again, made = ask(requests)
    assert made and again.id != row.id
    assert not requests.beat(row.id, 1, 1)
    assert requests.succeed(row.id, "run", "file:///x", FILE, 1, 1, 1) is None


def test_a_request_ends_only_when_its_last_subscriber_has_left(requests: Requests) -> None:
    row, _ = ask(requests)
    ask(requests, who=BEN)
    left = requests.leave(row.id, ANN)
    assert left is not None and left.state == "pending"
    assert [each.username for each in requests.subscribers(row.id)] == ["ben"]
    left = requests.leave(row.id, BEN)
    assert left is not None and left.state == "cancelled"


def test_a_stranger_cannot_cancel_and_an_operator_cancels_for_all(requests: Requests) -> None:
    row, _ = ask(requests)
    assert requests.leave(row.id, BEN) is None
    kept = requests.get(row.id)
    assert kept is not None and kept.state == "pending"
    left = requests.leave(row.id, OPS, operator=True)
    assert left is not None and left.state == "cancelled"
    assert requests.subscribers(row.id) == []


def test_a_replayed_cancel_changes_nothing(requests: Requests) -> None:
    row, _ = ask(requests)
    first, second = requests.leave(row.id, ANN), requests.leave(row.id, ANN)
    assert first is not None and second is not None
    assert (first.state, first.finished_at) == (second.state, second.finished_at)


def test_one_run_alone_begins_a_request(requests: Requests) -> None:
    row, _ = ask(requests)
    gate = threading.Barrier(8)

    def begin(number: int) -> bool:
        gate.wait()
        return requests.begin(row.id, f"run{number}") is not None

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(begin, range(8))) == 1


def test_a_request_that_was_put_back_is_not_ended_by_its_lost_run(requests: Requests) -> None:
    row, _ = ask(requests)
    requests.begin(row.id, "lost")
    assert requests.again(row.id, "lost") is not None
    assert requests.begin(row.id, "next") is not None
    assert requests.succeed(row.id, "lost", "file:///x", FILE, 1, 1, 1) is None
    done = requests.succeed(row.id, "next", "file:///x", FILE, 1, 1, 1)
    assert done is not None and done.state == "succeeded" and done.attempts == 2


def test_a_file_does_not_expire_under_a_running_download(requests: Requests, pool: CatalogPool) -> None:
    row, _ = ask(requests)
    finish(requests, row, keep_hours=0)
    pool.rows("INSERT INTO download (request_id, username) VALUES (%(id)s, 'ann')", {"id": row.id})
    assert requests.expiring() == []
    assert requests.expired(row.id) is None
    pool.rows("UPDATE download SET finished_at = now()")
    assert requests.expired(row.id) is not None


def test_users_take_turns_in_round_robin(requests: Requests) -> None:
    for number in range(3):
        ask(requests, question(limit=number + 1), ANN, round_robin=True)
    ask(requests, question(limit=10), BEN, round_robin=True)
    ask(requests, question(limit=11), BEN, round_robin=True)
    order = [(row.created_by, row.query.limit) for row in requests.unsubmitted()]
    assert order == [("ann", 1), ("ben", 10), ("ann", 2), ("ben", 11), ("ann", 3)]


def test_the_place_in_the_queue_counts_those_before(requests: Requests) -> None:
    rows = [ask(requests, question(limit=number + 1))[0] for number in range(3)]
    requests.begin(rows[0].id, "run")
    assert [requests.place(row) for row in rows[1:]] == [1, 2]


def test_a_user_with_too_many_requests_is_told_so(requests: Requests) -> None:
    ask(requests, question(limit=1), max_pending=1)
    with pytest.raises(RequestError, match="1 requests under way"):
        ask(requests, question(limit=2), max_pending=1)
    assert ask(requests, question(limit=2), BEN, max_pending=1)[1]


def test_pages_follow_each_other_by_number(requests: Requests) -> None:
    rows = [ask(requests, question(limit=number + 1))[0] for number in range(5)]
    first = requests.find(username="ann", limit=3)
    second = requests.find(username="ann", limit=3, before=first[-1].number)
    assert [row.id for row in first + second] == [row.id for row in reversed(rows)]
    assert requests.find(username="ben") == []


def test_every_change_is_in_the_audit_log(requests: Requests, pool: CatalogPool) -> None:
    row, _ = ask(requests)
    ask(requests, who=BEN)
    requests.leave(row.id, BEN)
    finish(requests, row)
    expected = ["request.created", "request.joined", "request.left", "request.processing", "request.succeeded"]
    assert actions(pool) == expected


def test_entries_written_at_once_make_one_chain(requests: Requests, pool: CatalogPool) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: ask(requests, question(limit=n + 1)), range(40)))
    chain = pool.rows("SELECT id, previous, sha256 FROM audit ORDER BY id")
    assert [each["id"] for each in chain] == list(range(1, 41))
    assert [each["previous"] for each in chain] == ["", *(each["sha256"] for each in chain[:-1])]


@pytest.mark.parametrize("statement", ["UPDATE audit SET who = 'x'", "DELETE FROM audit", "TRUNCATE audit"])
def test_the_audit_log_cannot_be_changed(requests: Requests, catalog_url: str, statement: str) -> None:
    ask(requests)
    connection = psycopg2.connect(catalog_url)
    with connection.cursor() as cursor, pytest.raises(psycopg2.Error, match="append-only"):
        cursor.execute("SET search_path TO export_pipelines")
        cursor.execute(statement)
    connection.close()
