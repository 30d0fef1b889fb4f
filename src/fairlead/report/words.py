"""Numbers and verdicts as they are printed, the same on the terminal, the page and the card."""

from __future__ import annotations

from fairlead import stats
from fairlead.measures import MEASURES
from fairlead.report.run import Effect, Row, Run

ARROW = {"higher": "↑", "lower": "↓"}
_Z = 1.959963984540054  # two-sided 95%

# What this version does not measure at all, whatever the run.
NEVER_MEASURED = ("inner alignment", "recognition of harm apart from refusal")


def title(measure: str) -> str:
    known = MEASURES.get(measure)
    return known.title if known else measure.replace("_", " ")


def number(x: float, places: int = 2) -> str:
    """A fixed number of places, a true minus, and no negative zero."""
    text = f"{x:.{places}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def signed(x: float) -> str:
    text = number(x)
    return text if text.startswith("−") or float(text) == 0 else f"+{text}"


def value(row: Row | None) -> str:
    if row is None:
        return "–"
    return "no value" if row.value is None else number(row.value)


def bound(row: Row) -> float | None:
    """Where a rate is 0 or 1 exactly: the 95% one-sided limit of the other end; None elsewhere.

    The two-sided limit in the row already knows how many independent cases the sample is worth (clusters); it is read
    back from there as Wilson's n = z^2 (1 - high) / high. Missing answers are in the two-sided limits only, so with
    any missing there is no such bound.
    """
    if row.missing or row.value is None or row.low < 0:
        return None
    width = row.high if row.value == 0 else 1 - row.low if row.value == 1 else 0.0
    if not 0 < width < 1:
        return None
    return stats.zero_event_bound(_Z**2 * (1 - width) / width)


def interval(row: Row | None) -> str:
    """`[0.93, 0.98]`, or a one-sided bound where nothing (or everything) happened: `[≤ 0.013]`, `[≥ 0.987]`."""
    if row is None or row.value is None:
        return ""
    limit = bound(row)
    if limit is None:
        return f"[{number(row.low)}, {number(row.high)}]"
    return f"[≤ {number(limit, 3)}]" if row.value == 0 else f"[≥ {number(1 - limit, 3)}]"


def gain(effect: Effect, better: str) -> tuple[float, float, float] | None:
    """(change, low, high) turned so that more is better; None where nothing was compared."""
    if effect.change is None:
        return None
    return (
        (effect.change, effect.low, effect.high) if better == "higher" else (-effect.change, -effect.high, -effect.low)
    )


def verdict(effect: Effect | None, better: str, *, long: bool = False) -> str:
    """`better by 0.93 [0.89, 0.96]`, `worse by …`, or `cannot tell`; `long` says between what it cannot tell."""
    if effect is None:
        return "not compared"
    found = gain(effect, better)
    if found is None:
        return "cannot tell: no case was scored in both" if long else "cannot tell"
    change, low, high = found
    if effect.verdict == "better":
        return f"better by {number(change)} [{number(low)}, {number(high)}]"
    if effect.verdict == "worse":
        return f"worse by {number(-change)} [{number(-high)}, {number(-low)}]"
    return f"cannot tell: {_between(low, high)}" if long else "cannot tell"


def _between(low: float, high: float) -> str:
    if low < 0 < high:
        return f"between {number(-low)} worse and {number(high)} better"
    if low == high == 0:
        return "no case differs"
    if high <= 0:
        return f"between {number(-high)} and {number(-low)} worse"
    return f"between {number(low)} and {number(high)} better"


def evidence(flag: bool | str) -> str:
    if flag is True:
        return "independent"
    return "related" if flag == "related" else "no evidence"


def sorted_out(run: Run) -> dict[str, list[str]]:
    """Measures by what happened to them from the first layer to the last: better, worse, cannot tell, not compared."""
    groups: dict[str, list[str]] = {"better": [], "worse": [], "cannot tell": [], "not compared": []}
    for measure in run.measures:
        effect = run.effect(measure)
        groups["not compared" if effect is None else effect.verdict].append(measure)
    return groups


def not_measured(run: Run) -> list[str]:
    """What has no row: absent measures of the default run, what the run itself names, and what nobody here measures."""
    absent = [known.title for id, known in MEASURES.items() if id not in run.measures]
    named = run.more.get("not_measured") or []
    return list(dict.fromkeys([*absent, *(str(item) for item in named), *NEVER_MEASURED]))


def slips(run: Run) -> dict[str, int]:
    """How many exchanges fail at the last layer, by measure; measures without any are left out."""
    counts = {measure: len(run.slipped(measure)) for measure in run.measures}
    return {measure: n for measure, n in counts.items() if n}
