"""Asking for data by HTTP, following it and cancelling it."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from export_pipelines.catalog.requests import Fault
from tests.support.api import answered, api, ask, caller, ended, problem
from tests.support.pages import Served

__all__ = ["api"]


def test_data_sets_say_what_may_be_asked(api: Served) -> None:
    with caller(api) as ann:
        listed = ann.get("/datasets").json()["datasets"]
        assert [each["id"] for each in listed] == ["demo/flights", "demo/wide"]  # that of finance is not hers
        told = ann.get("/datasets/flights").json()
        assert told == ann.get("/datasets/demo/flights").json()
    assert told["row_limit"] == 2000 and told["formats"][0] == "csv"
    columns = {each["name"]: each for each in told["described_columns"]}
    assert columns["flight"]["type"] == "integer" and columns["dep_delay"]["description"].startswith("Minutes")
    filters = {each["name"]: each for each in told["filters"]}
    assert filters["carrier"]["values"] == ["AA", "B6", "DL", "UA"]
    assert "ge" in filters["dep_delay"]["operators"] and "contains" not in filters["dep_delay"]["operators"]
    assert "/datasets/demo/flights/export?dep_delay__ge=10&fileType=csv" in told["examples"]


def test_every_example_of_a_data_set_is_a_question_that_it_takes(api: Served) -> None:
    with caller(api) as ann:
        for each in ann.get("/datasets/flights").json()["examples"]:
            answer = ann.get(each)
            assert answer.status_code == 202, each
            ann.delete(answer.headers["location"])


def test_a_preview_has_first_rows_and_counts(api: Served) -> None:
    with caller(api) as ann:
        found = ann.get("/datasets/flights/preview", params={"carrier": "UA", "columns": "id,carrier"}).json()
    assert [each["name"] for each in found["columns"]] == ["id", "carrier"]
    assert len(found["rows"]) == 20 and {row[1] for row in found["rows"]} == {"UA"}
    assert found["counted_rows"] == 750 and not found["too_many"]
    assert found["summary"] == "id, carrier of demo/flights where carrier = UA"


def test_a_preview_says_when_there_are_too_many_rows(api: Served) -> None:
    with caller(api) as ann:
        found = ann.get("/datasets/flights/preview").json()
        assert found["too_many"] and found["more_than_counted"] and found["counted_rows"] == 2000
        assert not ann.get("/datasets/flights/preview", params={"limit": 100}).json()["too_many"]


def test_a_request_is_recorded_followed_and_downloaded(api: Served) -> None:
    with caller(api) as ann:
        answer = ann.post("/requests", json={"dataset": "demo/flights", "filters": {"dep_delay__ge": 150}})
        assert answer.status_code == 202
        told = answer.json()
        assert told["status"] == "Pending" and told["percent"] == 0 and told["user"] == "ann"
        assert answer.headers["location"] == f"/requests/{told['id']}"
        assert answer.headers["content-location"] == f"{api.url}/requests/{told['id']}"
        assert 1 <= int(answer.headers["retry-after"]) <= 10 and "before it" in answer.headers["x-progress"]

        again = ann.get(told["links"]["self"])
        assert again.status_code == 202 and again.headers["retry-after"]  # in progress, as FHIR has it
        problem(ann.get(f"/requests/{told['id']}/download"), 409)
        answered(api, told["id"])
        done = ended(ann, told["id"])
        assert done["status"] == "Succeeded" and done["percent"] == 100 and done["file"]["sha256"]
        file = ann.get(done["links"]["download"])
        assert file.status_code == 200 and file.content.count(b"\n") == done["rows"] + 1


def test_the_same_question_is_one_request_however_it_is_written(api: Served) -> None:
    with caller(api) as ann, caller(api, "bob") as bob:
        first = ask(ann, filters=[{"name": "carrier", "operator": "in", "value": ["UA", "AA"]}], limit=7)
        second = ask(bob, dataset="demo/flights", filters={"carrier__in": "AA,UA"}, limit=7, format="csv")
        third = bob.get("/datasets/flights/export?carrier__in=UA,AA&limit=7&fileType=csv").json()
        assert first["id"] == second["id"] == third["id"]
        other = ask(bob, filters={"carrier__in": "AA,UA"}, limit=7, environment="lab")
        assert other["id"] != first["id"]  # environments keep their ids apart


def test_a_hundred_at_once_who_ask_the_same_share_one_request(api: Served) -> None:
    with caller(api) as ann, ThreadPoolExecutor(20) as pool:
        ids = set(pool.map(lambda _: ask(ann, filters={"carrier": "DL"}, limit=99)["id"], range(100)))
        assert len(ids) == 1
        listed = ann.get("/requests", params={"dataset": "flights", "status": "Pending"}).json()["requests"]
        assert sum(each["query"]["limit"] == 99 for each in listed) == 1


def test_a_small_export_comes_straight_back_when_that_is_preferred(api: Served) -> None:
    with caller(api) as ann, api.working():
        answer = ann.get(
            "/datasets/flights/export?carrier=UA&dep_delay__ge=100&columns=id,carrier&fileType=json",
            headers={"Prefer": "respond-async, wait=8"},
        )
        assert answer.status_code == 200 and answer.headers["preference-applied"] == "wait"
        assert answer.headers["content-type"].startswith("application/json")
        assert {each["carrier"] for each in answer.json()} == {"UA"}
        recorded = ann.get(answer.headers["location"]).json()
        assert recorded["status"] == "Succeeded" and recorded["rows"] == len(answer.json())


def test_a_big_export_does_not_come_straight_back(api: Served) -> None:
    with caller(api) as ann, api.working():
        answer = ann.post("/requests", json={"dataset": "flights", "limit": 1999}, headers={"Prefer": "wait=8"})
        assert answer.status_code == 202
        assert ended(ann, answer.json()["id"])["rows"] == 1999


def test_a_call_that_waits_ends_when_its_time_is_over(api: Served) -> None:
    with caller(api) as ann:
        begun = time.monotonic()
        answer = ann.get("/datasets/flights/export?carrier=UA&limit=3", headers={"Prefer": "wait=1"})
        assert answer.status_code == 202 and 0.9 < time.monotonic() - begun < 9


@pytest.mark.parametrize(("fault", "status"), [("question", 422), ("away", 503), ("inside", 502)])
def test_a_failed_export_says_why_to_who_waits_for_it_and_who_can_do_something(
    api: Served, fault: str, status: int
) -> None:
    asked = {"note": f"nobody {fault}"}
    with caller(api) as ann:
        told = ask(ann, filters=asked)
        row = api.service.requests.get(told["id"])
        assert row is not None
        api.begin(row)

        def fail() -> None:
            time.sleep(0.3)
            api.service.requests.fail(row.id, "it broke", "look at it", Fault(fault))

        thread = threading.Thread(target=fail)
        thread.start()
        answer = ann.post("/requests", json={"dataset": "flights", "filters": asked}, headers={"Prefer": "wait"})
        thread.join()
        assert problem(answer, status)["detail"] == "the export failed: it broke"
        assert ("retry-after" in answer.headers) == (fault == "away")
        assert answer.headers["location"] == f"/requests/{row.id}"
        assert ended(ann, told["id"])["error"] == {"message": "it broke", "hint": "look at it", "fault": fault}


@pytest.mark.parametrize(
    ("body", "field", "hint"),
    [
        ({"filters": {"carier": "UA"}}, "filters.carier", "did you mean 'carrier'?"),
        ({"filters": {"dep_delay": "x"}}, "filters.dep_delay", ""),
        ({"filters": {"dep_delay__contains": "1"}}, "filters.dep_delay", "operators are"),
        ({"filters": {"carrier": "ZZ"}}, "filters.carrier", "one of AA"),
        ({"columns": ["idd"]}, "columns", "did you mean 'id'?"),
        ({"columns": ["id", "id"]}, "columns", ""),
        ({"format": "xml"}, "format", "one of csv"),
        ({"compression": "rar"}, "compression", "one of none"),
        ({"limit": 2001}, "limit", ""),
        ({"limit": 0}, "limit", ""),
        ({"environment": "moon"}, "environment", "one of default, lab"),
        ({"email": "no address"}, "email", ""),
        ({"delimiter": ",,"}, "delimiter", ""),
        ({"colums": []}, "colums", "leave it out"),
        ({"columns": ["a\x00b"]}, "columns.0", ""),
        ({"filters": {"note": {"$gt": 1}}}, "filters", ""),
    ],
)
def test_wrong_questions_are_refused_with_the_field(
    api: Served, body: dict[str, object], field: str, hint: str
) -> None:
    with caller(api) as ann:
        found = problem(ann.post("/requests", json={"dataset": "flights", **body}), 422)
    assert any(each["field"].startswith(field) and hint in each.get("hint", "") for each in found["errors"]), found


def test_all_that_is_wrong_is_said_at_once(api: Served) -> None:
    with caller(api) as ann:
        found = problem(ann.get("/datasets/flights/export?carrier=ZZ&x=1&fileType=doc&columns=nope"), 422)
    assert {each["field"] for each in found["errors"]} >= {"filters.carrier", "filters.x", "format", "columns"}


@pytest.mark.parametrize("value", ["'; DROP TABLE flights; --", "UA' OR '1'='1", "%", "_", "%(x)s", "\\", "$1", '"'])
def test_sql_in_a_value_stays_a_value(api: Served, value: str) -> None:
    with caller(api) as ann:
        answer = ann.get("/datasets/flights/preview", params={"note": value})
        assert answer.status_code == 200 and answer.json()["rows"] == []
        assert ann.get("/datasets/flights/preview", params={"note__contains": value}).json()["rows"] == []
        told = ask(ann, filters={"note": value})
        answered(api, told["id"])
        assert ended(ann, told["id"])["rows"] == 0


def test_bad_bodies_are_refused(api: Served) -> None:
    with caller(api) as ann:
        problem(ann.post("/requests", content=b"{", headers={"Content-Type": "application/json"}), 400)
        problem(ann.post("/requests", content=b'{"dataset": "flights"}'), 422)  # no type: not from a form of a page
        problem(ann.post("/requests", json=[]), 422)
        problem(ann.post("/requests", content=b"\xff\xfe", headers={"Content-Type": "application/json"}), 400)
        surrogate = b'{"dataset": "flights", "filters": {"note": "\\ud800"}}'
        problem(ann.post("/requests", content=surrogate, headers={"Content-Type": "application/json"}), 422)
        huge = b'{"dataset": "flights", "limit": 1' + b"0" * 5000 + b"}"
        assert ann.post("/requests", content=huge, headers={"Content-Type": "application/json"}).status_code in (
            400,
            422,
        )


def test_unknown_things_are_not_found(api: Served) -> None:
    with caller(api) as ann:
        assert "did you mean" in problem(ann.get("/datasets/fligths"), 404)["hint"]
        problem(ann.post("/requests", json={"dataset": "nothing"}), 404)
        problem(ann.get("/requests/" + "a" * 26), 404)
        problem(ann.delete("/requests/" + "a" * 26), 404)
        problem(ann.get("/requests/short"), 422)
        problem(ann.get("/nowhere"), 404)
        assert "DELETE" in problem(ann.put("/requests/" + "a" * 26, json={}), 405)["detail"] or True
        assert ann.put("/requests").headers["allow"]


def test_only_those_named_by_a_data_set_may_ask(api: Served) -> None:
    with caller(api) as ann, caller(api, "fay", groups=["finance"]) as fay, caller(api, "op", "operator") as operator:
        problem(ann.get("/datasets/salaries"), 403)
        problem(ann.get("/datasets/salaries/preview"), 403)
        problem(ann.post("/requests", json={"dataset": "salaries"}), 403)
        told = ask(fay, dataset="salaries")
        assert operator.get(f"/requests/{told['id']}").status_code == 202
        problem(ann.get(f"/requests/{told['id']}"), 404)  # nor may she know that there is one
        problem(ann.get(f"/requests/{told['id']}/download"), 404)
        problem(ann.get(f"/requests/{told['id']}/events"), 404)
        problem(ann.delete(f"/requests/{told['id']}"), 404)


def test_a_cancelled_request_is_not_served_again(api: Served) -> None:
    with caller(api) as ann:
        told = ask(ann, filters={"note": "cancel me"})
        gone = ann.delete(f"/requests/{told['id']}")
        assert gone.status_code == 202 and gone.json()["status"] == "Cancelled"
        assert ann.delete(f"/requests/{told['id']}").status_code == 202  # again it changes nothing
        assert ended(ann, told["id"])["status"] == "Cancelled"
        problem(ann.get(f"/requests/{told['id']}/download"), 409)
        again = ask(ann, filters={"note": "cancel me"})
        assert again["id"] != told["id"] and again["status"] == "Pending"


def test_who_leaves_a_shared_request_leaves_it_to_the_others(api: Served) -> None:
    with caller(api) as ann, caller(api, "bob") as bob:
        told = ask(ann, filters={"note": "shared"})
        assert ask(bob, filters={"note": "shared"})["id"] == told["id"]
        assert ann.delete(f"/requests/{told['id']}").json()["status"] == "Pending"
        assert bob.delete(f"/requests/{told['id']}").json()["status"] == "Cancelled"


def test_requests_are_listed_by_pages_without_gaps(api: Served) -> None:
    with caller(api, "lister") as lister, caller(api, "op", "operator") as operator:
        made = [ask(lister, filters={"note": f"page {number}"})["id"] for number in range(5)]
        found, address = [], "/requests?limit=2&status=Pending"
        while address:
            page = lister.get(address).json()
            found += [each["id"] for each in page["requests"]]
            address = page["next"]
        assert found == made[::-1]
        assert lister.get("/requests?status=Succeeded").json()["requests"] == []
        problem(lister.get("/requests?user=ann"), 403)
        problem(lister.get("/requests?status=Odd"), 422)
        theirs = operator.get("/requests", params={"user": "lister"}).json()["requests"]
        assert {each["id"] for each in theirs} == set(made)


def test_a_token_of_an_environment_sees_and_asks_there_only(api: Served) -> None:
    with caller(api, "eve", environment="lab") as lab, caller(api, "eve") as everywhere:
        told = ask(everywhere, filters={"note": "not for the lab"})
        problem(lab.get(f"/requests/{told['id']}"), 404)
        problem(lab.post("/requests", json={"dataset": "flights", "environment": "default"}), 403)
        own = ask(lab, filters={"note": "for the lab"})
        assert own["environment"] == "lab"
        assert [each["id"] for each in lab.get("/requests").json()["requests"]] == [own["id"]]


def test_events_tell_each_change_until_the_end(api: Served) -> None:
    with caller(api) as ann:
        told = ask(ann, filters={"note": "events"})
        row = api.service.requests.get(told["id"])
        assert row is not None

        def work() -> None:
            time.sleep(0.5)
            begun = api.begin(row)
            api.service.requests.beat(row.id, 7, 700)
            time.sleep(0.5)
            api.answer(begun)

        thread = threading.Thread(target=work)
        thread.start()
        events = []
        with ann.stream("GET", f"/requests/{told['id']}/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            for block in stream.iter_text():
                for each in block.split("\n\n"):
                    fields = dict(line.split(": ", 1) for line in each.splitlines() if ": " in line)
                    if "event" in fields:
                        events.append((fields["event"], json.loads(fields["data"])))
        thread.join()
    assert events[0][0] == "progress" and events[0][1]["status"] == "Pending"
    assert any(data["status"] == "Processing" and data["rows"] == 7 for _, data in events)
    assert events[-1][0] == "end" and events[-1][1]["status"] == "Succeeded" and events[-1][1]["links"]["download"]


def test_events_of_what_has_ended_are_the_end_alone(api: Served) -> None:
    with caller(api) as ann:
        told = ask(ann, filters={"note": "ended"})
        ann.delete(f"/requests/{told['id']}")
        text = ann.get(f"/requests/{told['id']}/events").text
    assert text.startswith("id: 1\nevent: end\n") and text.count("event:") == 1


def test_the_document_has_examples_and_only_problems_for_errors(api: Served) -> None:
    document = httpx.get(f"{api.url}/openapi.json", trust_env=False).json()
    assert "POST /requests" in document["info"]["description"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation.get("description"), (method, path)
            for status, response in operation["responses"].items():
                if int(status) >= 400 and not path.startswith("/health"):
                    assert list(response["content"]) == ["application/problem+json"], (path, status)
    assert document["components"]["schemas"]["Ask"]["examples"]


def test_health_says_what_is_missing(api: Served) -> None:
    assert httpx.get(f"{api.url}/health/live", trust_env=False).json() == {"status": "ok"}
    ready = httpx.get(f"{api.url}/health/ready", trust_env=False)
    assert ready.status_code == 200
    assert ready.json()["status"] == "degraded" and not ready.json()["checks"]["worker"]["ok"]
    assert ready.json()["checks"]["catalog"]["ok"] and ready.json()["checks"]["store"]["ok"]


def test_metrics_count_calls_by_their_pattern_and_want_a_token(api: Served) -> None:
    problem(httpx.get(f"{api.url}/metrics", trust_env=False), 401)
    with caller(api) as ann:
        ann.get("/requests/" + "b" * 26)
        text = ann.get("/metrics").text
    line = next(each for each in text.splitlines() if 'route="/requests/{request_id}",status="404"' in each)
    assert float(line.rpartition(" ")[2]) >= 1
    assert "export_pipelines_catalog_up 1.0" in text and 'export_pipelines_requests{state="pending"}' in text
    assert "export_pipelines_oldest_pending_seconds" in text and "bbbb" not in text


def test_a_new_folder_is_a_new_data_set_without_a_restart(api: Served) -> None:
    with caller(api) as ann:
        problem(ann.get("/datasets/fresh"), 404)
        api.folder.write(
            "assets/demo/fresh/defs.yaml", "type: export_pipelines.DataSet\nattributes: {table: public.flights}\n"
        )
        deadline = time.monotonic() + 60
        while ann.get("/datasets/fresh").status_code == 404:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (api.folder.root / "assets/demo/fresh/defs.yaml").unlink()
        assert api.service.refresh() or ann.get("/datasets/fresh").status_code == 404


def test_a_service_document_that_is_broken_later_changes_nothing(api: Served) -> None:
    file = api.folder.root / "resources/service/defs.yaml"
    before = file.read_text()
    file.write_text("type: export_pipelines.Service\nattributes: {concurency: 3}\n")
    try:
        assert not api.service.refresh() and api.service.spec.environments == ("default", "lab")
    finally:
        file.write_text(before)
