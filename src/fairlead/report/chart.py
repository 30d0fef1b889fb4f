"""Dot-and-interval charts as inline SVG, written by hand: geometry here, looks in the style sheet (classes only).

One chart is one measure over the layers of a run. No text of the run stands inside the picture, so nothing can break
out of it; names and numbers stand beside it as HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fairlead.report.run import Row
from fairlead.report.visible import visible

WIDTH, HEIGHT = 320.0, 140.0
TOP, BOTTOM = 8.0, 132.0
DOT, CAP = 4.0, 5.0


@dataclass(frozen=True, slots=True)
class Scale:
    """Values to y: rates run from 0 to 1, differences of rates from -1 to 1."""

    low: float
    high: float

    def y(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return BOTTOM - (inside - self.low) / (self.high - self.low) * (BOTTOM - TOP)

    @property
    def lines(self) -> tuple[float, ...]:
        return (self.low, (self.low + self.high) / 2, self.high)


def chart(rows: Sequence[Row | None], *, label: str, mood: str = "", difference: bool = False) -> Markup:
    """One column per layer, in order; None where the layer was not measured. `mood` colours the last dot.

    label   what a screen reader says
    mood    better | worse | "" (cannot tell)
    """
    scale = Scale(-1.0, 1.0) if difference else Scale(0.0, 1.0)
    step = WIDTH / max(1, len(rows))
    centres = [(n + 0.5) * step for n in range(len(rows))]
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            n2(WIDTH), n2(HEIGHT), visible(label)
        )
    ]
    for value in scale.lines:
        kind = "axis" if value == 0 else "grid"
        parts.append(line(0, scale.y(value), WIDTH, scale.y(value), kind))
    points = [(x, scale.y(row.value)) for x, row in zip(centres, rows, strict=True) if row and row.value is not None]
    if len(points) > 1:
        path = " ".join(f"{n2(x)},{n2(y)}" for x, y in points)
        parts.append(Markup('<polyline class="path" points="{}"/>').format(path))
    last = len(rows) - 1
    for n, (x, row) in enumerate(zip(centres, rows, strict=True)):
        if row is not None:
            parts.append(_mark(row, x, scale, mood if n == last else "", last=n == last))
    return Markup("").join([*parts, Markup("</svg>")])


def _mark(row: Row, x: float, scale: Scale, mood: str, *, last: bool) -> Markup:
    names = " ".join(filter(None, ["mark", "last" if last else "", mood, "" if row.evidence is True else "weak"]))
    low, high = scale.y(row.low), scale.y(row.high)
    parts = [
        Markup('<g class="{}">').format(names),
        line(x, low, x, high, "bar"),
        line(x - CAP, low, x + CAP, low, "bar"),
        line(x - CAP, high, x + CAP, high, "bar"),
    ]
    if row.value is not None:
        parts.append(
            Markup('<circle class="dot" cx="{}" cy="{}" r="{}"/>').format(n2(x), n2(scale.y(row.value)), n2(DOT))
        )
    return Markup("").join([*parts, Markup("</g>")])


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """One straight stroke; `kind` is its class."""
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, n2(x1), n2(y1), n2(x2), n2(y2))


def change_bar(low: float, change: float | None, high: float, *, mood: str, label: str, reach: float) -> Markup:
    """A change and its interval about a zero line, turned so that right is better; `reach` is half of the scale."""
    width, height, middle = 160.0, 16.0, 80.0

    def x(value: float) -> float:
        return middle + min(max(value / reach, -1.0), 1.0) * (middle - 2)

    left, right = sorted((x(low), x(high)))
    parts = [
        Markup('<svg class="change" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            n2(width), n2(height), visible(label)
        ),
        line(0, height / 2, width, height / 2, "grid"),
        line(middle, 1, middle, height - 1, "zero"),
        Markup('<g class="mark last {}"><rect class="band" x="{}" y="3.5" width="{}" height="9" rx="1.5"/>').format(
            mood, n2(left), n2(max(right - left, 1.0))
        ),
    ]
    if change is not None:
        parts.append(line(x(change), 2, x(change), height - 2, "bar"))
    return Markup("").join([*parts, Markup("</g></svg>")])


def n2(x: float) -> str:
    """A coordinate with at most two places."""
    return f"{x:.2f}".rstrip("0").rstrip(".")
