"""AI feedback: a critic compares two replies of the model by a principle, and its probability is the label.

Bai et al. 2022 (arXiv 2212.08073), section 4. Every pair is read in both orders and the two readings averaged, since a
model that prefers the first reply shown would otherwise teach its habit. Labels stay soft: P(first is better).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, Literal, Protocol, Self, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Preference, preference
from fairlead.judges.critic import Compared
from fairlead.judges.protocol import Comparer, Judge
from fairlead.judges.twoway import sigmoid
from fairlead.methods.panel import PrincipleLike, Used, judge_all
from fairlead.methods.sampling import chance, draw, pick
from fairlead.models.protocol import Model, Prompt
from fairlead.models.toolong import all_too_long

Pair = tuple[Exchange, Exchange]

SUREST = 1e-3  # no verdict counts as surer than this: one certain and wrong would outvote all the others


class PreferenceConfig(BaseModel):
    """How replies are drawn, paired and labelled.

    replies           sampled per prompt; with `greedy` one more at temperature 0
    pairs_per_prompt  pairs of different replies taken from them
    principles        drawn per pair; their probabilities are averaged
    draw              how: "severity" (by severity), "uniform", or "whole": none is drawn, and the odds are those that a
                      reply keeps every principle, from the critic's separate verdicts
    near_tie          pairs with |P - 1/2| below this are left out and counted; 0 keeps every pair
    clamp             bounds of P, such as (0.4, 0.6) for labels out of a chain of thought; None for none
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    replies: Annotated[int, Field(ge=1)] = 2
    greedy: bool = False
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] = 256
    pairs_per_prompt: Annotated[int, Field(ge=1)] = 1
    principles: Annotated[int, Field(ge=1)] = 1
    draw: Literal["severity", "uniform", "whole"] = "severity"
    near_tie: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    clamp: tuple[Annotated[float, Field(ge=0, lt=0.5)], Annotated[float, Field(gt=0.5, le=1)]] | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _two_replies(self) -> Self:
        if self.replies + self.greedy < 2:
            raise ValueError("replies is 1 without greedy: a comparison needs two replies")
        if self.draw == "whole" and self.principles != 1:
            raise ValueError(f"principles is {self.principles}, but draw: whole goes by all of them")
        return self


@runtime_checkable
class _InDetail(Protocol):
    """A comparer that reads both orders by itself and reports each."""

    def compare_in_detail(self, pairs: Sequence[Pair]) -> list[Compared]: ...


@dataclass(frozen=True, slots=True)
class Labelled:
    """Preferences made by AI feedback, what was counted on the way, and who stands on the train side now."""

    preferences: tuple[Preference, ...]
    prompts: tuple[int, ...]  # the prompt behind each preference
    counts: Mapping[str, int]
    position_bias: float | None
    judges: Used


def ai_preferences(
    model: Model,
    prompts: Sequence[Prompt],
    principles: Sequence[PrincipleLike],
    comparers: Sequence[Comparer],
    config: PreferenceConfig,
    *,
    about: Sequence[str | None] | None = None,
    metas: Sequence[Mapping[str, Any]] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Labelled:
    """Sample replies to every prompt, pair them, and label each pair by a drawn principle.

    `comparers[k]` compares by `principles[k]`; `about[i]`, where given, names the principle that prompt i is about and
    takes the place of a draw (draw: whole has none).
    Counted: `missing` and `truncated` replies, prompts with only `equal` replies or with `too_few`, pairs `unlabelled`
    (those too long for their critic among them), `near_ties` left out, `ties` kept, `order_flips` (the two orders
    disagree). Raises `InputError` where there is no pair, or every one is too long.
    """
    if len(principles) != len(comparers) or not principles:
        raise ValueError(f"{len(principles)} principles but {len(comparers)} comparers: give one for each")
    tell = progress or (lambda what, rows: None)
    counts: Counter[str] = Counter(prompts=len(prompts))
    tell("sampling", len(prompts))
    replies = _replies(model, prompts, config, metas, counts)
    pairs: list[Pair] = []
    sources: list[int] = []
    for row, drawn in enumerate(replies):
        found = _pairs(drawn, config, row, counts)
        pairs += found
        sources += [row] * len(found)
    if not pairs:
        raise InputError(
            f"{model.name} gave no two different replies to any of {len(prompts)} prompts, so there is nothing to "
            "compare; raise temperature or replies"
        )
    tell("comparing", len(pairs))
    if config.draw == "whole":
        drawn_principles, compared = _as_a_whole(pairs, principles, comparers)
    else:
        named = [about[row] if about is not None else None for row in sources]
        drawn_principles = _draw_principles(named, principles, config)
        compared = _compare(pairs, drawn_principles, comparers)
    silent = [None if read.p is not None else read.reason for reads in compared for read in reads]
    if all_too_long(silent):
        raise InputError(
            f"all {len(pairs):,} pairs are too long for the critic to compare ({silent[0]}): give a critic with a "
            "longer context, or shorter prompts and replies"
        )
    return _labelled(pairs, sources, drawn_principles, compared, principles, comparers, config, counts)


def _replies(
    model: Model,
    prompts: Sequence[Prompt],
    config: PreferenceConfig,
    metas: Sequence[Mapping[str, Any]] | None,
    counts: Counter[str],
) -> list[list[Exchange]]:
    """Whole replies to each prompt: sampled ones first, then the greedy one."""
    asks = [(config.replies, config.temperature, config.top_p)] + ([(1, 0.0, None)] if config.greedy else [])
    replies: list[list[Exchange]] = [[] for _ in prompts]
    for n, temperature, top_p in asks:
        drawn = draw(
            model,
            prompts,
            n=n,
            max_tokens=config.max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=config.seed,
            metas=metas,
        )
        for row, got in enumerate(drawn):
            counts["missing"] += got.missing
            counts["truncated"] += sum(got.truncated)
            # A reply cut off by our own limit would be judged for where it stops; it is counted and not compared.
            replies[row] += [e for e, cut in zip(got.exchanges, got.truncated, strict=True) if not cut]
    return replies


def _pairs(drawn: Sequence[Exchange], config: PreferenceConfig, row: int, counts: Counter[str]) -> list[Pair]:
    """Pairs of different replies, which of them and in which order fixed by the seed."""
    different = list({" ".join(item.reply_text.split()): item for item in drawn}.values())
    counts["equal_replies"] += len(drawn) - len(different)
    if len(different) < 2:
        counts["equal" if len(drawn) >= 2 else "too_few"] += 1
        return []
    every = list(combinations(different, 2))
    order = sorted(range(len(every)), key=lambda i: chance(config.seed, "pair", row, i))
    chosen = [every[i] for i in order[: config.pairs_per_prompt]]
    return [(b, a) if chance(config.seed, "side", row, i) < 0.5 else (a, b) for i, (a, b) in enumerate(chosen)]


def _draw_principles(
    named: Sequence[str | None], principles: Sequence[PrincipleLike], config: PreferenceConfig
) -> list[tuple[int, ...]]:
    """For each pair, the indices of the principles it is compared by: the one named, or drawn ones."""
    index = {p.id: k for k, p in enumerate(principles)}
    unknown = {name for name in named if name is not None and name not in index}
    if unknown:
        raise InputError(f"prompts are about principle {sorted(unknown)[0]!r}, which the constitution does not have")
    weights = [1.0 if config.draw == "uniform" else float(p.severity) for p in principles]
    result: list[tuple[int, ...]] = []
    for row, name in enumerate(named):
        if name is not None:
            result.append((index[name],))
            continue
        left, drawn = list(weights), list[int]()
        for turn in range(min(config.principles, len(principles))):
            if not any(left):
                break
            k = pick(left, chance(config.seed, "principle", row, turn))
            drawn.append(k)
            left[k] = 0.0
        result.append(tuple(drawn))
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
    flat = judge_all(judges, [item for pair in pairs for item in pair])
    parted: list[tuple[int, ...]] = []
    reads: list[list[Compared]] = []
    for first, second in zip(flat[0::2], flat[1::2], strict=True):
        silent = next((v for v in (*first, *second) if v.score is None), None)
        if silent is not None:
            parted.append((0,))
            reads.append([Compared(None, reason=silent.reason)])
            continue
        leads = [p.severity / mean * (_log(a.score) - _log(b.score))
                 for p, a, b in zip(principles, first, second, strict=True)]  # fmt: skip
        parted.append((max(range(len(leads)), key=lambda k: abs(leads[k])),))
        reads.append([Compared(sigmoid(sum(leads)))])
    return parted, reads


def _log(score: float | None) -> float:
    return math.log(max(score or 0.0, SUREST))


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


def _labelled(
    pairs: Sequence[Pair],
    sources: Sequence[int],
    drawn: Sequence[tuple[int, ...]],
    compared: Sequence[Sequence[Compared]],
    principles: Sequence[PrincipleLike],
    comparers: Sequence[Comparer],
    config: PreferenceConfig,
    counts: Counter[str],
) -> Labelled:
    preferences: list[Preference] = []
    prompts: list[int] = []
    biases: list[float] = []
    for pair, source, ks, reads in zip(pairs, sources, drawn, compared, strict=True):
        biases += [read.position_bias for read in reads if read.position_bias is not None]
        counts["order_flips"] += any(_flips(read) for read in reads)
        known = [read.p for read in reads if read.p is not None]
        if not known:
            counts["unlabelled"] += 1
            continue
        p = sum(known) / len(known)
        if math.isclose(p, 0.5, abs_tol=1e-9):
            p = 0.5  # two opposite readings average to a tie, whatever rounding makes of it
        if config.clamp is not None:
            p = min(max(p, config.clamp[0]), config.clamp[1])
        if abs(p - 0.5) < config.near_tie:
            counts["near_ties"] += 1
            continue
        counts["ties"] += p == 0.5
        preferences.append(
            preference(
                pair[0].messages,
                pair[0].reply,
                pair[1].reply,
                p_first=p,
                principle="+".join(principles[k].id for k in sorted(ks)),
                annotator="+".join(dict.fromkeys(comparers[k].name for k in sorted(ks))),
                source="ai",
            )
        )
        prompts.append(source)
    counts["pairs"] = len(pairs)
    counts["labelled"] = len(preferences)
    bias = sum(biases) / len(biases) if biases else None
    # Every comparer counts as used, drawn or not: which were drawn is chance, that they could be is the design.
    judges = tuple((comparer.name, comparer.lineage) for comparer in comparers)
    return Labelled(tuple(preferences), tuple(prompts), dict(counts), bias, judges)


def _flips(read: Compared) -> bool:
    if read.p_shown_first is None or read.p_shown_second is None:
        return False
    return (read.p_shown_first - 0.5) * (read.p_shown_second - 0.5) < 0
