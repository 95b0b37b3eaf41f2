"""HAWK itself: against an independent client's signatures, and everything that is no HAWK."""

from __future__ import annotations

import base64
from contextlib import suppress
from dataclasses import replace

import mohawk
import mohawk.base
import mohawk.bewit
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export_pipelines.api import hawk

KEY = b"werxhqb98rpaxn39848xrunpaw3489ruxnpa98w4rxn"
CREDENTIALS = {"id": "dh37fgj492je", "key": KEY.decode(), "algorithm": "sha256"}
NOW = 1_353_832_234
CALL = hawk.Call("GET", "/resource/1?b=1&a=2", "example.com", "8000")
URL = "http://example.com:8000/resource/1?b=1&a=2"


def sent(**changes: object) -> str:
    values = {"content": "", "content_type": "", "_timestamp": NOW, "nonce": "j4h3g2", **changes}
    return str(mohawk.Sender(dict(CREDENTIALS), values.pop("url", URL), "GET", **values).request_header)


def always(ts: int, nonce: str) -> bool:
    return True


def test_the_example_of_the_specification_has_its_signature() -> None:
    artifacts = hawk.Artifacts("dh37fgj492je", "1353832234", "j4h3g2", "", ext="some-app-ext-data")
    assert hawk.mac(KEY, "header", CALL, artifacts) == "6R4rV5iE+NPoym+WwjeHzjAGXUtLNIxmo1vpMofpLAE="
    posted = hawk.payload_hash(b"Thank you for flying Hawk", "text/plain; charset=utf-8")
    assert posted == "Yi9LfIIFRtBEPt74PVmbTF/xVAwPn7ub15ePICfgnuY="


@pytest.mark.parametrize("keys", [[KEY], [b"new", KEY], [KEY, b"old"]])
def test_a_call_is_proved_by_any_key_that_is_live_and_answered_with_the_same(keys: list[bytes]) -> None:
    proof = hawk.check_header(CALL, hawk.parse_header(sent(ext="hello world")), keys, NOW, always)
    assert proof.key == KEY


@pytest.mark.parametrize(
    "other",
    [
        replace(CALL, method="POST"), replace(CALL, resource="/resource/2?b=1&a=2"),
        replace(CALL, resource="/resource/1?a=2&b=1"), replace(CALL, host="example.org"), replace(CALL, port="80"),
        replace(CALL, payload=b"x"), replace(CALL, content_type="text/plain"),
    ],
)  # fmt: skip
def test_a_signature_holds_for_its_call_alone(other: hawk.Call) -> None:
    with pytest.raises(hawk.NotAuthentic):
        hawk.check_header(other, hawk.parse_header(sent()), [KEY], NOW, always)


@pytest.mark.parametrize("keys", [[], [b"x"], [b"0" * 64]])
def test_without_the_right_key_nothing_is_proved_and_no_nonce_used_up(keys: list[bytes]) -> None:
    def first_time(ts: int, nonce: str) -> bool:
        raise AssertionError

    with pytest.raises(hawk.NotAuthentic):
        hawk.check_header(CALL, hawk.parse_header(sent()), keys, NOW, first_time)


def test_nobodys_key_opens_nothing() -> None:
    credentials = {**CREDENTIALS, "key": "0" * 64}
    header = mohawk.Sender(credentials, URL, "GET", content="", content_type="", _timestamp=NOW).request_header
    with pytest.raises(hawk.NotAuthentic):
        hawk.check_header(CALL, hawk.parse_header(header), [], NOW, always)


@pytest.mark.parametrize("skew", [-60, 0, 60])
def test_a_clock_may_be_a_minute_off(skew: int) -> None:
    hawk.check_header(CALL, hawk.parse_header(sent()), [KEY], NOW + skew, always)


@pytest.mark.parametrize("skew", [-61, 61, 100_000])
def test_a_clock_that_is_more_off_is_told_our_time_signed(skew: int) -> None:
    with pytest.raises(hawk.NotAuthentic) as refused:
        hawk.check_header(CALL, hawk.parse_header(sent()), [KEY], NOW + skew, always)
    told = mohawk.util.parse_authorization_header(refused.value.challenge)
    assert told["ts"] == str(NOW + skew)
    assert told["tsm"] == mohawk.util.calculate_ts_mac(told["ts"], CREDENTIALS).decode()


def test_a_nonce_is_taken_once() -> None:
    with pytest.raises(hawk.NotAuthentic):
        hawk.check_header(CALL, hawk.parse_header(sent()), [KEY], NOW, lambda ts, nonce: False)


def test_an_answer_is_signed_so_that_its_caller_knows() -> None:
    sender = mohawk.Sender(dict(CREDENTIALS), URL, "GET", content="", content_type="")
    proof = hawk.check_header(CALL, hawk.parse_header(sender.request_header), [KEY], mohawk.util.utc_now(), always)
    sender.accept_response(
        proof.server_authorization(b'{"a": 1}', "application/json"), content='{"a": 1}', content_type="application/json"
    )
    with pytest.raises(mohawk.exc.MisComputedContentHash):
        sender.accept_response(
            proof.server_authorization(b'{"a": 1}', "application/json"), content="{}", content_type="application/json"
        )


MALFORMED = [
    "Hawk", "Hawk ", "Hawk x", 'Hawk id="1"',
    'Hawk id="1", ts="1", nonce="1"', 'Hawk id="", ts="1", nonce="1", mac="1"',
    'Hawk id="1", ts="x", nonce="1", mac="1"', 'Hawk id="1", ts="-1", nonce="1", mac="1"',
    'Hawk id="1", ts="1.5", nonce="1", mac="1"', 'Hawk id="1", ts="٣", nonce="1", mac="1"',
    'Hawk id="1", ts="1", nonce="1", mac="1", mac="1"', 'Hawk id="1", ts="1", nonce="1", mac="1", other="1"',
    'Hawk id="1", ts="1", nonce="1", mac="1" x', 'Hawk id="1\\", ts="1", nonce="1", mac="1"',
    'Hawk id="1" ts="1" nonce="1" mac="1"', "Hawk id=1, ts=1, nonce=1, mac=1",
    'Hawk id="é", ts="1", nonce="1", mac="1"',
    'Hawk id="1", ts="1", nonce="1\n2", mac="1"', f'Hawk id="1", ts="1", nonce="{"n" * 200}", mac="1"',
    f'Hawk id="1", ts="1", nonce="1", mac="1", ext="{"x" * 5000}"', f'Hawk id="1", ts="{"9" * 30}", nonce="1", mac="1"',
]  # fmt: skip


@pytest.mark.parametrize("header", MALFORMED)
def test_what_is_no_header_is_malformed(header: str) -> None:
    with pytest.raises(hawk.Malformed):
        hawk.parse_header(header)


@given(st.text(max_size=200))
def test_any_text_is_a_header_or_malformed(text: str) -> None:
    for read in (hawk.parse_header, hawk.parse_bewit):
        with suppress(hawk.Malformed):
            read(text)
    hawk.split_bewit(text)


def bewit(until: int = NOW + 60, ext: str = "", url: str = URL) -> str:
    resource = mohawk.base.Resource(
        url=url, method="GET", credentials=dict(CREDENTIALS), timestamp=until, nonce="", ext=ext
    )
    return str(mohawk.bewit.get_bewit(resource))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("ext", ["", "a", "ab", "abc"])
def test_a_bewit_opens_its_resource_padded_or_not(method: str, ext: str) -> None:
    for text in (bewit(ext=ext), bewit(ext=ext).rstrip("=")):
        hawk.check_bewit(replace(CALL, method=method), hawk.parse_bewit(text), [KEY], NOW)


@pytest.mark.parametrize(
    ("call", "keys", "now"),
    [
        (replace(CALL, resource="/resource/2?b=1&a=2"), [KEY], NOW), (CALL, [b"x"], NOW), (CALL, [], NOW),
        (CALL, [KEY], NOW + 60), (replace(CALL, host="example.org"), [KEY], NOW),
    ],
)  # fmt: skip
def test_a_bewit_opens_nothing_else_and_not_for_ever(call: hawk.Call, keys: list[bytes], now: int) -> None:
    with pytest.raises(hawk.NotAuthentic):
        hawk.check_bewit(call, hawk.parse_bewit(bewit()), keys, now)


@pytest.mark.parametrize(
    "text",
    ["", "=", "!!!", "é", "YQ", base64.urlsafe_b64encode(b"a\\b\\c\\d").decode(), "x" * 5000,
     base64.urlsafe_b64encode(b"a\\1\\c").decode(), base64.urlsafe_b64encode(b"\\1\\c\\d").decode(),
     base64.urlsafe_b64encode(b"a\\1\\c\\d\n").decode(), base64.urlsafe_b64encode(b"a\\1\\\xff\\d").decode()],
)  # fmt: skip
def test_what_is_no_bewit_is_malformed(text: str) -> None:
    with pytest.raises(hawk.Malformed):
        hawk.parse_bewit(text)


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        ("/a", None), ("/a?b=1", None), ("/a?xbewit=1", None), ("/a?bewit=x", ("x", "/a")),
        ("/a?bewit=x&b=1", ("x", "/a?b=1")), ("/a?b=1&bewit=x", ("x", "/a?b=1")),
        ("/a?b=1&bewit=x&c=2", ("x", "/a?b=1&c=2")), ("/a?bewit=", ("", "/a")), ("/bewit=1", None),
    ],
)  # fmt: skip
def test_a_bewit_is_taken_out_of_the_resource(resource: str, expected: tuple[str, str] | None) -> None:
    assert hawk.split_bewit(resource) == expected


@pytest.mark.parametrize("host", ["", "a b", "a:b", "a:123456", "é", "[::1", "a/b", "a@b"])
def test_a_host_that_is_none_is_malformed(host: str) -> None:
    with pytest.raises(hawk.Malformed):
        hawk.place(host, "http")


def test_the_port_is_that_of_the_host_or_of_the_scheme() -> None:
    assert hawk.place("a.b", "http") == ("a.b", "80")
    assert hawk.place("a.b", "https") == ("a.b", "443")
    assert hawk.place("[::1]:8443", "https") == ("[::1]", "8443")
