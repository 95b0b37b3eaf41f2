"""How long a request has said nothing while we listened."""

from __future__ import annotations

from datetime import datetime

_REMEMBERED_SECONDS = 24 * 3600.0
"""Longer than anybody may be silent."""


class Silence:
    """Silence of those at work, as far as this process can vouch for it. Times are seconds since 1970.

    What we missed ourselves is not their silence: when the machine was suspended or starved, or the catalog was away,
    they stood still as we did, and have yet to get their time to speak. Of the time between two looks, `most` seconds
    count.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._now: float | None = None
        self._missed: list[tuple[float, float]] = []
        """When we looked again, and the seconds before it that do not count."""

    def look(self, now: float) -> None:
        """Listen: to be called before what they have said is read."""
        missed = now - self._now - self._most if self._now is not None else 0.0
        self._missed = [each for each in self._missed if each[0] > now - _REMEMBERED_SECONDS]
        if missed > 0:
            self._missed.append((now, missed))
        self._now = now

    def since(self, moment: datetime | None) -> float:
        """Seconds of silence since a word, as of the last look; 0 without a word or a look."""
        if moment is None or self._now is None:
            return 0.0
        said = moment.timestamp()
        return self._now - said - sum(missed for at, missed in self._missed if at > said)
