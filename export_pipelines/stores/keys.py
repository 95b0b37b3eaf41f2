"""Which keys an object may have: the same in every store, so that an archive can move from one to another."""

from __future__ import annotations

import re

from export_pipelines.errors import StoreError

TEMPORARY = ".tmp-"
"""What the name of everything unpublished begins with; no part of a key may."""

MAX_KEY_BYTES = 1024
"""The limit of S3, prefix of the store included."""

MAX_PART_BYTES = 255
"""The limit of ext4, XFS, APFS and most other filesystems for one name."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_key(key: str) -> tuple[str, ...]:
    """The `/`-separated parts of a key that is fit for every store.

    Raises:
        StoreError: it is empty or absolute, has an empty, `.` or `..` part, a backslash or a control character, is not
            valid Unicode, is too long, or has a part which is reserved for temporaries.
    """
    reason = _what_is_wrong(key)
    if reason:
        raise StoreError(
            f"{key!r:.200} is not a key: {reason}",
            hint="a key is relative and /-separated, such as 'flights/2013-01-01/flights.csv.gz'",
        )
    return tuple(key.split("/"))


def check_prefix(prefix: str) -> tuple[str, ...]:
    """The whole folders that a prefix of keys names. Raises StoreError unless they could be those of a key."""
    folders, slash, _ = prefix.rpartition("/")
    return check_key(folders) if slash else ()


def is_key(key: str) -> bool:
    """Whether `check_key` takes it."""
    return not _what_is_wrong(key)


def _what_is_wrong(key: str) -> str:
    if not key:
        return "it is empty"
    if "\\" in key or _CONTROL.search(key):
        return "it has a backslash or a control character"
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if size > MAX_KEY_BYTES:
        return f"it is longer than {MAX_KEY_BYTES} bytes"
    return next(filter(None, map(_what_is_wrong_with_part, key.split("/"))), "")


def _what_is_wrong_with_part(part: str) -> str:
    if not part:
        return "it is absolute, or has an empty part"
    if part in (".", ".."):
        return f"it has a part {part!r}"
    if part.startswith(TEMPORARY):
        return f"parts that begin with {TEMPORARY!r} are reserved for temporaries"
    if len(part.encode()) > MAX_PART_BYTES:
        return f"it has a part longer than {MAX_PART_BYTES} bytes"
    return ""
