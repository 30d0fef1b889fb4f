"""What the stages that make training data share: what a stage learns from, whose labels those are, who may judge."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairlead.constitution.schema import Principle
from fairlead.errors import InputError
from fairlead.exchange import Exchange, Message
from fairlead.feedback.rankings import Comparison
from fairlead.feedback.split import is_held_out
from fairlead.stack.cache import Entry
from fairlead.stack.context import Built, Context, Used
from fairlead.stack.plan import DPOLayer, Preferences, RewardLayer
from fairlead.stack.plan_base import PEOPLE
from fairlead.stack.prompts import SOURCE, TrainingPrompts, fitting


@dataclass(frozen=True, slots=True)
class Data:
    """What to imitate, where each row stands, who judged on the way, and a line that says it."""

    entry: Entry
    rows: tuple[Exchange, ...]
    places: tuple[str, ...]
    used: Used
    said: str
    facts: dict[str, Any]
    labels: Mapping[str, int] = field(default_factory=dict)  # how many of whose


def fitted(ctx: Context, below: Built) -> TrainingPrompts:
    """The run's training prompts that fit the model; refused or left out, by row, as the plan says."""
    if ctx.world and ctx.plan.prompts.from_ == SOURCE:
        return ctx.prompts  # the world is made for its model
    asked = fitting(ctx.prompts, below.model, ctx.plan.prompts.too_long)
    if len(asked.cases) < len(ctx.prompts.cases):
        ctx.voice.say(asked.said)
    return asked


def early_refusal(layer: str, used: Used, ctx: Context) -> None:
    """Ask the ledger before the work is done, not after: would these judges spoil the run's own evidence?"""
    for measure, judge in ctx.audit.items():
        probe = copy.deepcopy(ctx.ledger)
        for side, name, lineage in used:
            probe.record(layer, side, name, lineage)
        probe.evidence(measure, judge.name, judge.lineage, layer=layer)


def principle_key(principles: Sequence[Principle]) -> list[Any]:
    """What the making of training data reads of a constitution. The names of judges or the guard are not among it."""
    return [[p.id, p.text, p.severity, p.dimension] for p in principles]


def require_oracle(name: str, ctx: Context) -> None:
    if not ctx.world:
        raise InputError(f"layer {name!r}: gold labels exist only for the apprentice, whose world is known")
    if not ctx.oracle:
        raise InputError(
            f"layer {name!r} learns from gold labels, which no real model has; "
            "for a comparison with the upper bound say so with --oracle"
        )


# ---------------------------------------------------------------------------------------------- whose labels


def comparisons_of(config: Preferences, name: str, ctx: Context) -> str:
    """Where a stage's comparisons come from: ai, gold, rater, or the path of a file.

    Raises InputError where there is no such source here, saying what to give.
    """
    source = config.from_
    if source == "gold":
        require_oracle(name, ctx)
    if source == PEOPLE:
        if ctx.plan.preferences is not None:
            return ctx.plan.preferences
        if not ctx.world:
            raise InputError(
                f"layer {name!r} learns from people's comparisons: give a file with --preferences (or `preferences:`); "
                "only in the apprentice's world can a rater be simulated"
            )
        return "rater"
    if source == "rater" and not ctx.world:
        raise InputError(
            f"layer {name!r}: a rater can be simulated only for the apprentice, whose world is known; "
            "give comparisons with --preferences and write `from: given`"
        )
    return ctx.preferences_path if source == "given" else source


def comparisons_file(layer: DPOLayer | RewardLayer, ctx: Context) -> str | None:
    """The file a stage's comparisons stand in; None where they are made."""
    source = comparisons_of(layer.preferences, layer.name, ctx)
    return None if source in ("ai", "gold", "rater") else source


def held_out(row: Comparison, config: Preferences, ctx: Context) -> bool:
    """Whether a comparison is kept from training, by its prompt."""
    from fairlead.feedback.formats import prompt_text

    return is_held_out(prompt_text(row.messages), share=config.held_out, seed=ctx.seed)


def held_out_prompts(ctx: Context) -> frozenset[tuple[Message, ...]]:
    """Prompts of the pairs that this run's preference stages keep from training: no stage may learn their answers."""
    prompts: set[tuple[Message, ...]] = set()
    for layer in ctx.plan.layers:
        path = comparisons_file(layer, ctx) if isinstance(layer, DPOLayer | RewardLayer) else None
        if isinstance(layer, DPOLayer | RewardLayer) and path is not None:
            config = layer.preferences
            if isinstance(layer, RewardLayer):
                prompts |= {row.messages for row in ctx.read_comparisons(path).rows if held_out(row, config, ctx)}
                continue
            pairs = ctx.read_preferences(path)
            prompts |= {
                row.messages
                for row, group in zip(pairs.rows, pairs.groups, strict=True)
                if is_held_out(group, share=config.held_out, seed=ctx.seed)
            }
    return frozenset(prompts)
