"""Delivers notices of ended requests: mails and webhooks, each tried again after growing waits."""

from __future__ import annotations

import logging
import smtplib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from export_pipelines.catalog.deliveries import Deliveries, Delivery
from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.catalog.requests import RequestRow, Requests
from export_pipelines.errors import ExportPipelinesError, RequestError
from export_pipelines.mail import MailServer, refused_for_good, send_mail
from export_pipelines.service_keys import ServiceKeys
from export_pipelines.specs.dataset import DataSetDefinition
from export_pipelines.specs.service import ServiceSpec, resolve
from export_pipelines.worker.messages import mail_of, notice_of, webhook_of
from export_pipelines.worker.webhook import WebhookRefused, post, signed, signing_key

_log = logging.getLogger(__name__)

_AT_ONCE = 4
"""Deliveries under way: a mail server that hangs holds up no more than these."""


@dataclass
class Notifier:
    """Delivers what is due. At least once: a crash between the mail server's `250` and our note of it sends a mail
    again, with the same Message-ID. Several processes may each have one."""

    deliveries: Deliveries
    requests: Requests
    service: ServiceSpec
    keys: ServiceKeys = field(repr=False)
    datasets: Mapping[str, DataSetDefinition]
    _under_way: list[threading.Thread] = field(default_factory=list)

    @classmethod
    def of(
        cls, pool: CatalogPool, service: ServiceSpec, keys: ServiceKeys, datasets: Mapping[str, DataSetDefinition]
    ) -> Notifier:
        """The notifier of a catalog."""
        return cls(Deliveries(pool), Requests(pool), service, keys, datasets)

    def tick(self) -> None:
        """Begin to deliver what is due, in threads of its own. Returns at once, and raises nothing."""
        self._under_way = [each for each in self._under_way if each.is_alive()]
        room = _AT_ONCE - len(self._under_way)
        if room <= 0:
            return
        try:
            due = self.deliveries.claim(room)
        except ExportPipelinesError as error:
            _log.warning("notices wait: %s", error.message)
            return
        for each in due:
            # A daemon: a mail server that hangs does not keep the process from ending.
            thread = threading.Thread(target=self._deliver, args=(each,), name=f"notice {each.id}", daemon=True)
            thread.start()
            self._under_way.append(thread)

    def deliver_due(self) -> int:
        """Deliver what is due, one after the other; how many there were."""
        due = self.deliveries.claim()
        for each in due:
            self._deliver(each)
        return len(due)

    def close(self, seconds: float = 3) -> None:
        """Give those under way some seconds to end. What is left is tried again when its lease is over."""
        deadline = time.monotonic() + seconds
        for each in self._under_way:
            each.join(max(0.0, deadline - time.monotonic()))

    def _deliver(self, delivery: Delivery) -> None:
        """Try once and note how it went. Raises nothing: whatever cannot be told of waits for its next attempt."""
        try:
            row = self.requests.get(delivery.request_id)
            if row is None:
                return  # forgotten, and its deliveries with it
            try:
                self._send(row, delivery)
            except (OSError, smtplib.SMTPException, WebhookRefused, ExportPipelinesError, ValueError) as error:
                self._note_failure(delivery, error)
            else:
                self.deliveries.delivered(delivery)
                _log.info("%s of %s was delivered to %s", delivery.kind, delivery.request_id, delivery.place)
        except ExportPipelinesError as error:
            _log.warning("notice %s waits: %s", delivery.id, error.message)
        except Exception:
            _log.exception("notice %s failed in a way that was not foreseen", delivery.id)

    def _note_failure(self, delivery: Delivery, error: Exception) -> None:
        for_good = error.for_good if isinstance(error, WebhookRefused) else refused_for_good(error)
        text = _told(error)
        given_up = self.deliveries.failed(delivery, text, for_good=for_good)
        what = "is given up" if given_up else "will be tried again"
        _log.warning("%s of %s to %s %s: %s", delivery.kind, delivery.request_id, delivery.place, what, text)

    def _send(self, row: RequestRow, delivery: Delivery) -> None:
        notice = notice_of(row, self.service, self.keys.key("links"), self.datasets)
        if delivery.kind == "mail":
            server, sender = self._mail_server()
            send_mail(server, mail_of(notice, delivery, sender))
            return
        body = webhook_of(notice, delivery)
        key = signing_key(resolve(self.service.webhooks.secret), self.keys.key("webhooks"))
        post(self.service, delivery.target, body, signed(key, f"{row.id}.{delivery.id}", body))

    def _mail_server(self) -> tuple[MailServer, str]:
        spec = self.service.smtp
        if spec is None:
            raise RequestError("there is no mail server", hint="add `smtp` to resources/service/defs.yaml")
        server = MailServer(
            str(resolve(spec.host)), spec.port, spec.security, resolve(spec.user), resolve(spec.password)
        )
        return server, str(resolve(spec.sender))


def _told(error: Exception) -> str:
    """One line that has no secret in it."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        code, text = next(iter(error.recipients.values()))
        return f"the recipient was refused: {code} {text.decode(errors='replace')}"
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return f"the login was refused: {error.smtp_code}"
    if isinstance(error, smtplib.SMTPResponseException):
        text = error.smtp_error if isinstance(error.smtp_error, bytes) else error.smtp_error.encode()
        return f"refused: {error.smtp_code} {text.decode(errors='replace')}"
    if isinstance(error, ExportPipelinesError):
        return error.message
    return " ".join(f"{type(error).__name__}: {error}".split())
