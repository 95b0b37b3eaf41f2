"""To whom files are encrypted: public keys (recipients) of the `age` format."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from export_pipelines.specs.model import SpecModel


class RecipientsFileError(ValueError):
    """The file of recipients cannot be read, or has a line that is none."""


class EncryptionSpec(SpecModel):
    """Encryption at rest: files are readable only with a private identity of one of the recipients."""

    recipients: tuple[str, ...] = ()
    """Public keys, `age1…` (made by `age-keygen`). Each of their owners can read the files."""
    recipients_file: str | None = Field(default=None, min_length=1)
    """An absolute path (`~` allowed) of a file with more of them, one a line, `#` for comments. Read at each export."""

    @field_validator("recipients")
    @classmethod
    def _are_recipients(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for number, value in enumerate(values, start=1):
            if problem := recipient_problem(value):
                # The value is not repeated: it may be a private key by mistake.
                raise ValueError(f"number {number} is not a recipient: {problem}")
        return values

    @field_validator("recipients_file")
    @classmethod
    def _is_a_file_of_recipients(cls, value: str | None) -> str | None:
        if value is not None:
            recipients_in(value)
        return value

    @model_validator(mode="after")
    def _somebody(self) -> EncryptionSpec:
        if not self.recipients and self.recipients_file is None:
            raise ValueError("give `recipients` or `recipients_file`; without either nobody could read the files")
        return self


def recipients_in(file: str) -> tuple[str, ...]:
    """The recipients of a file, one a line. Raises RecipientsFileError."""
    path = Path(os.path.expanduser(file))  # noqa: PTH111  # Path.expanduser raises for an unknown user
    if not path.is_absolute():
        raise RecipientsFileError(f"{file} is not an absolute path")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise RecipientsFileError(f"{file} cannot be read: {reason}") from None
    found = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    found = [(number, line) for number, line in found if not line.startswith("#")]
    for number, line in found:
        if problem := recipient_problem(line):
            raise RecipientsFileError(f"{file}:{number} is not a recipient: {problem}")
    if not found:
        raise RecipientsFileError(f"{file} has no recipients")
    return tuple(line for _, line in found)


def recipient_problem(text: str) -> str:
    """Why a text is no recipient; empty if it is one."""
    from pyrage import RecipientError, x25519

    if text.upper().startswith("AGE-SECRET-KEY-"):
        return "it is a private identity, which belongs to no definition"
    try:
        x25519.Recipient.from_str(text)
    except RecipientError as error:
        return f"{error} (it starts with age1)"
    return ""
