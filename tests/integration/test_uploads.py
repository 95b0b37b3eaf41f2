"""Uploads on the page: pieces of files, comparison, loads as runs of Dagster, restores; hostile files and callers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import dagster as dg
import httpx
import pytest

from export_pipelines.components import load_telling
from export_pipelines.local.postgres import Address
from export_pipelines.local.project import write_dagster_yaml
from export_pipelines.steps.land_upload import uploads_with_pieces
from tests.support.pages import Served, csrf, log_in, served
from tests.support.servers import new_database, run_sql
from tests.support.threads import wait_until
from tests.support.uploads import AREA_FILES, SETTINGS, execute

AREA = "people/inbox"


@pytest.fixture(scope="module")
def page(postgres: Address, migrated_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("uploads")
    with (
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as catalog,
        served(root, source, catalog, lambda port: SETTINGS, AREA_FILES) as up,
    ):
        write_dagster_yaml(up.service.settings)
        yield up


@pytest.fixture
def ann(page: Served) -> Iterator[httpx.Client]:
    with page.client() as client:
        log_in(client, page.token("ann", "read", "upload"))
        yield client


def begun(client: httpx.Client, dataset: str, size: int, **more: str) -> httpx.Response:
    """Begin to send, as the page's program does."""
    fields = {"area": AREA, "organisation": "health", "dataset": dataset, "file_name": "beds.csv", "fingerprint": "1"}
    data = {**fields, **more, "csrf": csrf(client.get("/uploads")), "size": str(size)}
    return client.post("/uploads/begin", data=data, headers={"accept": "application/json"})


def piece(client: httpx.Client, upload: str, offset: int, data: bytes) -> httpx.Response:
    headers = {"x-csrf": csrf(client.get("/uploads")), "accept": "application/json"}
    return client.put(f"/uploads/{upload}/content?offset={offset}", content=data, headers=headers)


def sent(client: httpx.Client, dataset: str, data: bytes, **more: str) -> str:
    """Send a file by the plain form; the address of its page."""
    fields = {"area": AREA, "organisation": "health", "dataset": dataset, **more}
    form = {**fields, "csrf": csrf(client.get("/uploads"))}
    answer = client.post("/uploads/files", data=form, files={"file": ("beds.csv", data, "text/csv")})
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


def load(client: httpx.Client, url: str, **fields: str) -> httpx.Response:
    shown = client.get(url).text
    base = shown.split('name="base" value="', 1)[1].split('"', 1)[0]
    return client.post(f"{url}/load", data={"csrf": csrf(client.get(url)), "base": base, **fields})


def loaded(page: Served, client: httpx.Client, dataset: str, data: bytes, **fields: str) -> str:
    """Send, load, and have the run done; the address."""
    url = sent(client, dataset, data)
    assert load(client, url, **fields).status_code == 303
    execute(page, url.rpartition("/")[2])
    return url


def rows(page: Served, dataset: str, columns: str = "ward, beds") -> list[tuple[object, ...]]:
    source = page.service.resource("source")
    with source.session() as session:
        session.begin()
        return list(session.execute(f"SELECT {columns} FROM uploads.set_health_{dataset} ORDER BY 1"))


def test_a_file_is_sent_compared_loaded_and_its_version_before_restored(page: Served, ann: httpx.Client) -> None:
    url = loaded(page, ann, "beds", b"Ward,Beds\nA,3\nB,4\n")
    assert "Loaded." in ann.get(url).text
    assert rows(page, "beds") == [("A", 3), ("B", 4)]
    second = sent(ann, "beds", b"Ward,Beds,Nurses\nA,3\nB,x\n".replace(b"A,3", b"A,3,1").replace(b"B,x", b"B,9,2"))
    assert "New: nurses" in ann.get(second).text
    assert load(ann, second).status_code == 303
    execute(page, second.rpartition("/")[2])
    assert rows(page, "beds", "ward, beds, nurses") == [("A", 3, 1), ("B", 9, 2)]
    address = f"/uploads/set?area={AREA}&organisation=health&dataset=beds"
    shown = ann.get(address + "&compare=2")
    assert "what readers see" in shown.text
    form = {"csrf": csrf(shown), "area": AREA, "organisation": "health", "dataset": "beds", "version": "1"}
    assert ann.post("/uploads/restore", data=form).status_code == 303
    assert rows(page, "beds") == [("A", 3), ("B", 4)]
    headers = {"authorization": f"Bearer {page.token('reader', 'tables')}"}
    assert ann.get(address).text.count("<td>succeeded</td>") == 2
    read = httpx.get(f"{page.url}/api/v1/table-data/uploads/set_health_beds", headers=headers, trust_env=False)
    assert read.status_code == 200 and '"A"' in read.text
    for action in ("upload.received", "upload.load", "upload.restored"):
        assert {each["who"] for each in page.audit(action)} == {"ann"}


def test_a_data_set_is_a_partition_whose_newest_file_is_loaded_again_by_force(page: Served, ann: httpx.Client) -> None:
    loaded(page, ann, "again", b"a\n1\n")
    instance = page.service.versions.instance()
    assert "health.again" in instance.get_dynamic_partitions("people__inbox_files")
    job = page.service.project.definitions().resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=instance,
        partition_key="health.again",
        asset_selection=[dg.AssetKey(["people", "inbox_load"])],
        run_config={"ops": {"people__inbox": {"config": {"force": True}}}},
    )
    (made,) = [
        each for each in result.all_events if each.is_step_materialization and each.asset_key.path[-1].endswith("_load")
    ]
    assert made.partition == "health.again"
    assert made.materialization.metadata["rows"].value == 1


def test_a_value_that_does_not_fit_fails_the_load_with_line_and_column_and_other_types_load_it(
    page: Served, ann: httpx.Client
) -> None:
    url = loaded(page, ann, "misfit", b"Ward,Beds\nA,3\nB,many\n", **{"type-1": "bigint"})
    shown = ann.get(url).text
    assert "could not be loaded" in shown
    assert "line 3" in shown and "beds" in shown
    assert load(ann, url, **{"type-1": "text"}).status_code == 303
    execute(page, url.rpartition("/")[2])
    assert rows(page, "misfit") == [("A", "3"), ("B", "many")]


def test_an_upload_that_was_cut_goes_on_where_it_was(page: Served, ann: httpx.Client) -> None:
    data = b"Ward,Beds\n" + b"".join(b"ward %d,%d\n" % (n, n) for n in range(100_000))
    upload = begun(ann, "resumed", len(data)).json()
    half = len(data) // 2
    assert piece(ann, upload["id"], 0, data[:half]).json() == {"received": half}
    wrong = piece(ann, upload["id"], 0, data[:half])
    assert wrong.status_code == 409 and wrong.json()["received"] == half
    assert "goes on where it was" in ann.get(upload["url"]).text
    again = begun(ann, "resumed", len(data)).json()
    assert again == {**upload, "received": half}
    assert piece(ann, upload["id"], half, data[half:]).json() == {"received": len(data)}
    assert "20,000 records were looked at" in ann.get(upload["url"]).text
    assert load(ann, upload["url"]).status_code == 303
    execute(page, upload["id"])
    assert rows(page, "resumed", "count(*), sum(beds)") == [(100_000, sum(range(100_000)))]


def test_the_page_tells_how_much_of_the_file_a_load_has_read(
    page: Served, ann: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_telling, "INTERVAL", 0.0)  # it is told at once
    loaded(page, ann, "read", b"a\n1\n")
    url = sent(ann, "read", b"a,b\n1,2\n")
    assert load(ann, url).status_code == 303
    assert "of the file is read" not in ann.get(url).text
    with page.service.resource("source").session() as session, ThreadPoolExecutor(1) as pool:
        session.begin()
        session.execute("LOCK TABLE operations.table_version IN SHARE MODE")  # for which it waits once its rows are in
        run = pool.submit(execute, page, url.rpartition("/")[2])
        try:
            wait_until(lambda: "100 % of the file is read" in ann.get(url).text or run.done())
            assert not run.done()
        finally:
            session.rollback()
        run.result()
    shown = ann.get(url).text
    assert "Loaded." in shown and "of the file is read" not in shown


def test_two_uploads_of_one_data_set_at_once_never_replace_what_was_not_seen(page: Served, ann: httpx.Client) -> None:
    first, second = sent(ann, "both", b"a\n1\n"), sent(ann, "both", b"a\n22\n")
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda url: load(ann, url).status_code, [first, first]))
    assert sorted(answers) == [303, 422]
    shown = ann.get(second).text
    execute(page, first.rpartition("/")[2])
    base = shown.split('name="base" value="', 1)[1].split('"', 1)[0]
    late = ann.post(f"{second}/load", data={"csrf": csrf(ann.get(second)), "base": base})
    assert late.status_code == 409 and "since you looked" in late.text
    assert load(ann, second).status_code == 303
    execute(page, second.rpartition("/")[2])
    assert rows(page, "both", "a") == [(22,)]


def test_what_is_too_large_or_not_what_was_announced_is_refused(page: Served, ann: httpx.Client) -> None:
    assert begun(ann, "large", 3_000_001).status_code == 413
    assert begun(ann, "large", 0).status_code == 422
    upload = begun(ann, "large", 4).json()
    assert piece(ann, upload["id"], 0, b"a\n1\n2\n").status_code == 422
    assert piece(ann, upload["id"], 0, bytes(2 << 20)).status_code == 413
    assert piece(ann, upload["id"], 0, b"").status_code == 422


def test_what_is_being_loaded_cannot_be_dropped_and_is_kept_for_another_try_for_some_days(
    page: Served, ann: httpx.Client
) -> None:
    url = loaded(page, ann, "kept", b"ward,beds\na,1\nb,many\n", **{"type-1": "bigint"})
    upload = url.rpartition("/")[2]
    refused = ann.post(f"{url}/drop", data={"csrf": csrf(ann.get(url))})
    assert "a load of it was started" in refused.text
    store = page.service.resource("archive")
    old = "UPDATE export_pipelines.upload SET updated_at = now() - interval '90 days' WHERE id = %s"
    run_sql(os.environ["DAGSTER_PG_URL"], old, (upload,))
    assert upload in uploads_with_pieces(store)
    begun(ann, "another", 10)
    wait_until(lambda: upload not in uploads_with_pieces(store))
    assert page.service.uploads.unneeded([], 7) == []
    assert "send it again" in ann.get(url).text


@pytest.mark.parametrize("dataset", ["", "Beds", "1st", "a.b", "pg; drop", "x" * 22])
def test_a_name_that_is_none_is_refused(ann: httpx.Client, dataset: str) -> None:
    assert begun(ann, dataset, 4).status_code == 422


def test_who_is_not_named_may_not_and_sees_nothing(page: Served, ann: httpx.Client) -> None:
    url = sent(ann, "secret", b"a\n1\n")
    with page.client() as bob:
        assert bob.get("/uploads").status_code == 303
        log_in(bob, page.token("bob", "read", "request", "upload"))
        assert "nothing that you may upload to" in bob.get("/uploads").text
        own = csrf(bob.get("/requests"))
        assert bob.get(url).status_code == 404
        assert bob.post(f"{url}/load", data={"csrf": own, "base": "0"}).status_code == 404
        assert bob.get(f"/uploads/set?area={AREA}&organisation=health&dataset=secret").status_code == 403
        form = {"csrf": own, "area": AREA, "organisation": "health", "dataset": "beds", "version": "1"}
        assert bob.post("/uploads/restore", data=form).status_code == 403
    assert ann.put(f"{url}/content?offset=0", content=b"x", headers={"x-csrf": "no"}).status_code == 403
    assert ann.post("/uploads/restore", data={**form, "csrf": "no"}).status_code == 403


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a,a\n1,2\n", "two columns are named"),
        (b",".join(b"c%d" % n for n in range(2_000)) + b"\n", "more than 1600 columns"),
        (b"a,b\n\xff\xfe\x00,1\n", ""),
        (b"\x1f\x8b\x08broken", ""),
        (b'a,b\n"1,2\n', ""),
    ],
    ids=["twice", "columns", "encoding", "gzip", "quote"],
)
def test_a_hostile_file_is_told_or_fails_its_load_and_changes_nothing(
    page: Served, ann: httpx.Client, data: bytes, said: str
) -> None:
    url = sent(ann, "hostile", data)
    shown = ann.get(url)
    assert shown.status_code == 200
    assert said in shown.text, shown.text
    if 'name="base"' in shown.text:
        assert load(ann, url).status_code == 303
        execute(page, url.rpartition("/")[2])
        assert "could not be loaded" in ann.get(url).text
    else:
        assert "cannot be read" in shown.text
    with page.service.resource("source").session() as session:
        session.begin()
        assert session.one("SELECT to_regclass('uploads.set_health_hostile')") == (None,)


@pytest.mark.parametrize(("sign", "said"), [(";", ";"), ("\t", "tabs")])
def test_what_separates_the_values_is_told_by_the_header(page: Served, ann: httpx.Client, sign: str, said: str) -> None:
    lines = ["\ufeffward;beds;share", 'A;3;"0,5"', "B;4;1", ""]
    url = sent(ann, f"signs{len(said)}", "\n".join(lines).replace(";", sign).encode())
    assert f"separated by {said}," in ann.get(url).text
    assert load(ann, url).status_code == 303
    execute(page, url.rpartition("/")[2])
    assert rows(page, f"signs{len(said)}", "ward, beds, share") == [("A", 3, "0,5"), ("B", 4, "1")]
    loaded(page, ann, f"signs{len(said)}", b"ward,beds,share\nC,5,x\n")
    assert rows(page, f"signs{len(said)}", "ward, beds, share") == [("C", 5, "x")]


def test_odd_headers_marks_line_ends_and_long_values_load(page: Served, ann: httpx.Client) -> None:
    loaded(page, ann, "long", b"a,b\n1," + b"x" * 300_000 + b"\n")
    assert rows(page, "long", "a, length(b)") == [(1, 300_000)]
    loaded(page, ann, "odd", b"\xef\xbb\xbfrow_id,Caf\xc3\xa9,select,\r\n1,2,3,4\r\n5,6,7,8\r\n")
    assert rows(page, "odd", 'c_row_id, cafe, "select", column_4') == [(1, 2, 3, 4), (5, 6, 7, 8)]
