"""What notices of ended requests say: mails as text and HTML, and the JSON of webhooks."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from functools import cache
from typing import Any

from export_pipelines import links
from export_pipelines.catalog.deliveries import Delivery
from export_pipelines.catalog.requests import RequestRow
from export_pipelines.mail import domain_of
from export_pipelines.specs.dataset import DataSetDefinition, Links
from export_pipelines.specs.service import ServiceSpec, resolve


@dataclass(frozen=True)
class Notice:
    """What is told of the end of a request. Times are zone-aware."""

    id: str
    dataset: str
    title: str
    environment: str
    succeeded: bool
    summary: str
    rows: int
    page: str
    """URL of the request's page."""
    download: str | None
    """Signed URL of its file."""
    link_until: datetime | None
    """When that URL expires; None for one that does not."""
    file_name: str | None
    size: int | None
    """Bytes of the file as it is downloaded."""
    sha256: str | None
    expires_at: datetime | None
    error: str
    hint: str
    finished_at: datetime | None


def notice_of(
    row: RequestRow, service: ServiceSpec, link_key: bytes, datasets: Mapping[str, DataSetDefinition]
) -> Notice:
    """What to tell of a request that has ended."""
    base = str(resolve(service.public_url)).rstrip("/")
    definition, file = datasets.get(row.dataset), row.file
    download, until = None, None
    if file is not None and row.expired_at is None:
        public = definition is not None and definition.spec.links is Links.PUBLIC
        expires = links.PUBLIC if public else _link_expiry(row, service)
        until = None if public else datetime.fromtimestamp(expires, UTC)
        download = base + links.sign(link_key, row.id, file.name, expires)
    return Notice(
        id=row.id,
        dataset=row.dataset,
        title=" ".join((definition.title if definition else row.dataset).split()),
        environment=row.environment,
        succeeded=row.state == "succeeded",
        summary=row.summary,
        rows=row.rows,
        page=f"{base}/requests/{row.id}",
        download=download,
        link_until=until,
        file_name=file.name if file else None,
        size=file.proof.raw_size if file else None,
        sha256=file.proof.raw_sha256 if file else None,
        expires_at=row.expires_at,
        error=row.error or "it ended without a reason",
        hint=row.hint or "",
        finished_at=row.finished_at,
    )


def _link_expiry(row: RequestRow, service: ServiceSpec) -> int:
    """Seconds since 1970: a link does not outlive its file."""
    latest = time.time() + service.link_minutes * 60
    return int(min(latest, row.expires_at.timestamp()) if row.expires_at else latest)


def mail_of(notice: Notice, delivery: Delivery, sender: str) -> EmailMessage:
    """The mail. Its Message-ID is the same at each attempt, so that a mailbox may drop what arrives twice."""
    message = EmailMessage()
    what = "is ready" if notice.succeeded else "failed"
    message["Subject"] = f"Your export of {notice.title} {what}"
    message["From"] = sender
    message["To"] = delivery.target
    message["Date"] = format_datetime(datetime.now(UTC))
    message["Message-ID"] = f"<{notice.id}.{delivery.id}@{domain_of(sender)}>"
    # No vacation notice should answer (RFC 3834).
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(_rendered("notice.txt", notice))
    message.add_alternative(_rendered("notice.html", notice), subtype="html")
    return message


def webhook_of(notice: Notice, delivery: Delivery) -> bytes:
    """The body of a call."""
    data: dict[str, Any] = {
        "id": notice.id,
        "dataset": notice.dataset,
        "environment": notice.environment,
        "status": "Succeeded" if notice.succeeded else "Failed",
        "summary": notice.summary,
        "rows": notice.rows,
        "finished_at": _iso(notice.finished_at),
        "links": {"page": notice.page, "download": notice.download},
    }
    if notice.succeeded:
        data["file"] = {"name": notice.file_name, "bytes": notice.size, "sha256": notice.sha256}
        data["expires_at"] = _iso(notice.expires_at)
    else:
        data["error"] = {"message": notice.error, "hint": notice.hint}
    return json.dumps({"type": delivery.event, "timestamp": _iso(notice.finished_at), "data": data}).encode()


def _iso(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat(timespec="seconds") if moment else None


def _rendered(name: str, notice: Notice) -> str:
    return str(_templates().get_template(name).render(n=notice))


@cache
def _templates() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("export_pipelines.worker"),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(size=_size, moment=_moment)
    return made


def _size(value: int) -> str:
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:,.0f} {unit}" if unit == "B" else f"{amount:,.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def _moment(value: datetime) -> str:
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
