"""What a person does to upload, done by a browser: drop a file, compare, change a type, load, restore."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from export_pipelines.local.postgres import Address
from export_pipelines.local.project import write_dagster_yaml
from tests.e2e.test_page import RULES, logged_in
from tests.support.pages import Served, served
from tests.support.servers import new_database
from tests.support.ui import chromium, without_proxy
from tests.support.uploads import AREA_FILES, SETTINGS, execute

pytestmark = [pytest.mark.debian, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def service(postgres: Address, migrated_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    without_proxy()
    root = tmp_path_factory.mktemp("uploads")
    with (
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as catalog,
        served(root, source, catalog, lambda port: SETTINGS.replace("PORT", str(port)), AREA_FILES) as up,
    ):
        write_dagster_yaml(up.service.settings)
        yield up


def csv(path: Path, last: str = "") -> Path:
    """Two mebibytes: several pieces."""
    lines = [f"2026-{1 + n % 12:02}-01,Ward {n % 40},{n % 90},{'n/a' if n == 77 else n % 7}" for n in range(75_000)]
    path.write_text("Month,Ward,Beds,Nurses\n" + "\n".join(lines) + "\n" + last)
    return path


def dropped(page: Page, *files: tuple[str, str], at: str = ".drop") -> None:
    """Drop files, `(name, content)`, as from another window."""
    make = """(files) => {
        const transfer = new DataTransfer();
        for (const [name, text] of files) transfer.items.add(new File([text], name));
        return transfer;
    }"""
    handle = page.evaluate_handle(make, [list(each) for each in files])
    for event in ("dragover", "drop"):
        page.locator(at).dispatch_event(event, {"dataTransfer": handle})


def test_what_is_dropped_is_one_csv_file_or_told_why_not(service: Served, tmp_path: Path) -> None:
    beds = ("Beds.CSV", "ward,beds\nA,3\n")
    with chromium() as browser, logged_in(service, browser, tmp_path, "read", "upload") as page:
        page.get_by_role("link", name="Upload").first.click()
        chosen = page.get_by_label("CSV file")
        said = page.get_by_role("alert")
        dropped(page, beds, ("more.csv", "a\n1\n"))
        expect(said).to_have_text("These are 2 files, and one is sent at a time: drop one of them.")
        page.screenshot(path=tmp_path / "drop-two.png", full_page=True)
        dropped(page, ("notes.pdf", "%PDF"))
        expect(said).to_have_text("notes.pdf is no CSV file: drop one, plain or packed by gzip, zstd or ZIP.")
        page.screenshot(path=tmp_path / "drop-pdf.png", full_page=True)
        expect(chosen).to_have_value("")
        # Beside the zone a browser opens it, unless the page says that it sees to it.
        page.evaluate("addEventListener('drop', (event) => { window.kept = event.defaultPrevented; })")
        dropped(page, beds, at="h1")
        assert page.evaluate("window.kept") is True
        expect(chosen).to_have_value("")
        dropped(page, beds)
        expect(said).to_be_hidden()
        expect(chosen).to_have_value("C:\\fakepath\\Beds.CSV")
        page.get_by_label("Data set").fill("dropped")
        page.get_by_role("button", name="Send and compare").click()
        expect(page.get_by_label("Type of beds")).to_have_value("bigint")


def test_a_file_is_sent_in_pieces_compared_loaded_and_restored(service: Served, tmp_path: Path) -> None:
    with chromium() as browser, logged_in(service, browser, tmp_path, "read", "upload") as page:
        for number in (1, 2):
            page.get_by_role("link", name="Upload").first.click()
            page.get_by_label("Organisation").select_option("health")
            page.get_by_label("Data set").fill("beds")
            page.get_by_label("CSV file").set_input_files(csv(tmp_path / "beds.csv", "2026-12-01,New,1,2\n" * number))
            assert page.evaluate(RULES) == []
            page.screenshot(path=tmp_path / "upload-choose.png", full_page=True)
            if number == 1:
                page.route("**/content*", lambda route: route.abort(), times=1)  # a cut, behind which it goes on
            page.get_by_role("button", name="Send and compare").click()
            page.wait_for_url("**/uploads/*")
            expect(page.get_by_label("Type of nurses")).to_have_value("text")
            expect(page.get_by_label("Type of month")).to_have_value("date")
            expect(page.get_by_label("Type of beds")).to_have_value("bigint")
            page.get_by_label("Type of ward").select_option("text")
            assert page.evaluate(RULES) == []
            page.screenshot(path=tmp_path / f"upload-compare-{number}.png", full_page=True)
            page.get_by_role("button", name="Load it").click()
            expect(page.get_by_text("Waiting for its turn")).to_be_visible()
            execute(service, page.url.rpartition("/")[2])
            expect(page.get_by_text("Loaded.")).to_be_visible()
        page.get_by_role("link", name="See the versions").click()
        page.get_by_role("link", name="with version 1").click()
        expect(page.get_by_text("rows were added")).to_contain_text("1 rows were added, 0 removed")
        assert page.evaluate(RULES) == []
        page.screenshot(path=tmp_path / "upload-versions.png", full_page=True)
        page.get_by_role("button", name="Restore").click()
        expect(page.get_by_text("Version 1 is what readers see now.")).to_be_visible()
