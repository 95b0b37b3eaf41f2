"""Sending mail by SMTP."""

from __future__ import annotations

import re
import smtplib
import ssl
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import parseaddr
from typing import Literal

TIMEOUT = 20.0
"""Seconds to wait for each answer of a mail server."""

_LOCAL = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"({_LOCAL})@({_LABEL}(?:\.{_LABEL})*)", re.ASCII)


@dataclass(frozen=True)
class MailServer:
    """A mail server and how to log in to it."""

    host: str
    port: int = 25
    security: Literal["none", "starttls", "tls"] = "none"
    user: str | None = None
    password: str | None = field(default=None, repr=False)


def send_mail(server: MailServer, message: EmailMessage) -> None:
    """Send a message to those that its headers name. The server's certificate is checked.

    Raises:
        OSError: the server cannot be reached, or not by TLS.
        smtplib.SMTPException: it refuses.
    """
    context = ssl.create_default_context()
    if server.security == "tls":
        session: smtplib.SMTP = smtplib.SMTP_SSL(server.host, server.port, timeout=TIMEOUT, context=context)
    else:
        session = smtplib.SMTP(server.host, server.port, timeout=TIMEOUT)
    with session:
        if server.security == "starttls":
            session.starttls(context=context)
        if server.user and server.password:
            session.login(server.user, server.password)
        session.send_message(message)


def refused_for_good(error: Exception) -> bool:
    """Whether a server will never take this message: it refused the recipient or the message with 5xx."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return all(code >= 500 for code, _ in error.recipients.values())
    return isinstance(error, smtplib.SMTPDataError) and error.smtp_code >= 500


def is_address(text: str) -> bool:
    """Whether it is a plain e-mail address, in ASCII: no name, no quotes, and nothing that could end a header."""
    match = _ADDRESS.fullmatch(text)
    return match is not None and len(text) <= 254 and len(match[1]) <= 64


def domain_of(address: str) -> str:
    """The domain of an address, which may stand behind a name as in `Exports <exports@example.org>`."""
    return parseaddr(address)[1].rpartition("@")[2].lower() or "localhost"
