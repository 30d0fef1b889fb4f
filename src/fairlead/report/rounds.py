"""Harm per round of critique and revision: as a chart in the page, and by itself as `layers/NAME/rounds.svg`.

One line for each judge that read the rounds, with 95% intervals. The critic that drove them is dashed: its view is what
they were optimised for. The rows come from `revisions` in results.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fairlead.report import words
from fairlead.report.chart import BOTTOM, CAP, DOT, HEIGHT, WIDTH, Scale, line, n2
from fairlead.report.run import Run, read_run
from fairlead.report.visible import visible

SPREAD = 9.0  # between the marks of judges in one round, so that intervals do not cover one another
MOST = 4  # lines that the style sheet has looks for; more than these are told in the table alone


@dataclass(frozen=True, slots=True)
class Point:
    """One judge's share of broken replies after one round."""

    value: float | None
    low: float
    high: float
    k: int
    n: int
    missing: int


@dataclass(frozen=True, slots=True)
class Line:
    """One judge's view, round by round. `evidence` as in the measures: true, "related" or false."""

    judge: str
    evidence: bool | str
    points: tuple[Point, ...]

    @property
    def said(self) -> str:
        """0.82 → 0.44 → 0.21"""
        return " → ".join("–" if p.value is None else words.number(p.value) for p in self.points)

    @property
    def about(self) -> str:
        known = {True: "independent", "related": "related"}
        return known.get(self.evidence, "drove the revisions, no evidence")


def lines_of(row: Mapping[str, Any]) -> tuple[Line, ...]:
    """The judges of one layer's `revisions` row."""
    return tuple(
        Line(
            str(one["judge"]),
            one["evidence"],
            tuple(
                Point(p["value"], float(p["low"]), float(p["high"]), int(p["k"]), int(p["n"]), int(missing))
                for p, missing in zip(one["broken"], one["missing"], strict=True)
            ),
        )
        for one in row.get("series") or []
    )


def shown(run: Run) -> list[dict[str, Any]]:
    """What the page shows of each layer that revised."""
    found = []
    for row in run.more.get("revisions") or []:
        lines = lines_of(row)
        if lines:
            found.append(
                {
                    "layer": str(row.get("layer")),
                    "lines": lines,
                    "rounds": range(len(lines[0].points)),
                    "chart": rounds_chart(lines),
                    "evasion": list(row.get("evasion") or []),
                }
            )
    return found


def rounds_chart(lines: Sequence[Line]) -> Markup:
    """The picture alone, without any text of the run: classes `s0`, `s1`, … in the order of `lines`."""
    said = "; ".join(f"{one.judge} {one.said}" for one in lines)
    head = Markup('<svg class="chart rounds" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        n2(WIDTH), n2(HEIGHT), visible(f"share of replies broken, by round: {said}")
    )
    return Markup("").join([head, _drawing(lines), Markup("</svg>")])


def _drawing(lines: Sequence[Line]) -> Markup:
    scale = Scale(0.0, 1.0)
    parts = [line(0, scale.y(v), WIDTH, scale.y(v), "axis" if v == 0 else "grid") for v in scale.lines]
    for number, one in enumerate(lines[:MOST]):
        step = WIDTH / max(1, len(one.points))
        shift = (number - (min(len(lines), MOST) - 1) / 2) * SPREAD
        places = [((k + 0.5) * step + shift, point) for k, point in enumerate(one.points)]
        path = " ".join(f"{n2(x)},{n2(scale.y(p.value))}" for x, p in places if p.value is not None)
        weak = "" if one.evidence is True else " weak"
        parts.append(Markup('<g class="series s{}{}"><polyline class="line" points="{}"/>').format(number, weak, path))
        for x, p in places:
            if p.value is None:
                continue
            low, high = scale.y(p.low), scale.y(p.high)
            parts += [line(x, low, x, high, "bar"), *(line(x - CAP / 2, y, x + CAP / 2, y, "bar") for y in (low, high))]
            parts.append(
                Markup('<circle class="dot" cx="{}" cy="{}" r="{}"/>').format(n2(x), n2(scale.y(p.value)), n2(DOT))
            )
        parts.append(Markup("</g>"))
    return Markup("").join(parts)


# --------------------------------------------------------------------------------------------- a file by itself

_INK = ("#586472", "#0a69b0", "#bb3e03", "#6b4fa0")
_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#17202a}.grid,.axis{stroke:#d5d1c8}.line{fill:none;stroke-width:1.75}"
    ".bar{stroke-width:1.25}.dot{fill:#fff;stroke-width:2}.weak .line{stroke-dasharray:5 4}"
    + "".join(f".s{k} *{{stroke:{ink}}}.k{k}{{fill:{ink};font-weight:600}}" for k, ink in enumerate(_INK))
)


def write_rounds(folder: str | Path) -> list[Path]:
    """`layers/NAME/rounds.svg` for every layer of the run in `folder` that revised."""
    found = []
    for row in read_run(folder).more.get("revisions") or []:
        lines = lines_of(row)
        place = Path(folder) / "layers" / str(row.get("layer"))
        if lines and place.is_dir():
            path = place / "rounds.svg"
            path.write_text(alone(lines, str(row.get("layer"))), encoding="utf-8")
            found.append(path)
    return found


def alone(lines: Sequence[Line], layer: str) -> str:
    """The chart as a file of its own: title, axis and legend in words."""
    left, top, below = 34.0, 26.0, 22.0 + 16.0 * len(lines)
    rounds = len(lines[0].points)
    texts = [(0.0, 12.0, f"{layer}: share of replies broken, by round (95% intervals)", "")]
    texts += [(left - 26, top + Scale(0.0, 1.0).y(v) + 4, words.number(v, 1), "") for v in (0.0, 0.5, 1.0)]
    texts += [
        (left + (k + 0.5) * WIDTH / rounds - 18, top + BOTTOM + 18, f"round {k}" if k else "sampled", "")
        for k in range(rounds)
    ]
    texts += [
        (left, top + BOTTOM + 40 + 16 * k, f"{one.judge}: {one.said} (n {one.points[-1].n:,}; {one.about})", f"k{k}")
        for k, one in enumerate(lines)
    ]
    words_ = Markup("").join(
        Markup('<text class="{}" x="{}" y="{}">{}</text>').format(kind, n2(x), n2(y), visible(text))
        for x, y, text, kind in texts
    )
    width, height = WIDTH + left + 160, top + HEIGHT + below + 14
    return str(
        Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" width="{}" height="{}">').format(
            n2(width), n2(height), n2(width * 1.5), n2(height * 1.5)
        )
        + Markup("<style>{}</style>").format(Markup(_STYLE))
        + Markup('<g transform="translate({} {})">').format(n2(left), n2(top))
        + _drawing(lines)
        + Markup("</g>")
        + words_
        + Markup("</svg>\n")
    )
