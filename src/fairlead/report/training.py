"""What was trained with: reward models and how often they are right, whose labels, and how reinforcement went.

A curve is one number of one layer over its steps, as inline SVG in the looks of the other charts; the words and the
numbers stand beside it as HTML.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fairlead.report import words
from fairlead.report.chart import BOTTOM, HEIGHT, TOP, WIDTH
from fairlead.report.run import Run
from fairlead.report.visible import visible

_TITLES = {
    "reward": ("reward", "mean of a step's replies"),
    "kl": ("KL to the start", "nats per reply"),
    "length": ("length", "tokens per reply"),
    "cost": ("cost", "mean, held under the budget"),
    "multiplier": ("multiplier", "of the cost"),
}


@dataclass(frozen=True, slots=True)
class Curve:
    """One number over the steps. `top` and `low` are the ends of its scale; `since` the first step that has it."""

    title: str
    unit: str
    svg: Markup
    top: str
    low: str
    first: str
    last: str
    since: int
    steps: int


def curves(run: Run) -> list[tuple[str, list[Curve]]]:
    """By layer: the reward and each of its parts where there are several, the cost, the KL, the length."""
    found = []
    training = run.more.get("training")
    for layer, rows in (training if isinstance(training, Mapping) else {}).items():
        steps = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, Sequence) else []
        parts = list(dict.fromkeys(name for row in steps for name in row if name.startswith("reward.")))
        names = ["reward", *(parts if len(parts) > 1 else []), "cost", "multiplier", "kl", "length"]
        drawn = [curve for name in names if (curve := _curve(name, steps)) is not None]
        if drawn:
            found.append((str(layer), drawn))
    return found


def _curve(name: str, steps: Sequence[Mapping[str, Any]]) -> Curve | None:
    points = [(n, float(row[name])) for n, row in enumerate(steps, start=1) if _number(row.get(name))]
    if not points:
        return None
    values = [value for _, value in points]
    low, top = min(values), max(values)
    if top - low < 1e-9:
        low, top = low - 0.5, top + 0.5
    title, unit = _TITLES.get(name, (name.removeprefix("reward."), "part of the reward"))
    label = f"{title}: {values[0]:.3g} at step {points[0][0]}, {values[-1]:.3g} at step {points[-1][0]}"
    return Curve(
        title, unit, _drawn(points, len(steps), low, top, label), _short(top), _short(low), _short(values[0]),
        _short(values[-1]), points[0][0], len(steps),
    )  # fmt: skip


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: float) -> str:
    return words.number(value, 2 if abs(value) < 10 else 0)


def _drawn(points: Sequence[tuple[int, float]], steps: int, low: float, top: float, label: str) -> Markup:
    """The curve from left to right; where it begins later than the first step, a line stands there."""

    def x(step: int) -> float:
        return 2 + (step - 1) / max(steps - 1, 1) * (WIDTH - 4)

    def y(value: float) -> float:
        return BOTTOM - (value - low) / (top - low) * (BOTTOM - TOP)

    path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
    begins = points[0][0]
    line = Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>')
    parts = [
        Markup('<svg class="chart curve" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">').format(
            WIDTH, HEIGHT, visible(label)
        ),
        line.format("grid", 0, TOP, f"{WIDTH:g}", TOP),
        line.format("grid", 0, BOTTOM, f"{WIDTH:g}", BOTTOM),
    ]
    if begins > 1:
        parts.append(line.format("zero", f"{x(begins):.1f}", TOP, f"{x(begins):.1f}", BOTTOM))
    parts.append(Markup('<polyline class="path" points="{}"/>').format(path))
    last = points[-1]
    parts.append(
        Markup('<g class="mark last"><circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3"/></g></svg>').format(
            x(last[0]), y(last[1])
        )
    )
    return Markup("").join(parts)


def rewards(run: Run) -> list[dict[str, Any]]:
    """Reward models of the run: on whose labels, who optimises them, how often they are right."""
    found = []
    for row in run.more.get("rewards") or []:
        if not isinstance(row, Mapping):
            continue
        accuracy = [_accurate(item) for item in row.get("accuracy") or [] if isinstance(item, Mapping)]
        found.append({
            "name": str(row.get("name")), "kind": str(row.get("kind")), "summary": str(row.get("summary") or ""),
            "by": ", ".join(map(str, row.get("optimised_by") or [])), "lineage": str(row.get("lineage") or "")[:8],
            "accuracy": accuracy,
        })  # fmt: skip
    return found


def _accurate(item: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """Scorer, pairs, value, interval, n."""
    value, low, high = (words.number(float(item[key]), 3) for key in ("value", "low", "high"))
    return str(item["scorer"]), str(item["pairs"]), value, f"[{low}, {high}]", f"{item['n']:,}"


def labels(run: Run) -> list[tuple[str, str, str]]:
    """Stage, whose labels, how many."""
    found = []
    for row in run.more.get("stages") or []:
        counts = row.get("labels") if isinstance(row, Mapping) else None
        for source, count in (counts if isinstance(counts, Mapping) else {}).items():
            found.append((str(row.get("layer")), str(source), f"{count:,}"))
    return found
