"""Which keys are taken, and which URLs are those of stores."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export_pipelines.errors import StoreError
from export_pipelines.stores import open_store
from export_pipelines.stores.filesystem import FilesystemStore
from export_pipelines.stores.keys import TEMPORARY, check_key, check_prefix, is_key
from export_pipelines.stores.s3 import S3Store
from export_pipelines.stores.s3_writer import part_size

REFUSED = [
    "", "/", "/etc/passwd", "a/", "a//b", "..", "../a", "a/../b", "a/..", ".", "./a", "a/.", "a\\b", "a\0b", "a\nb",
    "\x7f", "\ud800", ".tmp-1", "a/.tmp-1/b", "a" * 256, "é" * 128, "/".join(["a" * 200] * 6),
]  # fmt: skip

text = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="/\\"), min_size=1)
parts = text.filter(lambda part: part not in (".", "..") and not part.startswith(TEMPORARY) and len(part.encode()) < 99)


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_escapes_or_cannot_be_stored_everywhere_is_refused(key: str) -> None:
    assert not is_key(key)
    with pytest.raises(StoreError, match=r"is not a key(.|\n)*hint: ") as caught:
        check_key(key)
    assert len(str(caught.value)) < 500


@given(st.lists(parts, min_size=1, max_size=8))
def test_any_other_text_is_taken_and_split_into_its_parts(names: list[str]) -> None:
    assert check_key("/".join(names)) == tuple(names)


@given(st.text(), st.integers(0, 3))
def test_what_is_taken_never_leads_out_of_a_folder(text: str, depth: int) -> None:
    key = "../" * depth + text
    if is_key(key):
        root = Path("/store/root")
        assert root in (root / key).parents
        assert not any(part in ("", ".", "..") for part in key.split("/"))


@pytest.mark.parametrize("prefix", ["/", "../", "a/../b", "a//b", "/a"])
def test_a_prefix_that_escapes_is_refused(prefix: str) -> None:
    with pytest.raises(StoreError):
        check_prefix(prefix)


@pytest.mark.parametrize(("prefix", "folders"), [("", ()), ("a", ()), ("a/", ("a",)), ("a/b/c", ("a", "b"))])
def test_a_prefix_may_end_in_the_middle_of_a_name(prefix: str, folders: tuple[str, ...]) -> None:
    assert check_prefix(prefix) == folders


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:///data/a%20b", "file:///data/a%20b"),
        ("file://localhost/data", "file:///data"),
        ("/data/é", "file:///data/%C3%A9"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("S3://bucket/a b+%", "s3://bucket/a b+%"),
    ],
)
def test_a_store_is_opened_by_its_url_and_says_it(url: str, expected: str) -> None:
    assert open_store(url).url == expected


@pytest.mark.parametrize(
    "url",
    ["", "data", "./data", "ftp://host/data", "file://host/data", "file://data", "s3://", "s3:///a", "s3://B/a",
     "s3://bucket/../a", "s3://bucket/a//b", "https://bucket.s3.amazonaws.com/a", "://"],
)  # fmt: skip
def test_any_other_url_is_refused_with_what_is_allowed(url: str) -> None:
    with pytest.raises(StoreError, match="hint: "):
        open_store(url)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(StoreError) as caught:
        open_store("s3://key:hunter2@bucket/a")
    assert "hunter2" not in str(caught.value)


def test_opening_a_store_touches_nothing(tmp_path: Path) -> None:
    open_store(str(tmp_path / "new"))
    open_store("s3://bucket/a", endpoint_url="http://127.0.0.1:1")
    assert list(tmp_path.iterdir()) == []


def test_an_object_is_located_by_path_or_url() -> None:
    assert FilesystemStore(Path("/data")).locate("a/b c.csv") == "/data/a/b c.csv"
    assert S3Store("bucket", "p").locate("a/b c.csv") == "s3://bucket/p/a/b c.csv"


def test_prefix_and_key_together_keep_to_the_limit_of_s3() -> None:
    key = "/".join(["k" * 250] * 4)
    S3Store("bucket", "p").locate(key)
    with pytest.raises(StoreError, match="1024"):
        S3Store("bucket", "p" * 100).locate(key)


def test_ten_thousand_parts_hold_the_greatest_object_of_s3() -> None:
    sizes = [part_size(number) for number in range(1, 10_001)]
    assert sum(sizes) >= 5 << 40
    assert max(sizes) <= 5 << 30
    assert sizes == sorted(sizes)
    assert sizes[0] == 8 << 20
