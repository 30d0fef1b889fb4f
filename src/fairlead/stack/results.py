"""`results.json` and the files beside it: what a run found, in plain JSON.

Everything but `seconds` is a function of the plan, the models and the seed: two local runs agree in it byte for byte.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairlead import __version__
from fairlead.exchange import to_json
from fairlead.judges.lineage import lineage_hash
from fairlead.measures.compare import side_effects
from fairlead.measures.result import MeasureResult
from fairlead.stack.cache import copy_entry
from fairlead.stack.context import Built, Context, Rewarded
from fairlead.stack.folder import write_json, write_lines, write_yaml
from fairlead.stack.guarded import Row, summary, warnings
from fairlead.stack.identity import version_of
from fairlead.stack.plan import DPOLayer, RewardLayer, SFTLayer
from fairlead.stack.plan_rl import PolicyLayer
from fairlead.stack.stages.policy import curve

SCHEMA = 1


def results(
    ctx: Context,
    layers: Sequence[Built],
    measured: Mapping[str, Sequence[MeasureResult]],
    accuracy: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, Any],
    pairs: Sequence[tuple[str, str]],
    *,
    recipe: str = "",
    left_out: Sequence[str] = (),
    guarded: Mapping[str, Sequence[Row]] | None = None,
) -> dict[str, Any]:
    """The body of `results.json` (DESIGN §7), with what else the report shows under keys of its own."""
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "model": ctx.plan.model,
        "constitution": {
            "name": ctx.constitution.name,
            "sha256": ctx.constitution.sha256,
            "principles": [
                {"id": p.id, "dimension": p.dimension, "severity": p.severity, "text": p.text}
                for p in ctx.constitution.principles
            ],
        },
        "layers": [layer.name for layer in layers],
        "measures": [row.row() for rows in measured.values() for row in rows],
        "side_effects": [effect.row() for effect in side_effects(measured, pairs)],
        "seconds": dict(seconds),
        "recipe": recipe,
        "seed": ctx.seed,
        "audit": ctx.plan.measure.audit,
        "oracle": uses_gold(ctx),
        "stages": [
            {"layer": one.name, "kind": one.kind, "summary": one.summary, "labels": dict(one.labels)}
            for one in _in_order(ctx)
        ],
        "warnings": [*(warning for one in _in_order(ctx) for warning in one.warnings), *warnings(guarded or {})],
        "not_measured": list(left_out),
        "versions": versions(),
    }
    by_guard = summary(guarded or {})
    if by_guard is not None:
        body["guard"] = by_guard
    if accuracy:
        body["preference_accuracy"] = list(accuracy)
    revisions = [{"layer": layer.name, **rounds} for layer in layers if (rounds := _rounds(layer))]
    if revisions:
        body["revisions"] = revisions
    if ctx.simulated:
        body["simulated"] = list(ctx.simulated)
    if ctx.rewards:
        body["rewards"] = [_reward_row(one, ctx) for one in ctx.rewards.values()]
    training = {layer.name: rows for layer in layers if (rows := curve(layer))}
    if training:
        body["training"] = training
    return body


def _rounds(layer: Built) -> dict[str, Any]:
    """Harm and evasion per round of a layer that revised; nothing of any other."""
    data = layer.facts.get("data") or {}
    return {key: data[key] for key in ("series", "evasion") if key in data}


def _in_order(ctx: Context) -> list[Built | Rewarded]:
    """What the stages made, rewards between the layers, as the plan has them."""
    return [ctx.rewards.get(layer.name) or ctx.built[layer.name] for layer in ctx.plan.layers]


def _reward_row(one: Rewarded, ctx: Context) -> dict[str, Any]:
    """A reward model in `results.json`: how often it is right, on whose labels, and who optimises it."""
    by = [
        layer.name
        for layer in ctx.plan.layers
        if isinstance(layer, PolicyLayer) and one.name in {*(term.judge for term in layer.judges), layer.critic}
    ]
    return {
        "name": one.name, "kind": one.kind, "from": one.start, "summary": one.summary,
        "lineage": lineage_hash(one.lineage), "optimised_by": by, "accuracy": list(one.facts["train"]["held_out"]),
    }  # fmt: skip


def uses_gold(ctx: Context) -> bool:
    """Whether any layer learnt from the world's truth."""
    return any(
        (isinstance(layer, SFTLayer) and bool(layer.data.gold))
        or (isinstance(layer, DPOLayer | RewardLayer) and layer.preferences.from_ == "gold")
        or (isinstance(layer, PolicyLayer) and any(term.judge.startswith("gold:") for term in layer.judges))
        for layer in ctx.plan.layers
    )


def versions() -> dict[str, str]:
    """Of what computes a result."""
    names = ("torch", "transformers", "tokenizers", "numpy", "scipy", "pydantic", "openai", "anthropic")
    found = {name: version for name in names if (version := version_of(name))}
    return {"fairlead": __version__, "python": platform.python_version(), **found}


def comparisons(layers: Sequence[Built], starts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Each layer with the one it starts from, and the base with the product."""
    pairs = [(starts[layer.name], layer.name) for layer in layers[1:]]
    whole = (layers[0].name, layers[-1].name)
    return pairs if whole in pairs or len(layers) < 2 else [*pairs, whole]


def write_exchanges(folder: Path, measured: Mapping[str, Sequence[MeasureResult]]) -> None:
    """`exchanges/LAYER.jsonl`: every case of every measure, with what it came to. Ranked pairs have no exchange."""
    for layer, rows in measured.items():
        write_lines(
            folder / "exchanges" / f"{layer}.jsonl",
            (
                {"measure": row.measure, "principle": row.principle, "layer": layer, **outcome.to_json()}
                for row in rows
                for outcome in row.outcomes
                if outcome.exchange is not None or outcome.status == "missing"
            ),
        )


def write_layers(folder: Path, ctx: Context, layers: Sequence[Built], product: Built | None) -> None:
    """What each stage made: `layers/NAME/`, `rewards/NAME/`, and `model/`, the product's weights, as a copy."""
    for layer in layers[1:]:
        place = folder / "layers" / layer.name
        write_json(place / "layer.json", _told(layer))
        for entry in (layer.data, layer.entry):
            if entry is not None:
                copy_entry(entry, place, link=True)
    for reward in ctx.rewards.values():
        place = folder / "rewards" / reward.name
        write_json(place / "reward.json", _told(reward))
        for entry in (reward.data, reward.entry):
            copy_entry(entry, place, link=True)
    if product is not None and product.folder is not None:
        copy_entry(product.folder, folder / "model")


def _told(one: Built | Rewarded) -> dict[str, Any]:
    return {"kind": one.kind, "summary": one.summary, "warnings": list(one.warnings), **_plain(one.facts)}


def write_lock(folder: Path, ctx: Context, layers: Sequence[Built], prompts_hash: str | None) -> None:
    """`stack.lock.yaml`: the plan with everything resolved. It is itself a stack file that repeats the run."""
    plan = ctx.plan.model_dump(mode="json", by_alias=True, exclude={"layers", "lock"}, exclude_none=True)
    body = {
        **plan,
        "layers": [layer_as_written(layer) for layer in ctx.plan.layers],
        "lock": {
            "versions": versions(),
            "threads": ctx.threads,
            "device": ctx.numerics["device"],
            "model": {"identity": ctx.source.identity, "parameters": ctx.source.parameters or None},
            "constitution": {"name": ctx.constitution.name, "sha256": ctx.constitution.sha256},
            "prompts": prompts_hash,
            "layers": {
                one.name: {"identity": one.identity, "settings": one.settings} for one in (layers[0], *_in_order(ctx))
            },
        },
    }
    write_yaml(
        folder / "stack.lock.yaml", _plain(body), "What this run did, resolved. `fairlead align` takes it as a stack."
    )


def layer_as_written(layer: Any) -> dict[str, Any]:
    """A layer as its YAML: training settings beside the data, defaults left out."""
    own = layer.model_dump(mode="json", by_alias=True, exclude={"train"}, exclude_defaults=True)
    train = layer.train.model_dump(mode="json", exclude_unset=True) if layer.trains else {}
    return {layer.kind: {**own, **train}}


def _plain(value: Any) -> Any:
    """JSON types only, tuples as lists; NaN as null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and value != value:
        return None
    if dataclasses.is_dataclass(value):
        return to_json(value)
    return value
