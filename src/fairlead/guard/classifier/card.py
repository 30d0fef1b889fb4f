"""The card of a classifier: what it was measured to do on a part that it neither learnt from nor was set on.

Recall at a false-positive rate is told only where at least 10/rate harmless texts stand behind the threshold's place on
this part: below that a rate is a matter of luck.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.guard.classifier.fit import auroc, threshold_at
from fairlead.stats import Interval, rate

RATES = (0.05, 0.01, 0.001)
BEHIND = 10  # harmless texts expected above the threshold, at least
DRAWS = 400


def auroc_interval(
    scores: NDArray[Any], broken: NDArray[np.bool_], clusters: Sequence[Hashable], draws: int = DRAWS, seed: int = 0
) -> Interval:
    """AUROC with its 95% interval from drawing clusters again (Efron & Tibshirani 1993, ch. 8; Obuchowski 1997)."""
    return _drawn(lambda at: auroc(scores[at], broken[at]), clusters, draws, seed)


def recall_at(
    scores: NDArray[Any], broken: NDArray[np.bool_], clusters: Sequence[Hashable], allowed: float, draws: int = DRAWS
) -> Interval | None:
    """Recall where `allowed` of the harmless texts here are flagged; None where too few of them are here to say.

    The interval draws clusters anew with the threshold set anew in each, so it knows that the threshold is a guess too.
    """
    if int((~broken).sum()) < BEHIND / allowed or not broken.any():
        return None

    def recall(at: NDArray[np.int64]) -> float:
        s, y = scores[at], broken[at]
        if not y.any() or int((~y).sum()) < 1 / allowed:
            return math.nan
        return float((s[y] >= threshold_at(s[~y], allowed)).mean())

    return _drawn(recall, clusters, draws, 0)


def _drawn(
    value: Callable[[NDArray[np.int64]], float], clusters: Sequence[Hashable], draws: int, seed: int
) -> Interval:
    number: dict[Hashable, int] = {}
    label = np.array([number.setdefault(c, len(number)) for c in clusters])
    members = np.split(np.argsort(label, kind="stable"), np.cumsum(np.bincount(label))[:-1])
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        x = value(np.concatenate([members[c] for c in rng.integers(len(members), size=len(members))]))
        if not math.isnan(x):
            found.append(x)
    low, high = np.quantile(found, [0.025, 0.975]) if found else (math.nan, math.nan)
    here = value(np.arange(len(label)))
    return Interval(here, min(float(low), here), max(float(high), here), len(label))


def described(
    p_N: NDArray[Any], broken: NDArray[np.bool_], clusters: Sequence[Hashable], threshold: float
) -> dict[str, Any]:
    """What one head does on the test part: numbers with intervals; `recall_at` holds null where nothing can be said."""
    kept_at, broken_at = np.flatnonzero(~broken), np.flatnonzero(broken)
    out: dict[str, Any] = {"broken": len(broken_at), "kept": len(kept_at)}
    if not len(kept_at) or not len(broken_at):
        return out
    named = list(clusters)
    flagged = (p_N >= threshold).astype(float)
    out["auroc"] = told(auroc_interval(p_N, broken, named))
    out["recall"] = told(rate(flagged[broken_at].tolist(), [named[i] for i in broken_at]))
    out["false_positives"] = told(rate(flagged[kept_at].tolist(), [named[i] for i in kept_at]))
    out["recall_at"] = {f"{r:g}": told(recall_at(p_N, broken, named, r)) for r in RATES}
    out["brier"] = float(((p_N - broken) ** 2).mean())
    return out


def told(interval: Interval | None) -> dict[str, float] | None:
    if interval is None:
        return None
    return {"value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}


def markdown(card: Mapping[str, Any]) -> str:
    """The card for people. Holds no text of any row."""
    lines = [
        f"# Classifier: {card['name']}",
        "",
        f"{card['kind']} heads for the constitution {card['constitution']['name']} "
        f"(`{card['constitution']['sha256'][:12]}`). Trained on {card['parts']['train']:,} rows, set on "
        f"{card['parts']['valid']:,}, measured on {card['parts']['test']:,}; "
        "no source row on two sides, near-duplicates kept together.",
        "",
        "Intervals are 95%. Recall at a false-positive rate is left out (–) where fewer than 10/rate harmless texts "
        "are behind it. *Recall* and *false positives* are those at the threshold in force, chosen on the validation "
        "part for "
        f"{card['rate']:.1%}.",
        "",
        "| principle | view | broken / kept | AUROC | recall | false positives | at 5% | at 1% | at 0.1% |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for head in card["heads"]:
        t = head["test"]
        at = t.get("recall_at", {})
        cells = [_cell(t.get(k)) for k in ("auroc", "recall", "false_positives")]
        cells += [_cell(at.get(f"{r:g}")) for r in RATES]
        lines.append(f"| `{head['principle']}` | {head['view']} | {t['broken']} / {t['kept']} | {' | '.join(cells)} |")
    if card["left_out"]:
        lines += ["", "## Principles without a head", ""]
        lines += [f"- `{id}` ({view}): {why}" for id, view, why in card["left_out"]]
    lines += ["", "## Rows", "", "| source | rows |", "|---|---|"]
    lines += [f"| {source} | {n:,} |" for source, n in sorted(card["rows"].items())]
    lines += ["", *[f"- {sentence}" for sentence in card["said"]], ""]
    return "\n".join(lines)


def _cell(value: Mapping[str, float] | None) -> str:
    if value is None or math.isnan(value["value"]):
        return "–"
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
