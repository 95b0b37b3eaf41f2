"""When a table is loaded, or a transform runs, by itself."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, field_validator

from export_pipelines.specs.model import SpecModel
from export_pipelines.specs.zones import Zone

_DAY_WINDOWS = {
    "morning": "04:00-08:00",
    "working_hours": "08:00-17:00",
    "evening": "17:00-22:00",
    "night": "22:00-04:00",
}
_DAY_WINDOW = re.compile(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d")
_UNITS = {"minute": 60, "hour": 3600, "day": 86_400}


class DaySpec(SpecModel):
    """Windows of the day in which it runs by itself."""

    windows: tuple[str, ...] = ()
    """`morning` (04:00-08:00), `working_hours` (08:00-17:00), `evening` (17:00-22:00), `night` (22:00-04:00), or
    `HH:MM-HH:MM`. Empty: always."""
    timezone: Zone = "UTC"
    """IANA name of their zone."""

    @field_validator("windows")
    @classmethod
    def _readable_windows(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            if each not in _DAY_WINDOWS and not _DAY_WINDOW.fullmatch(each):
                raise ValueError(f"{each!r} is no window of the day; write {', '.join(_DAY_WINDOWS)} or `HH:MM-HH:MM`")
        return value

    def contains(self, moment: datetime) -> bool:
        """Whether it runs by itself at a moment (zone-aware). A window whose end is not after its start goes on into
        the next day."""
        now = f"{moment.astimezone(ZoneInfo(self.timezone)):%H:%M}"
        bounds = [_DAY_WINDOWS.get(each, each).split("-") for each in self.windows]
        return not bounds or any(
            first <= now < last if first < last else now >= first or now < last for first, last in bounds
        )


def pause_length(text: str) -> timedelta:
    """A pause such as `23 hours` as a length. Raises ValueError."""
    if not re.fullmatch(r"\d{1,5} (minute|hour|day)s?", text):
        raise ValueError(f"{text!r} is no pause; write `30 minutes`, `23 hours` or `7 days`")
    number, unit = text.split()
    return timedelta(seconds=int(number) * _UNITS[unit.removesuffix("s")])


def _readable_pause(value: str) -> str:
    pause_length(value)
    return value


Pause = Annotated[str, AfterValidator(_readable_pause)]
"""Text of a pause."""
