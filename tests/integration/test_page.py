"""The pages for people, without a browser: what they answer to forms and addresses, and to whom."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from export_pipelines.catalog.requests import RequestRow
from export_pipelines.local.postgres import Address
from tests.support.pages import NAUGHTY, Served, csrf, log_in, served
from tests.support.servers import new_database

SETTINGS = """\
  rates: {requests_per_address: 100000/minute, requests_per_user: 100000/minute, exports_per_user: 10000/minute}
  smtp: {host: 127.0.0.1, port: 1}
"""


@pytest.fixture(scope="module")
def page(postgres: Address, migrated_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with (
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as catalog,
        served(tmp_path_factory.mktemp("page"), source, catalog, lambda port: SETTINGS) as up,
    ):
        yield up


@pytest.fixture
def ann(page: Served) -> Iterator[httpx.Client]:
    with page.client() as client:
        log_in(client, page.token("ann"))
        yield client


@pytest.fixture
def bob(page: Served) -> Iterator[httpx.Client]:
    with page.client() as client:
        log_in(client, page.token("bob"))
        yield client


@pytest.fixture
def operator(page: Served) -> Iterator[httpx.Client]:
    with page.client() as client:
        log_in(client, page.token("olga", "read", "request", "operator"))
        yield client


def form(client: httpx.Client, *fields: tuple[str, str]) -> list[tuple[str, str]]:
    """What a browser sends when nothing but some fields were touched."""
    shown = client.get("/data/demo/flights")
    columns = re.findall(r'name="columns" value="(\w+)" checked', shown.text)
    return [("csrf", csrf(shown)), ("form", "1"), *(("columns", name) for name in columns), *fields]


def post(client: httpx.Client, path: str, fields: list[tuple[str, str]]) -> httpx.Response:
    return client.post(
        path,
        content=str(httpx.QueryParams(fields)),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )


def ask(page: Served, client: httpx.Client, *fields: tuple[str, str]) -> RequestRow:
    answer = post(client, "/data/demo/flights", form(client, *fields))
    assert answer.status_code == 303, answer.text
    row = page.service.requests.get(answer.headers["location"].removeprefix("/requests/"))
    assert row is not None
    return row


def test_everybody_sees_the_data_sets_that_they_may_ask_of(page: Served, ann: httpx.Client) -> None:
    text = ann.get("/").text
    assert "Flights from New York" in text
    assert "Salaries" not in text
    assert ann.get("/data/finance/salaries").status_code == 403
    assert ann.get("/preview/finance/salaries").status_code == 403
    with page.client() as client:
        log_in(client, page.token("fred", groups=["finance"]))
        assert "Salaries" in client.get("/").text
        assert "No data set matches" in client.get("/?q=nothing+like+it").text
        assert client.get("/data/finance/salaries").status_code == 200


def test_the_address_of_a_question_shows_its_first_rows_and_their_number(ann: httpx.Client) -> None:
    text = ann.get("/data/demo/flights?carrier=UA&dep_delay__ge=100&columns=id,carrier").text
    assert re.search(r'<span class="count">(\d+)</span> rows', text)
    assert text.count("<tr>") == 21
    assert "carrier__=" not in text
    assert "dep_delay__ge=100" in text  # the address for a program
    assert "--filter &#39;dep_delay&gt;=100&#39;" in text


def test_what_is_in_the_database_is_text_and_never_markup(ann: httpx.Client) -> None:
    text = ann.get("/data/demo/flights", params={"note": NAUGHTY}).text
    assert NAUGHTY not in text
    assert "&lt;script&gt;window.hacked" in text
    wrong = ann.get("/data/demo/flights", params={"<script>alert(1)</script>": "x", "dep_delay": "<b>"})
    assert "<script>alert" not in wrong.text
    assert "<b>" not in wrong.text
    policy = wrong.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe-inline" not in policy


def test_no_page_has_inline_styles_or_scripts(page: Served, operator: httpx.Client) -> None:
    row = ask(page, operator, ("limit", "3"))
    for path in ("/", "/data/demo/flights", f"/requests/{row.id}", "/requests?all=1", "/operator", "/tokens", "/no"):
        text = operator.get(path).text
        assert "style=" not in text and "<style" not in text, path
        assert not re.search(r"<script(?![^>]* src=)", text), path
        assert not re.search(r"\son\w+=", text), path
        assert not re.search(r'(?:src|href)="https?://(?!127\.0\.0\.1)', text), path


def test_a_question_becomes_a_request_and_its_page_has_the_file(page: Served, ann: httpx.Client) -> None:
    row = ask(page, ann, ("any.carrier", "UA"), ("op.dep_delay", "gt"), ("v.dep_delay", "150"), ("format", "jsonl"))
    assert row.summary == "demo/flights where carrier = UA and dep_delay > 150"
    assert (row.origin, row.created_by) == ("page", "ann")
    waiting = ann.get(f"/requests/{row.id}").text
    assert "next in the queue" in waiting or "before it" in waiting
    assert '<noscript><meta http-equiv="refresh"' in waiting
    page.answer(page.begin(row))
    ready = ann.get(f"/requests/{row.id}").text
    assert "Ready" in ready and "refresh" not in ready
    download = ann.get(f"/requests/{row.id}/download")
    assert download.status_code == 200
    lines = download.text.splitlines()
    done = page.service.requests.get(row.id)
    assert done is not None and done.file is not None
    assert len(lines) == done.rows > 0
    assert done.file.proof.raw_sha256 in ready
    link = re.search(r"http://[^\s<]+/files/[^\s<]+", ready)
    assert link is not None
    path = link[0].replace("&amp;", "&").split("8080", 1)[-1]
    with httpx.Client(base_url=page.url, trust_env=False) as stranger:
        assert stranger.get(path).text == download.text
        assert stranger.get(path[:-1] + ("1" if path[-1] == "0" else "0")).status_code == 403


def test_a_question_that_is_wrong_is_asked_back_with_all_that_is_wrong(ann: httpx.Client) -> None:
    fields = form(ann, ("op.dep_delay", "ge"), ("v.dep_delay", "late"), ("limit", "0"), ("note", ""))
    answer = post(ann, "/data/demo/flights", fields)
    assert answer.status_code == 422
    assert "things have to be corrected" in answer.text
    assert "&#39;late&#39; is no integer" in answer.text
    assert 'value="late"' in answer.text  # nothing that was typed is lost
    assert 'aria-invalid="true"' in answer.text


def test_too_many_rows_are_told_before_they_are_asked_for(page: Served, ann: httpx.Client) -> None:
    shown = ann.get("/data/demo/flights").text
    assert "More than 2,000" in shown
    warned = post(ann, "/data/demo/flights", form(ann))
    assert warned.status_code == 200
    assert "2,000 rows are allowed" in warned.text
    assert "Ask anyway" in warned.text
    assert post(ann, "/data/demo/flights", form(ann, ("anyway", "1"))).status_code == 303


def test_the_preview_is_only_what_changes(ann: httpx.Client) -> None:
    text = ann.get("/preview/demo/flights?carrier=UA").text
    assert text.startswith('<template id="new-count">')
    assert "<html" not in text
    wrong = ann.get("/preview/demo/flights?carrier=XX")
    assert wrong.status_code == 200
    assert "is not among the values" in wrong.text


def test_another_condition_can_be_added_without_a_script(ann: httpx.Client) -> None:
    text = ann.get("/data/demo/flights?form=1&columns=id&op.dep_delay=ge&v.dep_delay=10&add=dep_delay").text
    assert text.count('name="v.dep_delay"') == 2
    assert 'value="10"' in text


def test_the_same_question_of_two_people_is_one_request_and_cancelling_leaves_the_other_alone(
    page: Served, ann: httpx.Client, bob: httpx.Client
) -> None:
    row = ask(page, ann, ("any.carrier", "DL"), ("limit", "7"))
    assert ask(page, bob, ("any.carrier", "DL"), ("limit", "7")).id == row.id
    shown = bob.get(f"/requests/{row.id}").text
    assert "asked before" in shown
    assert "1 other person waits" in shown
    bob.post(f"/requests/{row.id}/cancel", data={"csrf": csrf(bob.get("/"))})
    assert "You do not wait for it any more" in bob.get(f"/requests/{row.id}").text
    assert (found := page.service.requests.get(row.id)) is not None and found.state == "pending"
    ann.post(f"/requests/{row.id}/cancel", data={"csrf": csrf(ann.get("/"))})
    assert (found := page.service.requests.get(row.id)) is not None and found.state == "cancelled"
    again = ann.post(f"/requests/{row.id}/again", data={"csrf": csrf(ann.get("/"))})
    assert again.status_code == 303
    assert again.headers["location"] != f"/requests/{row.id}"


def test_nobody_sees_or_changes_the_requests_of_others(page: Served, ann: httpx.Client, bob: httpx.Client) -> None:
    row = ask(page, ann, ("any.carrier", "B6"), ("limit", "11"))
    for path in (f"/requests/{row.id}", f"/requests/{row.id}/panel", f"/requests/{row.id}/download"):
        assert bob.get(path).status_code == 404
    secret = {"csrf": csrf(bob.get("/"))}
    assert bob.post(f"/requests/{row.id}/cancel", data=secret).status_code == 404
    assert bob.post(f"/requests/{row.id}/again", data=secret).status_code == 404
    assert row.id not in bob.get("/requests?all=1").text
    assert bob.get("/operator").status_code == 403


def test_an_operator_sees_all_and_cancels_for_all(page: Served, ann: httpx.Client, operator: httpx.Client) -> None:
    row = ask(page, ann, ("any.carrier", "B6"), ("limit", "13"))
    shown = operator.get("/operator")
    assert shown.status_code == 200
    assert row.id in shown.text and "request.created" in shown.text
    assert "<svg" in shown.text and "As a table" in shown.text
    assert row.id in operator.get("/requests?all=1&user=ann").text
    assert row.id not in operator.get("/requests").text
    data = {"csrf": csrf(shown), "next": "/operator"}
    assert operator.post(f"/requests/{row.id}/cancel", data=data).headers["location"] == "/operator"
    assert (found := page.service.requests.get(row.id)) is not None and found.state == "cancelled"
    # A link that was sent to an operator leads nowhere else.
    data["next"] = "//evil.example"
    assert operator.post(f"/requests/{row.id}/cancel", data=data).headers["location"] == "/"


def test_the_history_has_pages_and_misses_none(page: Served) -> None:
    with page.client() as client:
        log_in(client, page.token("harry"))
        assert "have not asked for anything yet" in client.get("/requests").text
        made = [ask(page, client, ("limit", str(n))).id for n in range(100, 155)]
        seen: list[str] = []
        address = "/requests"
        while address:
            text = client.get(address).text
            seen += re.findall(r'<th scope="row"[^>]*><a href="/requests/(\w+)"', text)
            found = re.search(r'href="([^"]+)" rel="next"', text)
            address = found[1].replace("&amp;", "&") if found else ""
        assert seen == made[::-1]
        assert "Nothing matches" in client.get("/requests?status=failed").text


def test_an_expired_file_is_told_and_can_be_asked_for_again(page: Served, ann: httpx.Client) -> None:
    row = ask(page, ann, ("any.carrier", "AA"), ("limit", "5"))
    page.answer(page.begin(row))
    page.service.pool.rows(
        "UPDATE request SET expires_at = now() - interval '1 hour' WHERE id = %(id)s", {"id": row.id}
    )
    page.service.requests.expired(row.id)
    text = ann.get(f"/requests/{row.id}").text
    assert "The file is gone" in text and "Ask again" in text
    gone = ann.get(f"/requests/{row.id}/download")
    assert gone.status_code == 410
    assert "The file is gone" in gone.text and "<html" in gone.text


def test_errors_are_pages_for_people_and_problems_for_programs(ann: httpx.Client) -> None:
    unknown = f"/requests/{'a' * 26}"
    page = ann.get(unknown)
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "Your requests" in page.text
    program = ann.get(unknown, headers={"Accept": "application/json"})
    assert (program.status_code, program.headers["content-type"]) == (404, "application/problem+json")
    assert ann.get("/requests", headers={"Accept": "application/json"}).json() is not None


def test_a_failure_is_told_with_its_hint(page: Served, ann: httpx.Client) -> None:
    row = ask(page, ann, ("any.carrier", "AA"), ("limit", "6"))
    page.begin(row)
    page.service.requests.fail(row.id, "the source is <away>", "ask again later")
    text = ann.get(f"/requests/{row.id}").text
    assert "the source is &lt;away&gt;" in text and "ask again later" in text


def test_mail_is_asked_for_only_where_it_can_be_sent(page: Served, ann: httpx.Client) -> None:
    assert 'name="email"' in ann.get("/data/demo/flights").text
    wrong = post(ann, "/data/demo/flights", form(ann, ("limit", "8"), ("email", "nobody")))
    assert wrong.status_code == 422
    assert "is no e-mail address" in wrong.text
    row = ask(page, ann, ("limit", "8"), ("email", "ann@example.org"))
    assert [each.email for each in page.service.requests.subscribers(row.id)] == ["ann@example.org"]


def test_static_files_are_kept_by_browsers_and_nothing_else_is(page: Served) -> None:
    with page.client() as client:
        text = client.get("/login").text
        address = re.search(r'"(/static/page\.css\?v=\w+)"', text)
        assert address is not None
        assert "immutable" in client.get(address[1]).headers["cache-control"]
        assert client.get("/login").headers["cache-control"] == "no-store"
        for path in ("/static/../login.py", "/static/%2e%2e/frame.py", "/static//etc/passwd", "/static/"):
            assert client.get(path).status_code in (404, 405)
