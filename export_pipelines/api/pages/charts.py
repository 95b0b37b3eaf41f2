"""Plots as SVG, computed here and drawn by a template: no script, no other library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise

from export_pipelines.api.pages import texts

WIDTH, HEIGHT = 600, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 6, 8, 22
_STEPS = (1, 2, 2.5, 5, 10)
_WHOLE = (1, 2, 5, 10)


@dataclass(frozen=True)
class Series:
    """Values by day. `css` is the class that colours it."""

    label: str
    css: str
    values: Sequence[float | None]
    dashed: bool = False


@dataclass(frozen=True)
class Mark:
    """A bar or a point, with what it says when it is pointed at."""

    x: float
    y: float
    height: float
    css: str
    title: str


@dataclass
class Plot:
    """What the template draws. Units are those of the view box."""

    title: str
    days: Sequence[date]
    series: Sequence[Series]
    write: Callable[[float | None], str]
    bar_width: float = 0
    bars: list[Mark] = field(default_factory=list)
    points: list[Mark] = field(default_factory=list)
    paths: list[tuple[str, Series]] = field(default_factory=list)
    ticks: list[tuple[float, str]] = field(default_factory=list)
    labels: list[tuple[float, str]] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    base: int = HEIGHT - _BOTTOM

    @property
    def empty(self) -> bool:
        """Whether nothing is to be seen."""
        return not any(value for each in self.series for value in each.values)

    @property
    def table(self) -> list[tuple[date, list[str]]]:
        """The same as rows, newest first, of days on which something was."""
        rows = zip(self.days, *(each.values for each in self.series), strict=True)
        return [(day, [self.write(v) for v in values]) for day, *values in rows if any(values)][::-1]


def bars(
    title: str, days: Sequence[date], series: Sequence[Series], write: Callable[[float | None], str] = texts.number
) -> Plot:
    """A bar a day, the series on top of each other."""
    plot = Plot(title, days, series, write)
    sums = (sum(v or 0 for v in each) for each in zip(*(s.values for s in series), strict=True))
    top = _axes(plot, max(sums, default=0), whole=True)
    slot = (plot.right - plot.left) / max(len(days), 1)
    plot.bar_width = round(slot * 0.72, 2)
    for index, day in enumerate(days):
        below = 0.0
        for each in series:
            if not (value := each.values[index]):
                continue
            height = value / top * (plot.base - _TOP)
            below += height
            x = plot.left + slot * index + slot * 0.14
            plot.bars.append(_mark(x, plot.base - below, height, each, f"{day}: {each.label} {write(value)}"))
    return plot


def lines(
    title: str, days: Sequence[date], series: Sequence[Series], write: Callable[[float | None], str] = texts.number
) -> Plot:
    """A line a series, with gaps where there is nothing."""
    plot = Plot(title, days, series, write)
    top = _axes(plot, max((v for each in series for v in each.values if v is not None), default=0))
    slot = (plot.right - plot.left) / max(len(days), 1)
    for each in series:
        places = [
            None if v is None else (plot.left + slot * (n + 0.5), plot.base - v / top * (plot.base - _TOP))
            for n, v in enumerate(each.values)
        ]
        plot.paths.append((_path(places), each))
        for day, place, value in zip(days, places, each.values, strict=True):
            if place is not None and value:
                plot.points.append(_mark(*place, 0, each, f"{day}: {each.label} {write(value)}"))
    return plot


def _mark(x: float, y: float, height: float, series: Series, title: str) -> Mark:
    return Mark(round(x, 2), round(y, 2), round(height, 2), series.css, title)


def _path(places: Sequence[tuple[float, float] | None]) -> str:
    found = []
    for before, place in pairwise([None, *places]):
        if place is not None:
            found.append(f"{'M' if before is None else 'L'}{place[0]:.1f} {place[1]:.1f}")
    return " ".join(found)


def _axes(plot: Plot, most: float, *, whole: bool = False) -> float:
    """Set the ticks of both axes, at whole numbers for what is counted; the value at the top."""
    step = _step(max(1, most / 4) if whole else most / 4, _WHOLE if whole else _STEPS)
    count = max(1, -int(-most // step))
    for n in range(count + 1):
        y = plot.base - n / count * (plot.base - _TOP)
        plot.ticks.append((round(y, 1), plot.write(n * step)))
    slot = (plot.right - plot.left) / max(len(plot.days), 1)
    for index, day in enumerate(plot.days):
        if day.weekday() == 0:
            plot.labels.append((round(plot.left + slot * (index + 0.5), 1), f"{day.day} {day:%b}"))
    return step * count


def _step(least: float, steps: Sequence[float]) -> float:
    """A round number that is no less."""
    if least <= 0:
        return 1
    power = 1.0
    while power * 10 <= least:
        power *= 10
    while power > least:
        power /= 10
    return next(power * each for each in steps if power * each >= least * 0.9999)
