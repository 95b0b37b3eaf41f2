"""Subscribers are told of the end of a request, once, by a real mail server and a real receiver of webhooks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from export_pipelines import links
from export_pipelines.catalog.audit import Actor, AuditLog
from export_pipelines.catalog.deliveries import RETRY_SECONDS, Deliveries, Delivery
from export_pipelines.service_keys import load_service_keys
from export_pipelines.specs.dataset import Mail
from export_pipelines.specs.notice import check_notice
from export_pipelines.specs.query import QueryError
from export_pipelines.specs.service import FromVariable, ServiceSpec, SmtpSpec, WebhookSpec
from export_pipelines.worker import webhook
from export_pipelines.worker.notices import Notifier
from tests.support.command_line import CommandLine
from tests.support.dagster_project import new_project
from tests.support.mail import Mailbox, Receiver, mail_server, self_signed, webhook_receiver
from tests.support.requests import FILE, Desk, desk
from tests.support.servers import run_sql
from tests.support.threads import wait_until


@pytest.fixture
def at(catalog_url: str, tmp_path: Path) -> Iterator[Desk]:
    made = desk(catalog_url, tmp_path)
    yield made
    made.pool.close()


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with mail_server() as server:
        yield server


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with webhook_receiver() as server:
        yield server


def service(mailbox: Mailbox | None = None, receiver: Receiver | None = None, **smtp: object) -> ServiceSpec:
    server = {"host": "127.0.0.1", "port": mailbox.port, "sender": "Exports <exports@example.org>"} if mailbox else {}
    return ServiceSpec(
        public_url="https://data.example.org/",
        smtp=SmtpSpec.model_validate({**server, **smtp}) if mailbox else None,
        webhooks=WebhookSpec(allowed_hosts=(receiver.host,) if receiver else ()),
    )


def notifier(at: Desk, spec: ServiceSpec) -> Notifier:
    return Notifier.of(at.pool, spec, at.keys, {at.dataset.id: at.dataset})


def delivery(at: Desk) -> Delivery:
    (found,) = Deliveries(at.pool).find()
    return found


def due(catalog_url: str) -> None:
    """What waits is due now."""
    run_sql(catalog_url, "UPDATE export_pipelines.delivery SET next_at = now() WHERE state = 'waiting'")


def test_a_mail_of_success_says_what_was_asked_and_has_a_link_that_opens_the_file(at: Desk, mailbox: Mailbox) -> None:
    row = at.succeed(at.ask(email="ann@example.org"))
    assert notifier(at, service(mailbox)).deliver_due() == 1
    (message,) = mailbox.messages
    assert message["To"] == "ann@example.org"
    assert message["From"] == "Exports <exports@example.org>"
    assert message["Subject"] == "Your export of Flights <New York> is ready"
    assert message["Auto-Submitted"] == "auto-generated" and message["Date"]
    assert message["Message-ID"] == f"<{row.id}.{delivery(at).id}@example.org>"
    text, html = (message.get_body((kind,)).get_content() for kind in ("plain", "html"))  # type: ignore[union-attr]
    for said in (
        "demo/flights where carrier = UA",
        "1,234 rows",
        "1.2 kB",
        "b" * 64,
        f"{row.expires_at:%Y-%m-%d %H:%M} UTC",
    ):
        assert said in text
    assert "Flights &lt;New York&gt;" in html and "<New York>" not in html
    assert f"https://data.example.org/requests/{row.id}" in text and f"/requests/{row.id}" in html
    link = urlsplit(re.search(r"https://data\.example\.org/files/\S+", text)[0])  # type: ignore[index]
    assert link.path == f"/files/{row.id}/{FILE.name}"
    given = {name: values[0] for name, values in parse_qs(link.query).items()}
    assert links.is_valid(at.keys.key("links"), row.id, int(given["expires"]), given["signature"])
    assert int(given["expires"]) < time.time() + 24 * 3600 + 1


def test_a_mail_of_failure_says_why_and_what_to_do(at: Desk, mailbox: Mailbox) -> None:
    at.fail(at.ask(email="ann@example.org"))
    notifier(at, service(mailbox)).deliver_due()
    (message,) = mailbox.messages
    assert message["Subject"] == "Your export of Flights <New York> failed"
    text, html = (message.get_body((kind,)).get_content() for kind in ("plain", "html"))  # type: ignore[union-attr]
    assert "the source is <away>" in text and "hint: ask again later" in text and "/files/" not in text
    assert "the source is &lt;away&gt;" in html


def test_each_subscriber_gets_one_mail_an_end_however_often_it_is_tried(at: Desk, mailbox: Mailbox) -> None:
    first = at.ask("ann", email="ann@example.org")
    at.ask("bob", email="bob@example.org")
    at.ask("carl")
    left = at.ask("dora", email="dora@example.org")
    at.requests.leave(left.id, Actor("dora"))
    at.succeed(first)
    at.ask("ann", email="ann@example.org")
    told = notifier(at, service(mailbox))
    assert [told.deliver_due() for _ in range(3)] == [2, 0, 0]
    assert sorted(message["To"] for message in mailbox.messages) == ["ann@example.org", "bob@example.org"]


def test_who_joins_what_has_ended_is_told_at_once(at: Desk, mailbox: Mailbox) -> None:
    at.succeed(at.ask("ann"))
    at.ask("bob", email="bob@example.org")
    notifier(at, service(mailbox)).deliver_due()
    assert [message["To"] for message in mailbox.messages] == ["bob@example.org"]


def test_a_cancelled_request_tells_nobody(at: Desk, mailbox: Mailbox) -> None:
    row = at.ask(email="ann@example.org")
    at.requests.leave(row.id, Actor("ann"))
    assert notifier(at, service(mailbox)).deliver_due() == 0


def test_a_mail_waits_while_the_server_is_down_and_is_given_up_in_the_end(at: Desk, catalog_url: str) -> None:
    row = at.succeed(at.ask(email="ann@example.org"))
    with mail_server() as gone:
        pass
    told = notifier(at, service(gone))
    for wait in RETRY_SECONDS:
        assert told.deliver_due() == 1
        waiting = delivery(at)
        assert waiting.state == "waiting" and "refused" in (waiting.error or "")
        seconds = run_sql(catalog_url, "SELECT extract(epoch FROM next_at - now()) FROM export_pipelines.delivery")[0][
            0
        ]
        assert wait - 5 < seconds <= wait
        assert told.deliver_due() == 0, "before its time it is not tried"
        due(catalog_url)
    told.deliver_due()
    assert delivery(at).state == "given up"
    due(catalog_url)
    assert told.deliver_due() == 0
    assert not Deliveries(at.pool).again(0)
    (entry,) = AuditLog(at.pool).newest(1)
    assert (entry.action, entry.subject, entry.outcome) == ("notice.given_up", row.id, "failed")
    ended = at.requests.get(row.id)
    assert ended is not None and ended.state == "succeeded", "a mail that cannot be sent fails no export"


def test_the_command_lists_what_was_given_up_tries_it_anew_and_prints_the_secret_of_webhooks(
    at: Desk, receiver: Receiver, tmp_path: Path, catalog_url: str, database: str
) -> None:
    receiver.answer = lambda call: 410
    at.succeed(at.ask(webhook=receiver.url))
    notifier(at, service(receiver=receiver)).deliver_due()
    root = tmp_path / "project"
    root.mkdir()
    new_project(root)
    cli = CommandLine(root, {"DATABASE_URL": database, "DAGSTER_PG_URL": catalog_url})
    listed = cli("notices")
    assert listed.code == 0 and "given up" in listed.out and "410" in listed.out, listed.err
    assert receiver.host in listed.out and "s3cret" not in listed.out
    (given_up,) = cli("notices", "--again", str(delivery(at).id), "--json").json
    assert (given_up["state"], given_up["attempts"]) == ("waiting", 0) and "s3cret" not in given_up["target"]
    receiver.answer = lambda call: 204
    assert notifier(at, service(receiver=receiver)).deliver_due() == 1
    secret = cli("notices", "--webhook-secret").out.strip()
    own = load_service_keys(root / ".local").key("webhooks")
    assert webhook.signing_key(secret, b"") == own


def test_a_mail_that_was_delayed_arrives_when_the_server_is_back(at: Desk, catalog_url: str) -> None:
    at.succeed(at.ask(email="ann@example.org"))
    with mail_server() as gone:
        pass
    notifier(at, service(gone)).deliver_due()
    due(catalog_url)
    with mail_server(gone.port) as back:
        notifier(at, service(back)).deliver_due()
    assert len(back.messages) == 1
    assert (delivery(at).state, delivery(at).attempts, delivery(at).error) == ("delivered", 2, None)
    assert [entry.action for entry in AuditLog(at.pool).newest(1)] == ["notice.delivered"]


@pytest.mark.parametrize("for_good", ["recipient", "message", ""])
def test_only_a_refusal_for_good_is_given_up_at_once(at: Desk, mailbox: Mailbox, for_good: str) -> None:
    at.succeed(at.ask(email="ann@example.org"))
    mailbox.refused = ("ann@example.org",) if for_good == "recipient" else ()
    mailbox.answer = "554 5.7.1 spam" if for_good == "message" else "451 4.3.0 later"
    notifier(at, service(mailbox)).deliver_due()
    assert delivery(at).state == ("given up" if for_good else "waiting")
    assert any(said in (delivery(at).error or "") for said in ("no such user", "spam", "later"))


def test_mail_goes_by_starttls_with_a_login_to_a_server_that_is_known(
    at: Desk, tmp_path: Path, catalog_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at.succeed(at.ask(email="ann@example.org"))
    certificate = self_signed(tmp_path / "mail.pem")
    monkeypatch.setenv("MAIL_PASSWORD", "secret")
    with mail_server(certificate=certificate) as mailbox:
        login = {"security": "starttls", "user": "exports", "password": FromVariable(env="MAIL_PASSWORD")}
        notifier(at, service(mailbox, **login)).deliver_due()
        assert "certificate" in (delivery(at).error or "").lower() and mailbox.logins == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        due(catalog_url)
        notifier(at, service(mailbox, **login)).deliver_due()
        assert len(mailbox.messages) == 1 and mailbox.logins == ["exports"]


def test_two_workers_never_take_the_same_notice_and_one_that_died_is_followed(at: Desk, catalog_url: str) -> None:
    at.succeed(at.ask(email="ann@example.org"))
    outbox = Deliveries(at.pool)
    (taken,) = outbox.claim(lease_seconds=2)
    assert outbox.claim() == []
    found: list[Delivery] = []
    wait_until(lambda: found.extend(outbox.claim()) or found)
    (again,) = found
    assert (again.id, again.attempts) == (taken.id, 2)
    outbox.failed(taken, "late news of the first")
    assert delivery(at).error is None


def test_a_tick_returns_at_once_though_the_receiver_hangs(at: Desk, receiver: Receiver) -> None:
    at.succeed(at.ask(webhook=receiver.url))
    over = threading.Event()
    receiver.answer = lambda call: 204 if over.wait(60) else 500
    told = notifier(at, service(receiver=receiver))
    told.tick()
    assert (delivery(at).state, delivery(at).error) == ("waiting", None)
    over.set()
    wait_until(lambda: delivery(at).state == "delivered")
    told.close()


def test_a_tick_without_a_catalog_raises_nothing(tmp_path: Path) -> None:
    told = notifier(desk("postgresql://nobody@127.0.0.1:1/none", tmp_path), service())
    told.tick()
    told.close()


def test_a_webhook_is_signed_over_its_time_and_body(at: Desk, receiver: Receiver) -> None:
    row = at.succeed(at.ask(webhook=receiver.url))
    notifier(at, service(receiver=receiver)).deliver_due()
    (call,) = receiver.calls
    assert call.path == "/hook?key=s3cret"
    assert call.json["type"] == "request.succeeded"
    data = call.json["data"]
    assert (data["id"], data["status"], data["rows"]) == (row.id, "Succeeded", 1234)
    assert data["file"] == {"name": FILE.name, "bytes": 1234, "sha256": "b" * 64}
    assert data["links"]["download"].startswith("https://data.example.org/files/")
    text = f"{call.headers['webhook-id']}.{call.headers['webhook-timestamp']}.".encode() + call.body
    wanted = base64.b64encode(hmac.digest(at.keys.key("webhooks"), text, hashlib.sha256)).decode()
    assert call.headers["webhook-signature"] == f"v1,{wanted}"
    assert abs(int(call.headers["webhook-timestamp"]) - time.time()) < 60
    assert delivery(at).state == "delivered" and "s3cret" not in delivery(at).place


def test_a_secret_of_ones_own_signs_webhooks(at: Desk, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", webhook.secret_text(b"k" * 32))
    at.fail(at.ask(webhook=receiver.url))
    spec = service(receiver=receiver)
    hooks = spec.webhooks.model_copy(update={"secret": FromVariable(env="HOOK_SECRET")})
    notifier(at, spec.model_copy(update={"webhooks": hooks})).deliver_due()
    (call,) = receiver.calls
    assert call.json["data"]["error"] == {"message": "the source is <away>", "hint": "ask again later"}
    wanted = webhook.signed(b"k" * 32, call.headers["webhook-id"], call.body, float(call.headers["webhook-timestamp"]))
    assert call.headers["webhook-signature"] == wanted["webhook-signature"]


def test_a_webhook_that_answers_500_is_tried_again_with_the_same_id(
    at: Desk, receiver: Receiver, catalog_url: str
) -> None:
    at.succeed(at.ask(webhook=receiver.url))
    statuses = iter([500, 503, 200])
    receiver.answer = lambda call: next(statuses)
    for _ in range(3):
        notifier(at, service(receiver=receiver)).deliver_due()
        due(catalog_url)
    assert delivery(at).state == "delivered"
    assert len({call.headers["webhook-id"] for call in receiver.calls}) == 1 and len(receiver.calls) == 3


def test_a_redirect_is_not_followed(at: Desk, receiver: Receiver) -> None:
    with webhook_receiver() as inner:
        receiver.location = inner.url
        receiver.answer = lambda call: 307
        at.succeed(at.ask(webhook=receiver.url))
        notifier(at, service(receiver=receiver)).deliver_due()
        assert inner.calls == [] and "redirects are not followed" in (delivery(at).error or "")


def test_410_ends_all_further_calls(at: Desk, receiver: Receiver) -> None:
    receiver.answer = lambda call: 410
    at.succeed(at.ask(webhook=receiver.url))
    notifier(at, service(receiver=receiver)).deliver_due()
    assert delivery(at).state == "given up"


@pytest.mark.parametrize("drip", [0.0, 0.1])
def test_a_call_ends_in_time_whether_the_receiver_hangs_or_drips(receiver: Receiver, drip: float) -> None:
    receiver.drip = drip

    over = threading.Event()
    receiver.answer = lambda call: 204 if drip or over.wait(60) else 500
    begun = time.monotonic()
    with pytest.raises(OSError):
        webhook.post(service(receiver=receiver), receiver.url, b"{}", {}, seconds=0.5)
    over.set()
    assert time.monotonic() - begun < 20


def test_a_wildcard_allows_no_private_address_and_an_exact_name_does(receiver: Receiver) -> None:
    # An address in place of a name that leads to it: no name server is asked.
    wide = ServiceSpec(webhooks=WebhookSpec(allowed_hosts=(receiver.host.replace("127.", "*."),)))
    with pytest.raises(webhook.WebhookRefused, match="private address"):
        webhook.post(wide, receiver.url, b"{}", {})
    webhook.post(service(receiver=receiver), receiver.url, b"{}", {})
    assert len(receiver.calls) == 1


def test_a_host_that_is_not_allowed_any_more_is_not_called(at: Desk, receiver: Receiver) -> None:
    at.succeed(at.ask(webhook=receiver.url))
    notifier(at, service()).deliver_due()
    assert receiver.calls == [] and delivery(at).state == "given up"


HOOKS = ServiceSpec(
    smtp=SmtpSpec(allowed_domains=("example.org",)),
    webhooks=WebhookSpec(allowed_hosts=("hooks.example.org", "inner.example.org:8443", "*.example.net")),
)


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.org/a?b=c",
        "https://inner.example.org:8443/",
        "https://a.b.example.net/",
        "http://hooks.example.org",
    ],
)
def test_webhooks_of_allowed_hosts_are_taken(at: Desk, url: str) -> None:
    assert check_notice(at.dataset, HOOKS, None, f" {url} ") == (None, url)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://hooks.example.org/",
        "https://evil.org/",
        "https://hooks.example.org.evil.org/",
        "https://hooks.example.org@evil.org/",
        "https://user:secret@hooks.example.org/",
        "https://hooks.example.org:22/",
        "https://inner.example.org/",
        "https://evil-example.net/",
        "https://hooks.example.org/\r\nX: y",
        "https://hooks.example.org:x/",
        "//hooks.example.org/",
        "https://169.254.169.254/",
        "https://evil.org\\@hooks.example.org/",
    ],
)
def test_other_webhooks_are_refused_when_they_are_asked_for(at: Desk, url: str) -> None:
    with pytest.raises(QueryError) as caught:
        check_notice(at.dataset, HOOKS, None, url)
    assert [problem.field for problem in caught.value.problems] == ["webhook"]
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["ann@example.org", "a.b+c@EXAMPLE.org"])
def test_plain_addresses_are_taken(at: Desk, address: str) -> None:
    assert check_notice(at.dataset, HOOKS, address, None) == (address, None)


@pytest.mark.parametrize(
    "address",
    [
        "ann",
        "ann@evil.org",
        "ann@example.org\nBcc: x@example.org",
        "ann@example.org, bob@example.org",
        "Ann <ann@example.org>",
        '"a b"@example.org',
        "ann@@example.org",
        "änn@example.org",
        "a" * 65 + "@example.org",
        "ann@sub.example.org",
        ".ann@example.org",
    ],
)
def test_other_addresses_are_refused(at: Desk, address: str) -> None:
    with pytest.raises(QueryError) as caught:
        check_notice(at.dataset, HOOKS, address, None)
    assert [problem.field for problem in caught.value.problems] == ["email"]


def test_a_data_set_may_want_an_address_or_take_none(at: Desk) -> None:
    at.spec = {"mail": Mail.REQUIRED}
    with pytest.raises(QueryError, match="needs an e-mail address"):
        check_notice(at.dataset, HOOKS, " ", None)
    at.spec = {"mail": Mail.OFF}
    with pytest.raises(QueryError, match="sends no mail"):
        check_notice(at.dataset, HOOKS, "ann@example.org", None)
    at.spec = {}
    with pytest.raises(QueryError, match="no mail server"):
        check_notice(at.dataset, ServiceSpec(), "ann@example.org", None)
