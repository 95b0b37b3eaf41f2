"""What a person does in the page, done by a browser: choose, look, ask, follow, cancel, download."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from export_pipelines.local.postgres import Address
from tests.support.pages import NAUGHTY, Served, served
from tests.support.servers import new_database
from tests.support.ui import chromium, without_proxy

pytestmark = [pytest.mark.debian, pytest.mark.timeout(300)]

SETTINGS = """\
  rates: {requests_per_address: 100000/minute, requests_per_user: 100000/minute}
  public_url: http://127.0.0.1:PORT
"""

# What every reader of a page relies on: names of fields and buttons, headings in order, one main part.
RULES = """
() => {
  const wrong = [];
  for (const each of document.querySelectorAll("input:not([type=hidden]), select, textarea, button, a[href]")) {
    const named = each.getAttribute("aria-label") || each.textContent.trim() || each.title
      || [...(each.labels ?? [])].map((label) => label.textContent.trim()).join("");
    if (!named) wrong.push("no name: " + each.outerHTML.slice(0, 120));
  }
  const ids = [...document.querySelectorAll("[id]")].map((each) => each.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) wrong.push("twice: #" + id);
  for (const each of document.querySelectorAll("[aria-labelledby], [aria-describedby]")) {
    for (const id of (each.getAttribute("aria-labelledby") ?? each.getAttribute("aria-describedby")).split(" ")) {
      if (!document.getElementById(id)) wrong.push("nowhere: #" + id);
    }
  }
  if (document.querySelectorAll("main").length !== 1) wrong.push("main");
  if (document.querySelectorAll("h1").length !== 1) wrong.push("h1");
  let last = 1;
  for (const each of document.querySelectorAll("h1, h2, h3")) {
    const level = Number(each.tagName[1]);
    if (level > last + 1) wrong.push("heading skips: " + each.textContent);
    last = level;
  }
  if (document.documentElement.scrollWidth > innerWidth) wrong.push("wider than the screen");
  return wrong;
}
"""


@pytest.fixture(scope="module")
def service(postgres: Address, migrated_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    without_proxy()
    with (
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as catalog,
        served(
            tmp_path_factory.mktemp("page"), source, catalog, lambda port: SETTINGS.replace("PORT", str(port))
        ) as up,
    ):
        yield up


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@contextmanager
def logged_in(
    service: Served, browser: Browser, pictures: Path, *scopes: str, user: str = "ann", **options: object
) -> Iterator[Page]:
    """A page of somebody who is logged in; nothing may go wrong in it unseen."""
    context: BrowserContext = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
    page = context.new_page()
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text) if "Content Security" in message.text else None)
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    try:
        page.goto(f"{service.url}/login")
        page.get_by_label("Token").fill(service.token(user, *scopes))
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(f"{service.url}/")
        yield page
        assert said == []
    except BaseException:
        page.screenshot(path=pictures / "failed.png", full_page=True)
        (pictures / "failed.html").write_text(page.content(), encoding="utf-8")
        raise
    finally:
        context.close()


def test_from_a_question_to_its_file(service: Served, browser: Browser, tmp_path: Path) -> None:
    with logged_in(service, browser, tmp_path) as page:
        page.get_by_role("link", name="Flights from New York").click()
        count = page.locator("#count")
        expect(count).to_contain_text("More than 2,000 rows")
        page.get_by_role("checkbox", name="UA", exact=True).check()
        expect(count).to_contain_text("750 rows")
        delay = page.get_by_role("group", name="dep_delay")
        delay.get_by_label("how to compare").select_option("at least")
        delay.get_by_label("dep_delay: value").fill("150")
        expect(count).not_to_contain_text("750")
        page.get_by_role("button", name="None", exact=True).click()
        expect(count).to_contain_text("missing or wrong")
        for name in ("id", "carrier", "dep_delay"):
            page.locator(f"#columns input[value={name}]").check()
        expect(page.locator("table.data thead th")).to_have_count(3)
        address = page.url
        rows = count.locator(".count").inner_text()
        page.get_by_text("The same question for a program").click()
        expect(page.locator("#line-1")).to_contain_text("--filter carrier=UA --filter 'dep_delay>=150'")
        page.get_by_role("button", name="Ask for the file").click()
        page.wait_for_url("**/requests/*")
        expect(page.locator("#panel .chip")).to_have_text("Waiting")
        with service.working():
            # No key is pressed: the page hears of it.
            expect(page.locator("#panel .chip")).to_have_text("Ready")
        assert page.title().startswith("Ready: ")
        with page.expect_download() as download:
            page.get_by_role("link", name="Download flights").click()
        file = tmp_path / "flights.csv"
        download.value.save_as(file)
        lines = file.read_text().splitlines()
        assert lines[0] == "id,carrier,dep_delay"
        assert len(lines) == int(rows) + 1
        # The address of the form is the question: somebody else who gets it sees the same.
        page.goto(address)
        expect(page.locator("#count .count")).to_have_text(rows)
        expect(page.locator("#columns input:checked")).to_have_count(3)


def test_progress_is_seen_while_a_request_is_at_work(service: Served, browser: Browser, tmp_path: Path) -> None:
    with logged_in(service, browser, tmp_path) as page:
        page.goto(f"{service.url}/data/demo/flights?carrier=DL&limit=400")
        page.get_by_role("button", name="Ask for the file").click()
        page.wait_for_url("**/requests/*")
        request = page.url.rpartition("/")[2]
        row = service.service.requests.get(request)
        assert row is not None
        service.service.requests.note_estimate(request, 400)
        begun = service.begin(row)
        expect(page.locator("#panel .chip")).to_have_text("At work")
        for rows in (100, 300):
            service.service.requests.beat(request, rows, rows * 50)
            expect(page.get_by_role("progressbar")).to_have_attribute("value", str(rows // 4))
            expect(page.locator("#panel")).to_contain_text(f"{rows} of about 400")
        service.answer(begun)
        expect(page.get_by_role("link", name="Download flights")).to_be_visible()


def test_a_request_is_cancelled_within_moments(service: Served, browser: Browser, tmp_path: Path) -> None:
    with logged_in(service, browser, tmp_path) as page:
        page.goto(f"{service.url}/data/demo/flights?carrier=B6&limit=500")
        page.get_by_role("button", name="Ask for the file").click()
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#panel .chip")).to_have_text("Cancelled")
        page.get_by_role("button", name="Ask again").click()
        expect(page.locator("#panel .chip")).to_have_text("Waiting")
        page.get_by_role("link", name="Requests", exact=True).first.click()
        expect(page.locator("tbody tr").first).to_contain_text("Waiting")
        expect(page.locator("tbody tr").nth(1)).to_contain_text("Cancelled")


def test_a_page_that_lost_the_service_catches_up(service: Served, browser: Browser, tmp_path: Path) -> None:
    with logged_in(service, browser, tmp_path) as page:
        page.goto(f"{service.url}/data/demo/flights?carrier=AA&limit=300")
        page.get_by_role("button", name="Ask for the file").click()
        page.wait_for_url("**/requests/*")
        # Without events it asks.
        page.route("**/events", lambda route: route.abort())
        page.reload()
        expect(page.locator("#panel .chip")).to_have_text("Waiting")
        page.context.set_offline(True)
        time.sleep(1)
        service.answer_all()
        page.context.set_offline(False)
        expect(page.locator("#panel .chip")).to_have_text("Ready")


def test_all_works_without_a_script(service: Served, browser: Browser, tmp_path: Path) -> None:
    with logged_in(service, browser, tmp_path, java_script_enabled=False) as page:
        page.get_by_role("link", name="Flights from New York").click()
        delay = page.get_by_role("group", name="dep_delay")
        delay.get_by_label("how to compare").select_option("at least")
        delay.get_by_label("dep_delay: value").fill("100")
        delay.get_by_role("button", name="Add a condition").click()
        expect(delay.get_by_label("dep_delay: value")).to_have_count(2)
        delay.get_by_label("how to compare").nth(1).select_option("less than")
        delay.get_by_label("dep_delay: value").nth(1).fill("110")
        page.get_by_role("button", name="Preview").click()
        rows = page.locator("#count .count").inner_text()
        assert 0 < int(rows) < 300
        page.get_by_role("button", name="Ask for the file").click()
        expect(page.locator("#panel .chip")).to_have_text("Waiting")
        service.answer_all()
        expect(page.get_by_role("link", name="Download flights")).to_be_visible()
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_role("status")).to_have_text("You are logged out.")


def test_the_keyboard_is_enough(service: Served, browser: Browser, tmp_path: Path) -> None:
    with logged_in(service, browser, tmp_path) as page:
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Flights from New York")).to_be_focused()
        page.keyboard.press("Enter")
        page.wait_for_url("**/data/demo/flights")
        page.locator("[name='any.carrier']").first.focus()
        page.keyboard.press("Space")
        expect(page.locator("#count")).to_contain_text("750 rows")
        page.get_by_label("Rows at most").focus()
        page.keyboard.type("5")
        page.keyboard.press("Enter")  # looks, and asks nothing yet
        expect(page.locator("#count")).to_contain_text("5 rows")
        page.get_by_role("button", name="Ask for the file").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/requests/*")


def test_markup_in_a_table_is_shown_and_not_run(service: Served, browser: Browser, tmp_path: Path) -> None:
    with logged_in(service, browser, tmp_path) as page:
        page.goto(f"{service.url}/data/demo/flights?note__contains=script")
        expect(page.get_by_role("cell", name=NAUGHTY)).to_be_visible()
        page.get_by_role("group", name="note").get_by_label("note: value").fill("<img src=x onerror=hacked()>")
        expect(page.get_by_text("No row matches")).to_be_visible()
        assert page.evaluate("() => window.hacked") is None


def test_operators_of_a_filter_bring_the_input_that_suits(service: Served, browser: Browser, tmp_path: Path) -> None:
    with logged_in(service, browser, tmp_path) as page:
        page.goto(f"{service.url}/data/demo/flights")
        day = page.get_by_role("group", name="day")
        value = day.get_by_label("day: value")
        expect(value).to_have_attribute("type", "date")
        value.fill("2013-01-05")
        expect(page.locator("#count")).to_contain_text("96 rows")
        day.get_by_label("how to compare").select_option("is one of")
        expect(value).to_have_attribute("type", "text")
        expect(value).to_have_value("2013-01-05")
        value.fill("2013-01-05, 2013-01-06")
        expect(page.locator("#count")).to_contain_text("192 rows")
        day.get_by_label("how to compare").select_option("is empty")
        expect(value).to_be_hidden()
        expect(page.get_by_text("No row matches")).to_be_visible()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_keep_the_rules_of_accessibility(
    service: Served, browser: Browser, tmp_path: Path, width: int, scheme: str
) -> None:
    with logged_in(service, browser, tmp_path, "read", "request", "operator", user="olga", color_scheme=scheme) as page:
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(f"{service.url}/data/demo/flights?carrier=UA&limit=20")
        page.get_by_role("button", name="Ask for the file").click()
        page.wait_for_url("**/requests/*")
        request = page.url
        paths = "/ /data/demo/flights?carrier=XX /requests /requests?all=1 /operator /tokens /nothing"
        for address in [request, *(service.url + path for path in paths.split())]:
            page.goto(address)
            assert (address, page.evaluate(RULES)) == (address, [])
