"""How much one may ask, counted in this process: with several (`--workers`), each counts for itself."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from export_pipelines.api.users import Refused
from export_pipelines.specs.service import RateSpec

AUDITED_REFUSALS = "30/minute"
"""Refusals of one address that reach the audit log; a flood of them must not fill it."""

_TELL = {
    "requests_per_user": "calls of this user",
    "requests_per_address": "calls from this address",
    "pages_per_user": "pages of this client",
    "pages_per_address": "pages from this address",
    "exports_per_user": "requests for exports of this user",
    "failed_logins_per_address": "failed logins from this address",
}


@dataclass(frozen=True)
class Left:
    """What may still be asked, for the headers RateLimit-…; `reset` in seconds."""

    limit: int
    remaining: int
    reset: int

    def headers(self) -> dict[str, str]:
        """As headers of HTTP."""
        return {
            "ratelimit-limit": str(self.limit),
            "ratelimit-remaining": str(self.remaining),
            "ratelimit-reset": str(self.reset),
        }


class Limits:
    """The rate limits of the service. Safe for threads."""

    def __init__(self, rates: RateSpec) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._rates = {name: parse_many(getattr(rates, name)) for name in RateSpec.model_fields}
        self._audited = parse_many(AUDITED_REFUSALS)

    def take(self, rate: str, key: str) -> Left:
        """Count a call.

        Raises:
            Refused: it is one too many.
        """
        for item in self._rates[rate]:
            if not self._limiter.hit(item, rate, key):
                self._refuse(rate, item, key)
        return min((self._left(item, rate, key) for item in self._rates[rate]), key=lambda left: left.remaining)

    def look(self, rate: str, key: str) -> None:
        """Count nothing. Raises Refused if a call would be one too many."""
        for item in self._rates[rate]:
            if not self._limiter.test(item, rate, key):
                self._refuse(rate, item, key)

    def to_be_audited(self, address: str) -> bool:
        """Whether a refusal of an address is still told to the audit log."""
        return all(self._limiter.hit(item, "audited", address) for item in self._audited)

    def _left(self, item: RateLimitItem, rate: str, key: str) -> Left:
        found = self._limiter.get_window_stats(item, rate, key)
        return Left(item.amount, max(0, found.remaining), max(1, math.ceil(found.reset_time - time.time())))

    def _refuse(self, rate: str, item: RateLimitItem, key: str) -> None:
        left = self._left(item, rate, key)
        raise Refused(
            f"too many {_TELL[rate]}: {item.amount} in {item.multiples} {item.GRANULARITY.name} are allowed",
            hint=f"wait {left.reset} s",
            status=429,
            retry_after=left.reset,
        )
