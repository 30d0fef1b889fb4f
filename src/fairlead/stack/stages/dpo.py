"""Learning from preferences (DPO and every other method of the catalogue that can): on AI feedback, on preference data
from a file, or on the world's own preferences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Preference, Rated, from_json
from fairlead.feedback.formats import PreferenceSet
from fairlead.feedback.shapes import both_sides
from fairlead.feedback.split import split_by_group, take
from fairlead.feedback.write import write_preferences
from fairlead.judges.lineage import Lineage, leaf
from fairlead.judges.protocol import Comparer
from fairlead.methods.ai_labels import label_warnings
from fairlead.methods.ai_preferences import PreferenceConfig
from fairlead.methods.catalogue import METHODS
from fairlead.stack.cache import Entry
from fairlead.stack.context import Built, Context, Used, used_from_json, used_to_json
from fairlead.stack.folder import read_lines, write_json
from fairlead.stack.identity import code_hash, digest, file_hash
from fairlead.stack.outcome import facts_of, warnings_of
from fairlead.stack.plan import DPOLayer, Preferences
from fairlead.stack.simulated import whose
from fairlead.stack.stages.data import comparisons_of, early_refusal, fitted, principle_key
from fairlead.stack.stages.rater import ranked
from fairlead.stack.stages.train import DATA_ROOMS, Clock, require_weights, settled, trained


@dataclass(frozen=True, slots=True)
class Pairs:
    """What to prefer, where each row stands, who judged on the way; `held_out` is kept from training, if any."""

    entry: Entry
    rows: tuple[Preference, ...]
    places: tuple[str, ...]
    used: Used
    said: str
    facts: dict[str, Any]
    train: PreferenceSet | None = None
    held_out: PreferenceSet | None = None
    labels: Mapping[str, int] = field(default_factory=dict)


def dpo(layer: DPOLayer, below: Built, ctx: Context) -> Built:
    """Make or read the pairs, train on them. Raises InputError where the model has no weights or there are no pairs."""
    require_weights(layer.kind, layer.name, below, ctx)
    clock = Clock()
    method = METHODS[layer.kind]
    pairs = _pairs(layer, below, ctx)
    config = settled(layer.kind, layer.train, ctx)

    def train(model: Any, run: Any) -> Any:
        rows, places = _rated(pairs, layer.name) if method.data == "rated" else (pairs.rows, pairs.places)
        made = method.train(model, rows, config, run, places=places)
        facts = facts_of(made) if method.data == "pairs" else {**facts_of(made), "undecided": _undecided(pairs)}
        return made.model, facts, made.records, tuple(warnings_of(made, config))

    entry, facts = trained(layer.name, layer.kind, config, pairs.entry, below, ctx, train)
    folder = entry.path / "model"
    identity = digest({"weights": entry.key})
    return Built(
        name=layer.name,
        kind=layer.kind,
        identity=identity,
        folder=folder,
        plain=True,
        model=ctx.trained(f"{ctx.source.spec} + {layer.name}", identity, folder),
        summary=_summary(pairs, facts),
        used=pairs.used,
        prompts=tuple(dict.fromkeys(row.messages for row in pairs.rows)),
        entry=entry.path,
        data=pairs.entry.path,
        seconds=clock.seconds if entry.made or pairs.entry.made else None,
        facts={"data": pairs.facts, "train": facts},
        settings=config.model_dump(mode="json"),
        warnings=(*pairs.facts.get("warnings", ()), *facts["warnings"]),
        preferences=(pairs.train, pairs.held_out) if pairs.train and pairs.held_out else None,
        labels=pairs.labels,
    )


def _summary(pairs: Pairs, facts: dict[str, Any]) -> str:
    words = [pairs.said, f"{facts['steps']:,} steps"]
    kl = (facts["kl"] or {}).get("value")
    if kl is not None:
        words.append(f"KL {kl:.1f} nats")
    side = "chosen" if "chosen_drift" in facts else "good"
    drift = facts[f"{side}_drift"] or 0.0
    words.append(f"{side} log-prob steady" if abs(drift) < 1.0 else f"{side} log-prob {drift:+.1f} nats")
    for key, said in (
        ("skipped_too_long", "pairs too long, left out" if side == "chosen" else "replies too long, left out"),
        ("cut", "pairs cut" if side == "chosen" else "replies cut"),
        ("identical", "identical pairs"),
        ("undecided", "pairs without a better reply, left out"),
        ("mismatched_left_out", "mismatched pairs too long for the reference point"),
    ):
        if facts.get(key):
            words.append(f"{facts[key]:,} {said}")
    return "; ".join(words)


def _rated(pairs: Pairs, layer: str) -> tuple[list[Rated], list[str]]:
    """Both replies of every pair by themselves, chosen good and rejected bad, and their places."""
    sides = [
        (place + side, value)
        for pair, place in zip(pairs.rows, pairs.places, strict=True)
        for side, value in both_sides(pair)
    ]
    if not sides:
        raise InputError(f"layer {layer!r}: not one of {len(pairs.rows):,} pairs has a better reply")
    return [value for _, value in sides], [place for place, _ in sides]


def _undecided(pairs: Pairs) -> int:
    return sum(not both_sides(pair) for pair in pairs.rows)


def _pairs(layer: DPOLayer, below: Built, ctx: Context) -> Pairs:
    config = layer.preferences
    source = comparisons_of(config, layer.name, ctx)
    if source in ("ai", "gold"):
        return compared(layer.name, config, below, ctx, gold=source == "gold")
    if source == "rater":
        return _of_rater(layer.name, config, below, ctx)
    return _from_file(layer, config, ctx.read_preferences(source), ctx)


def _of_rater(name: str, config: Preferences, below: Built, ctx: Context) -> Pairs:
    """Every two replies of a simulated rater's rankings."""
    found = ranked(config, name, below, ctx)
    pairs = tuple(found.pairs)
    used: Used = (("train", "simulated rater", found.rater),)
    places = tuple(f"pair {i}" for i in range(len(pairs)))
    labels = {"simulated comparisons": len(found.rows)}
    return Pairs(found.entry, pairs, places, used, found.said, {"counts": found.counts}, labels=labels)


# ------------------------------------------------------------------------------------------- from feedback


@dataclass(frozen=True, slots=True)
class GoldPrinciple:
    """The world's truth in the place of a principle."""

    id: str = "gold"
    text: str = "what is true and asked for"
    severity: int = 1


@dataclass(frozen=True, slots=True)
class GoldComparer:
    """Prefers the reply that the world's truth finds better: certain where they differ, a tie where not."""

    name: str = "gold"

    @property
    def lineage(self) -> Lineage:
        return leaf("gold", text="harbour truth: utility", exact=True)

    def compare(self, pairs: Sequence[tuple[Exchange, Exchange]]) -> list[float | None]:
        from fairlead.apprentice.gold import gold_utility

        return [_certain(gold_utility(a) - gold_utility(b)) for a, b in pairs]


def _certain(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)


def compared(name: str, config: Preferences, below: Built, ctx: Context, *, gold: bool) -> Pairs:
    """Replies of the model below, compared by a critic (or by gold), for the stage of this name."""
    prompts = ctx.prompts
    own = set(PreferenceConfig.model_fields)
    making = PreferenceConfig(**{**config.model_dump(include=own), "seed": ctx.seed})
    asking = {name: getattr(config, name) for name in ("compare", "reason_tokens", "samples")}
    critic_identity, reader = ctx.critic(config.critic, below)
    principles = ctx.constitution.principles
    what = {
        "stage": "gold preferences" if gold else "ai preferences",
        "config": making.model_dump(mode="json"),
        "prompts": prompts.hash,
        "too_long": ctx.plan.prompts.too_long,
        "aimed": prompts.aimed,
        "model": below.identity,
        "code": code_hash(*DATA_ROOMS),
        **({} if gold else {**asking, "principles": principle_key(principles), "critic": critic_identity}),
        **ctx.numerics,
    }

    def build(folder: Path) -> None:
        from fairlead.judges.critic import critic
        from fairlead.methods.ai_preferences import ai_preferences

        asked = fitted(ctx, below)
        about: list[str | None] | None
        comparers: list[Comparer]
        if gold:
            standards: Sequence[Any] = [GoldPrinciple()]
            comparers, about = [GoldComparer()], None
        else:
            standards = principles
            comparers = [
                critic(p, reader, comparer=config.compare, reason_tokens=config.reason_tokens, samples=config.samples)
                for p in principles
            ]
            # "whole" finds what a pair is about by itself: of two replies to a harmless twin, one may be unhelpful
            about = None if making.draw == "whole" else asked.about
        early_refusal(name, tuple(("train", c.name, c.lineage) for c in comparers), ctx)
        with ctx.voice.progress(f"{name}: sampling and comparing") as advance:
            stages = iter(range(1, 4))
            labelled = ai_preferences(
                below.model,
                [case.messages for case in asked.cases],
                standards,
                comparers,
                making,
                about=about,
                metas=[case.meta for case in asked.cases],
                progress=lambda what, rows: advance(next(stages, 2) - 1, 3),
            )
        write_preferences(folder / "data.jsonl", labelled.preferences)
        write_json(
            folder / "about.json",
            {
                "counts": dict(labelled.counts),
                "position_bias": labelled.position_bias,
                "warnings": [] if gold else label_warnings(labelled.counts, labelled.position_bias, config.critic),
                "used": used_to_json(tuple(("train", judge, lineage) for judge, lineage in labelled.judges)),
            },
        )

    entry = ctx.cache.make("preferences", what, build)
    about = json.loads((entry.path / "about.json").read_bytes())
    rows = tuple(from_json(Preference, row) for row in read_lines(entry.path / "data.jsonl"))
    if not rows:
        raise InputError(f"layer {name!r}: not one pair could be labelled ({_counted(about['counts'])})")
    counts = about["counts"]
    if not gold and all(row.strength == 0.5 for row in rows):
        raise InputError(
            f"layer {name!r}: every one of {len(rows):,} pairs is a tie, so there is nothing to learn"
            + "".join(f"; {warning}" for warning in about["warnings"])
        )
    notes = [
        f"{counts[k]:,} {said}"
        for k, said in (
            ("unlabelled", "unlabelled"),
            ("near_ties", "near ties left out"),
            ("partly_read", "by fewer principles than drawn"),
            ("order_flips", "contradicted in the other order"),
            ("answers", f"answers counted, {config.samples} a question"),
            ("unreadable", "answers unreadable"),
            ("cut", "chains of thought cut off"),
        )
        if counts.get(k)
    ]
    if config.compare == "reasoned" and not gold:
        bounds = "not clamped" if making.clamp is None else f"clamped to [{making.clamp[0]:g}, {making.clamp[1]:g}]"
        notes.append(f"labels behind a chain of thought, {bounds}")
    said = "; ".join([f"{len(rows):,} pairs compared by {'gold' if gold else config.critic}", *notes])
    places = tuple(f"pair {i}" for i in range(len(rows)))
    facts = {"counts": counts, "position_bias": about["position_bias"], "warnings": about["warnings"]}
    labels = {"gold comparisons" if gold else "AI comparisons": len(rows)}
    return Pairs(entry, rows, places, used_from_json(about["used"]), said, facts, labels=labels)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items())


# ----------------------------------------------------------------------------------------------- from a file


def _from_file(layer: DPOLayer, config: Preferences, rows: PreferenceSet, ctx: Context) -> Pairs:
    """Pairs as published; a share of the prompts is held out, by group, to measure what was learnt."""
    try:
        kept, out = split_by_group(rows.groups, share=config.held_out, seed=ctx.seed)
    except ValueError as error:
        raise InputError(f"layer {layer.name!r}: {error}") from None
    train, held_out = part(rows, kept), part(rows, out)
    hashes = [file_hash(f.path) for f in rows.report.files]
    what = {
        "files": hashes, "skip": ctx.skip_bad_rows, "held_out": config.held_out, "seed": ctx.seed,
        "code": code_hash("feedback"),
    }  # fmt: skip

    def build(folder: Path) -> None:
        write_preferences(folder / "data.jsonl", train.rows, groups=train.groups, generators=train.generators)

    entry = ctx.cache.make("preferences", what, build)
    used, kind = whose(comparisons_of(config, layer.name, ctx), hashes, ctx)
    said = f"{len(train):,} pairs, {len(held_out):,} held out"
    facts = {"pairs": len(train), "held_out": len(held_out), "ties": rows.report.ties}
    labels = {f"{kind} comparisons": len(train)}
    return Pairs(entry, train.rows, train.places, used, said, facts, train, held_out, labels)


def part(rows: PreferenceSet, indices: Sequence[int]) -> PreferenceSet:
    """The rows at the indices with all that belongs to them."""
    return PreferenceSet(
        take(rows.rows, indices), take(rows.places, indices), take(rows.groups, indices),
        take(rows.generators, indices), rows.report,
    )  # fmt: skip
