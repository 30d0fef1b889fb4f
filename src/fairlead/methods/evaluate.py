"""Held-out preference accuracy of a model, beside what knows nothing of the replies' content.

A model that has learnt "longer is better", or who wrote which reply, scores well on many published sets without having
learnt anything else. So its accuracy stands beside two baselines, longer-wins and writer-only, on all pairs and on
pairs of matched length, each with n and an interval clustered by prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fairlead.engine.logprobs import score
from fairlead.exchange import Message, Preference
from fairlead.feedback.formats import PreferenceSet
from fairlead.methods.rows import TooLong, Trainable, pair_rows
from fairlead.stats import Interval, rate

Margins: TypeAlias = list[float | None]
"""Per pair: above 0 where chosen is put first, below 0 where rejected is, 0 undecided, None where nothing is known."""

Score: TypeAlias = Literal["implicit", "sum", "mean"]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How often the chosen reply was put first. `undecided` pairs (margin 0) and `missing` ones count half a hit."""

    scorer: str
    pairs: str
    accuracy: Interval
    undecided: int
    missing: int

    @property
    def clear_of_chance(self) -> bool:
        """Whether the interval lies above one half."""
        return self.accuracy.low > 0.5

    def line(self) -> str:
        """One row of a table."""
        a = self.accuracy
        more = "".join(
            f", {n:,} {what} counted half"
            for n, what in ((self.undecided, "undecided"), (self.missing, "missing"))
            if n
        )
        return f"{self.pairs:<15} {self.scorer:<13} {a.value:.3f} [{a.low:.3f}, {a.high:.3f}]  n = {a.n:,}{more}"


def preference_accuracy(scorer: str, pairs: str, margins: Margins, groups: Sequence[str]) -> Accuracy:
    """Accuracy from margins, clustered by group. Raises `ValueError` where there is no pair."""
    if not margins:
        raise ValueError(f"{scorer}: no {pairs} to score")
    hits = [0.5 if m is None or m == 0 else float(m > 0) for m in margins]
    missing = sum(m is None for m in margins)
    return Accuracy(scorer, pairs, rate(hits, list(groups)), sum(m == 0 for m in margins), missing)


# ------------------------------------------------------------------------------------------------ the scorers


def model_margins(
    model: Trainable,
    pairs: Sequence[Preference],
    *,
    reference: Trainable | None = None,
    by: Score = "implicit",
    too_long: TooLong = "refuse",
    tokens_per_batch: int = 16_384,
) -> Margins:
    """A model's margin on each pair, in nats.

    by    "implicit": log-ratio to `reference` of chosen minus that of rejected (the reward DPO learns, over beta);
          "sum": log-prob of the whole reply; "mean": log-prob per token
    Pairs left out for their length (too_long="skip") have the margin None.
    """
    if by == "implicit" and reference is None:
        raise ValueError("an implicit reward is a log-ratio: give the reference model, or score by 'sum' or 'mean'")
    rows = pair_rows(model, pairs, too_long=too_long)
    got = score(model.module, rows.trees, tokens_per_batch)
    value_R = got.mean_R() if by == "mean" else got.sum_R()
    if by == "implicit" and reference is not None:
        value_R = value_R - score(reference.module, rows.trees, tokens_per_batch).sum_R()
    margin_B = value_R.view(-1, 2)[:, 0] - value_R.view(-1, 2)[:, 1]
    margins: Margins = [None] * len(pairs)
    for row, margin in zip(rows.source, margin_B.tolist(), strict=True):
        margins[row] = margin
    return margins


def longer_wins(pairs: Sequence[Preference]) -> Margins:
    """The baseline that reads nothing but lengths, in characters."""
    return [float(reply_length(p.chosen) - reply_length(p.rejected)) for p in pairs]


def writer_only(train: PreferenceSet, test: PreferenceSet) -> Margins:
    """The baseline that knows only who wrote which reply: the writer that won more often in training, head to head.

    Two writers that never met in training, and pairs whose file names no writers, have no margin.
    """
    wins: defaultdict[tuple[str, str], float] = defaultdict(float)
    for row, writers in zip(train.rows, train.generators, strict=True):
        if writers is not None:
            wins[writers] += row.strength
            wins[writers[1], writers[0]] += 1.0 - row.strength
    met = set(wins)
    return [wins[w] - wins[w[1], w[0]] if w is not None and w in met else None for w in test.generators]


# ------------------------------------------------------------------------------------------------- the pairs


def reply_length(reply: Sequence[Message]) -> int:
    """Characters of a reply's text."""
    return sum(len(m.text) for m in reply)


def length_matched(pairs: Sequence[Preference], within: float = 0.1) -> list[int]:
    """Indices of pairs whose shorter reply is at most `within` shorter than the longer one, in characters."""
    lengths = [sorted((reply_length(p.chosen), reply_length(p.rejected))) for p in pairs]
    return [i for i, (short, long) in enumerate(lengths) if long and short >= (1.0 - within) * long]


def decided(pairs: Sequence[Preference]) -> list[int]:
    """Indices of pairs that have a better reply: a tie has no right answer to be counted."""
    return [i for i, p in enumerate(pairs) if p.strength > 0.5]


def accuracy_table(scorers: dict[str, Margins], test: PreferenceSet, *, within: float = 0.1) -> list[Accuracy]:
    """Every scorer on all decided pairs, and on those of matched length; margins run along `test.rows`."""
    known = decided(test.rows)
    matched = set(length_matched(test.rows, within))
    table = []
    for name, rows in (("all", known), ("length-matched", [i for i in known if i in matched])):
        for scorer, margins in scorers.items():
            if rows:
                picked = [margins[i] for i in rows]
                table.append(preference_accuracy(scorer, name, picked, [test.groups[i] for i in rows]))
    return table
