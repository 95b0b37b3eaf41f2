"""How long a request is taken to have said nothing."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from export_pipelines.worker.silence import Silence


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def test_silence_is_counted_from_look_to_look() -> None:
    silence = Silence(most=15)
    for now in range(1000, 1071, 2):
        silence.look(now)
    assert silence.since(at(1000)) == 70
    assert silence.since(None) == 0


def test_what_was_not_listened_to_is_no_silence() -> None:
    silence = Silence(most=15)
    silence.look(1000)
    silence.look(9000)
    assert silence.since(at(999)) == 16
    for now in range(9002, 9051, 2):
        silence.look(now)
    assert silence.since(at(999)) == 66
    assert silence.since(at(9001)) == 49


@pytest.mark.parametrize("back", [10, 10_000])
def test_a_clock_that_is_put_back_makes_nobody_silent(back: int) -> None:
    silence = Silence(most=15)
    silence.look(20_000)
    silence.look(20_000 - back)
    assert silence.since(at(19_999)) <= 0


def test_the_first_look_believes_what_it_finds() -> None:
    silence = Silence(most=15)
    assert silence.since(at(0)) == 0
    silence.look(100)
    assert silence.since(at(0)) == 100
