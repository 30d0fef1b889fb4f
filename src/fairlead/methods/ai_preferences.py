"""AI feedback: replies of the model are paired, and a critic labels each pair by a principle.

Bai et al. 2022 (arXiv 2212.08073), section 4. How a pair gets its soft label stands in `ai_labels.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Preference
from fairlead.judges.protocol import Comparer
from fairlead.methods.ai_labels import (
    LabelConfig,
    Pair,
    PairLabel,
    as_preference,
    both_orders,
    count_labels,
    is_near_tie,
    label_pairs,
    label_warnings,
    mean_bias,
)
from fairlead.methods.panel import PrincipleLike, Used
from fairlead.methods.sampling import chance, draw
from fairlead.models.protocol import Model, Prompt

__all__ = ["Labelled", "Pair", "PreferenceConfig", "ai_preferences", "both_orders"]


class PreferenceConfig(LabelConfig):
    """How replies are drawn and paired; how the pairs are labelled are the fields of `LabelConfig`.

    replies           sampled per prompt; with `greedy` one more at temperature 0
    pairs_per_prompt  pairs of different replies taken from them
    """

    replies: Annotated[int, Field(ge=1)] = 2
    greedy: bool = False
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] = 256
    pairs_per_prompt: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _two_replies(self) -> Self:
        if self.replies + self.greedy < 2:
            raise ValueError("replies is 1 without greedy: a comparison needs two replies")
        return self


@dataclass(frozen=True, slots=True)
class Labelled:
    """Preferences made by AI feedback, what was counted on the way, and who stands on the train side now."""

    preferences: tuple[Preference, ...]
    prompts: tuple[int, ...]  # the prompt behind each preference
    counts: Mapping[str, int]
    position_bias: float | None
    judges: Used
    labels: tuple[PairLabel, ...] = ()  # of every pair, those without a preference too
    warnings: tuple[str, ...] = ()


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
    takes the place of the first draw (draw: whole has none).
    Counted: `missing` and `truncated` replies, prompts with only `equal` replies or with `too_few`, and the labels as
    in `count_labels`. Raises `InputError` where there is no pair, or every one is too long.
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
    named = None if about is None or config.draw == "whole" else [about[row] for row in sources]
    labels = label_pairs(pairs, principles, comparers, config, about=named)
    return labelled(pairs, labels, comparers, config, sources=sources, counts=counts)


def labelled(
    pairs: Sequence[Pair],
    labels: Sequence[PairLabel],
    comparers: Sequence[Comparer],
    config: LabelConfig,
    *,
    sources: Sequence[int] | None = None,
    counts: Mapping[str, int] | None = None,
) -> Labelled:
    """Labels as preferences, with what was counted; `sources[i]` is the prompt of pair i, its own row where not given.

    Pairs without a label and near ties are left out and counted. `counts` are told with them.
    """
    rows = range(len(pairs)) if sources is None else sources
    kept = [
        (source, made)
        for pair, label, source in zip(pairs, labels, rows, strict=True)
        if not is_near_tie(label, config) and (made := as_preference(pair, label)) is not None
    ]
    found = {**(counts or {}), **count_labels(labels, config)}
    bias = mean_bias(labels)
    return Labelled(
        tuple(made for _, made in kept),
        tuple(source for source, _ in kept),
        found,
        bias,
        # Every comparer counts as used, drawn or not: which were drawn is chance, that they could be is the design.
        tuple((comparer.name, comparer.lineage) for comparer in comparers),
        tuple(labels),
        tuple(label_warnings(found, bias)),
    )


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
