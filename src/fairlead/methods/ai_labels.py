"""Label pairs of replies by a constitution: P(first better) of each pair, read from a critic by drawn principles.

Bai et al. 2022 (arXiv 2212.08073), section 4. A label is soft. Every pair is read in both orders and the readings
averaged, since a model that prefers the reply shown first would otherwise teach its habit; several principles may be
drawn for a pair, and their probabilities are averaged too. Where the pairs come from is not known here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, Self, TypeAlias, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Preference, preference
from fairlead.judges.critic import Compared
from fairlead.judges.protocol import Comparer, Judge
from fairlead.judges.twoway import sigmoid
from fairlead.methods.panel import PrincipleLike, judge_all, one_panel, read_all
from fairlead.methods.sampling import chance, pick
from fairlead.models.toolong import all_too_long

Pair: TypeAlias = tuple[Exchange, Exchange]

SUREST = 1e-3  # no verdict counts as surer than this: one certain and wrong would outvote all the others
REASONED = (0.4, 0.6)  # the bounds of labels out of a chain of thought in the paper, which are too sure of themselves


class LabelConfig(BaseModel):
    """How pairs are labelled.

    principles  drawn per pair, each at most once; their probabilities are averaged
    draw        how: "severity" (by severity), "uniform" (as in the paper), or "whole": none is drawn, and the odds are
                those that a reply keeps every principle, from the critic's separate verdicts
    near_tie    pairs with |P - 1/2| below this are left out and counted; 0 keeps every pair
    clamp       bounds of P, such as (0.4, 0.6) for labels out of a chain of thought; None for none
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    principles: Annotated[int, Field(ge=1)] = 1
    draw: Literal["severity", "uniform", "whole"] = "severity"
    near_tie: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    clamp: tuple[Annotated[float, Field(ge=0, lt=0.5)], Annotated[float, Field(gt=0.5, le=1)]] | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _drawn(self) -> Self:
        if self.draw == "whole" and self.principles != 1:
            raise ValueError(f"principles is {self.principles}, but draw: whole goes by all of them")
        if self.clamp is not None and self.near_tie > 0.5 - self.clamp[0] and self.near_tie > self.clamp[1] - 0.5:
            raise ValueError(
                f"near_tie {self.near_tie} leaves out every pair that clamp {list(self.clamp)} leaves: lower near_tie"
            )
        return self


@dataclass(frozen=True, slots=True)
class PairLabel:
    """What one pair came to.

    p           P(first is better), after averaging and clamping; None with the reason
    principles  ids of the principles it was read by; `unread` of them gave nothing
    annotator   names of the comparers that read it
    shown_first, shown_second   P(first is better) where the first was shown as A and as B: means over the principles,
                None where no comparer tells them apart
    flipped     the two orders of some principle disagree on which reply is better
    answers     answers sampled for it, where the critic has no log-probs; `unreadable` of them named neither reply
    cut         chains of thought that were cut off at their limit
    """

    p: float | None
    principles: tuple[str, ...]
    annotator: str
    shown_first: float | None = None
    shown_second: float | None = None
    flipped: bool = False
    answers: int = 0
    unreadable: int = 0
    cut: int = 0
    unread: int = 0
    reason: str = ""

    @property
    def position_bias(self) -> float | None:
        """What being shown first adds to P(better), in [-1, 1]."""
        if self.shown_first is None or self.shown_second is None:
            return None
        return self.shown_first - self.shown_second


def label_pairs(
    pairs: Sequence[Pair],
    principles: Sequence[PrincipleLike],
    comparers: Sequence[Comparer],
    config: LabelConfig,
    *,
    about: Sequence[str | None] | None = None,
    keys: Sequence[object] | None = None,
) -> list[PairLabel]:
    """One label for each pair, in order.

    `comparers[k]` compares by `principles[k]`; `about[i]`, where given, names the principle that pair i is about and
    takes the place of its first draw (draw: whole has none). `keys[i]` is what the draws of pair i hang on, besides the
    seed; its position where not given. With keys that stay the same, a pair has the same label in any batch.

    Raises InputError where every single pair is too long for its critic.
    """
    if len(principles) != len(comparers) or not principles:
        raise ValueError(f"{len(principles)} principles but {len(comparers)} comparers: give one for each")
    for name, given in (("about", about), ("keys", keys)):
        if given is not None and len(given) != len(pairs):
            raise ValueError(f"{len(pairs)} pairs but {len(given)} {name}")
    if not pairs:
        return []
    if config.draw == "whole":
        drawn, reads = _as_a_whole(pairs, principles, comparers)
    else:
        drawn = _draw_principles(about or [None] * len(pairs), keys or range(len(pairs)), principles, config)
        reads = _compare(pairs, drawn, comparers)
    silent = [None if read.p is not None else read.reason for row in reads for read in row]
    if all_too_long(silent):
        raise InputError(
            f"all {len(pairs):,} pairs are too long for the critic to compare ({silent[0]}): give a critic with a "
            "longer context, or shorter prompts and replies"
        )
    return [_label(ks, row, principles, comparers, config) for ks, row in zip(drawn, reads, strict=True)]


def as_preference(pair: Pair, label: PairLabel) -> Preference | None:
    """The pair with its soft label, the better reply first: below 1/2 it is swapped. None where there is no label."""
    if label.p is None:
        return None
    return preference(
        pair[0].messages,
        pair[0].reply,
        pair[1].reply,
        p_first=label.p,
        principle="+".join(label.principles),
        annotator=label.annotator,
        source="ai",
    )


def is_near_tie(label: PairLabel, config: LabelConfig) -> bool:
    """Whether a label is too near to 1/2 to be kept."""
    return label.p is not None and abs(label.p - 0.5) < config.near_tie


def count_labels(labels: Sequence[PairLabel], config: LabelConfig) -> dict[str, int]:
    """Labels by what became of them; counts of two batches may be added.

    pairs, labelled, near_ties, unlabelled   all; with a label that is kept; left out as near ties; without a label
    ties          labels of exactly 1/2 among those kept
    order_flips   pairs of which the two orders disagree
    partly_read   labels that some drawn principle had nothing to say for
    answers, unreadable   answers sampled; those of them that named neither reply
    cut           chains of thought cut off at their limit
    """
    near = sum(is_near_tie(label, config) for label in labels)
    known = [label for label in labels if label.p is not None]
    return {
        "pairs": len(labels),
        "labelled": len(known) - near,
        "near_ties": near,
        "unlabelled": len(labels) - len(known),
        "ties": sum(label.p == 0.5 and not is_near_tie(label, config) for label in known),
        "order_flips": sum(label.flipped for label in labels),
        "partly_read": sum(label.unread > 0 for label in known),
        "answers": sum(label.answers for label in labels),
        "unreadable": sum(label.unreadable for label in labels),
        "cut": sum(label.cut for label in labels),
    }


def mean_bias(labels: Sequence[PairLabel]) -> float | None:
    """Mean position bias over the labels that know theirs."""
    biases = [label.position_bias for label in labels if label.position_bias is not None]
    return sum(biases) / len(biases) if biases else None


BIASED, FLIPS, SILENT = 0.3, 0.5, 0.1  # mean position bias; share of pairs whose orders disagree; share without a label


def label_warnings(counts: Mapping[str, int], bias: float | None, critic: str = "the critic") -> list[str]:
    """What is wrong with these labels, in words with numbers: a mute critic, a habit, gibberish."""
    found = []
    pairs, unlabelled = counts.get("pairs", 0), counts.get("unlabelled", 0)
    flips, unreadable, answers = counts.get("order_flips", 0), counts.get("unreadable", 0), counts.get("answers", 0)
    if pairs and unlabelled > SILENT * pairs:
        found.append(f"labels: {critic} gave none on {unlabelled:,} of {pairs:,} pairs, which are left out")
    if answers and unreadable > SILENT * answers:
        found.append(f"labels: {unreadable:,} of {answers:,} answers of {critic} name neither reply")
    if pairs and (flips > FLIPS * pairs or (bias is not None and abs(bias) > BIASED)):
        told = "" if bias is None else f"; being shown first adds {bias:+.2f} to P(better)"
        found.append(
            f"labels: {critic} contradicts itself on {flips:,} of {pairs:,} pairs when their replies change places"
            f"{told}. Both orders are averaged, and of a reader that goes by position that leaves little but ties"
        )
    return found


# ------------------------------------------------------------------------------------------------- reading


@runtime_checkable
class _InDetail(Protocol):
    """A comparer that reads both orders by itself and reports each."""

    def compare_in_detail(self, pairs: Sequence[Pair]) -> list[Compared]: ...


def both_orders(comparer: Comparer, pairs: Sequence[Pair]) -> list[Compared]:
    """P(first better) for each pair, averaged over both orders of showing it; None where an order gave none."""
    if isinstance(comparer, _InDetail):
        return comparer.compare_in_detail(pairs)
    forward = comparer.compare(pairs)
    backward = comparer.compare([(second, first) for first, second in pairs])
    return [
        Compared(None, reason=f"{comparer.name} did not answer in both orders")
        if a is None or b is None
        else Compared((a + 1.0 - b) / 2.0, p_shown_first=a, p_shown_second=1.0 - b)
        for a, b in zip(forward, backward, strict=True)
    ]


def _draw_principles(
    named: Sequence[str | None], keys: Sequence[object], principles: Sequence[PrincipleLike], config: LabelConfig
) -> list[tuple[int, ...]]:
    """For each pair, the indices of the principles it is compared by: the one named first, then drawn ones."""
    index = {p.id: k for k, p in enumerate(principles)}
    unknown = {name for name in named if name is not None and name not in index}
    if unknown:
        raise InputError(f"prompts are about principle {sorted(unknown)[0]!r}, which the constitution does not have")
    weights = [1.0 if config.draw == "uniform" else float(p.severity) for p in principles]
    result: list[tuple[int, ...]] = []
    for key, name in zip(keys, named, strict=True):
        left, drawn = list(weights), list[int]()
        if name is not None:
            drawn.append(index[name])
            left[index[name]] = 0.0
        for turn in range(len(drawn), min(config.principles, len(principles))):
            if not any(left):
                break
            k = pick(left, chance(config.seed, "principle", key, turn))
            drawn.append(k)
            left[k] = 0.0
        result.append(tuple(drawn))
    return result


def _compare(
    pairs: Sequence[Pair], drawn: Sequence[tuple[int, ...]], comparers: Sequence[Comparer]
) -> list[list[Compared]]:
    """Every pair by each of its principles, comparer by comparer, both orders."""
    result: list[list[Compared]] = [[] for _ in pairs]
    for k, comparer in enumerate(comparers):
        rows = [row for row, ks in enumerate(drawn) if k in ks]
        if not rows:
            continue
        for row, compared in zip(rows, both_orders(comparer, [pairs[row] for row in rows]), strict=True):
            result[row].append(compared)
    return result


def _as_a_whole(
    pairs: Sequence[Pair], principles: Sequence[PrincipleLike], comparers: Sequence[Comparer]
) -> tuple[list[tuple[int, ...]], list[list[Compared]]]:
    """P(first better) = k1 / (k1 + k2), where k is the product of P(the reply keeps a principle) over all principles.

    Each factor is raised to severity / mean severity. A small critic's verdicts are noisy where a principle has no say;
    drawing one principle makes a label of that noise, the product hardly moves by it. The pair is put down to the
    principle that parts its replies furthest. A pair with a missing verdict has no label.
    """
    judges = [c for c in comparers if isinstance(c, Judge)]
    if len(judges) < len(comparers):
        raise InputError("draw: whole needs comparers that also judge single replies; use draw: severity")
    mean = sum(p.severity for p in principles) / len(principles)
    flat = _kept(judges, [item for pair in pairs for item in pair])
    parted: list[tuple[int, ...]] = []
    reads: list[list[Compared]] = []
    for first, second in zip(flat[0::2], flat[1::2], strict=True):
        both = (*first, *second)
        answers, unreadable = sum(k.answers for k in both), sum(k.unreadable for k in both)
        silent = next((k for k in both if k.p is None), None)
        if silent is not None:
            parted.append((0,))
            reads.append([Compared(None, reason=silent.reason, answers=answers, unreadable=unreadable)])
            continue
        leads = [p.severity / mean * (_log(a.p) - _log(b.p))
                 for p, a, b in zip(principles, first, second, strict=True)]  # fmt: skip
        parted.append((max(range(len(leads)), key=lambda k: abs(leads[k])),))
        reads.append([Compared(sigmoid(sum(leads)), answers=answers, unreadable=unreadable)])
    return parted, reads


def _kept(judges: Sequence[Judge], exchanges: Sequence[Exchange]) -> list[list[Compared]]:
    """P(kept) of every exchange by every judge; of counted answers the estimate, whose share may be 0 or 1."""
    critics = one_panel(judges)
    if critics is not None:
        return [
            [Compared(r.estimate, reason=r.reason, answers=r.answers, unreadable=r.unreadable) for r in row]
            for row in read_all(critics, exchanges)
        ]
    return [[Compared(v.score, reason=v.reason) for v in row] for row in judge_all(judges, exchanges)]


def _log(p: float | None) -> float:
    return math.log(max(p or 0.0, SUREST))


def _label(
    drawn: tuple[int, ...],
    reads: Sequence[Compared],
    principles: Sequence[PrincipleLike],
    comparers: Sequence[Comparer],
    config: LabelConfig,
) -> PairLabel:
    ks = sorted(drawn)
    known = [read.p for read in reads if read.p is not None]
    both = [(r.p_shown_first, r.p_shown_second) for r in reads]
    firsts = [a for a, b in both if a is not None and b is not None]
    seconds = [b for a, b in both if a is not None and b is not None]
    return PairLabel(
        p=_clamped(sum(known) / len(known), config) if known else None,
        principles=tuple(principles[k].id for k in ks),
        annotator="+".join(dict.fromkeys(comparers[k].name for k in ks)),
        shown_first=sum(firsts) / len(firsts) if firsts else None,
        shown_second=sum(seconds) / len(seconds) if seconds else None,
        flipped=any((a - 0.5) * (b - 0.5) < 0 for a, b in zip(firsts, seconds, strict=True)),
        answers=sum(read.answers for read in reads),
        unreadable=sum(read.unreadable for read in reads),
        cut=sum(read.cut for read in reads),
        unread=len(reads) - len(known),
        reason="; ".join(dict.fromkeys(read.reason for read in reads if read.p is None)),
    )


def _clamped(p: float, config: LabelConfig) -> float:
    if math.isclose(p, 0.5, abs_tol=1e-9):
        p = 0.5  # two opposite readings average to a tie, whatever rounding makes of it
    return p if config.clamp is None else min(max(p, config.clamp[0]), config.clamp[1])


def add_counts(*counts: Mapping[str, int]) -> dict[str, int]:
    """Counts of several batches, added up; one that is 0 stays."""
    total: Counter[str] = Counter()
    for one in counts:
        for name, n in one.items():
            total[name] += n
    return dict(total)
