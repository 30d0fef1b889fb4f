"""Supervised fine-tuning: on the model's own revised replies, on demonstrations from a file, or on gold answers."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.constitution.schema import Principle
from fairlead.errors import InputError
from fairlead.exchange import Exchange, Message, assistant, from_json, to_json
from fairlead.feedback.split import is_held_out, take
from fairlead.feedback.write import write_exchanges
from fairlead.methods.constitutional import ReviseConfig
from fairlead.methods.rounds import audited, from_plain, to_plain, told_in_brief, warnings_of_rounds
from fairlead.stack.cache import Entry
from fairlead.stack.context import Built, Context, Used, used_from_json, used_to_json
from fairlead.stack.folder import read_lines, write_json, write_lines
from fairlead.stack.identity import code_hash, digest, file_hash
from fairlead.stack.plan import DPOLayer, Revise, SFTLayer
from fairlead.stack.prompts import SOURCE, TrainingPrompts, fitting
from fairlead.stack.stages.revise import audit_identity, auditors, must_be_answered, ordinary
from fairlead.stack.stages.train import DATA_ROOMS, Clock, require_weights, settled, trained


@dataclass(frozen=True, slots=True)
class Data:
    """What to imitate, where each row stands, who judged on the way, and a line that says it."""

    entry: Entry
    rows: tuple[Exchange, ...]
    places: tuple[str, ...]
    used: Used
    said: str
    facts: dict[str, Any]


def sft(layer: SFTLayer, below: Built, ctx: Context) -> Built:
    """Make the data, train on it. Raises InputError where the model has no weights or the data cannot be had."""
    require_weights("sft", layer.name, below, ctx)
    clock = Clock()
    data = _data(layer, below, ctx)
    config = settled("sft", layer.train, ctx)

    def train(model: Any, run: Any) -> Any:
        from fairlead.methods.sft import train_sft

        tuned = train_sft(model, data.rows, config, run, places=data.places)
        facts = {
            "rows": tuned.rows, "skipped_too_long": tuned.skipped_too_long, "cut": tuned.cut,
            "steps": len(tuned.records), "final_loss": tuned.final_loss,
        }  # fmt: skip
        return tuned.model, facts, tuned.records, ()

    entry, facts = trained(layer.name, "sft", config, data.entry, below, ctx, train)
    folder = entry.path / "model"
    identity = digest({"weights": entry.key})
    counted = [
        f"{facts[k]:,} rows {words}"
        for k, words in (("skipped_too_long", "too long, left out"), ("cut", "cut"))
        if facts[k]
    ]
    return Built(
        name=layer.name,
        kind="sft",
        identity=identity,
        folder=folder,
        plain=True,
        model=ctx.trained(f"{ctx.source.spec} + {layer.name}", identity, folder),
        summary="; ".join([data.said, f"{facts['steps']:,} steps", *counted]),
        used=data.used,
        prompts=tuple(row.messages for row in data.rows),
        entry=entry.path,
        data=data.entry.path,
        seconds=clock.seconds if entry.made or data.entry.made else None,
        facts={"data": data.facts, "train": facts},
        settings=config.model_dump(mode="json"),
        warnings=(*data.facts.get("warnings", ()), *facts["warnings"]),
    )


def _data(layer: SFTLayer, below: Built, ctx: Context) -> Data:
    if layer.data.revise is not None:
        return _revised(layer, layer.data.revise, below, ctx)
    if layer.data.file is not None:
        return _from_file(layer.data.file, ctx)
    return _gold(layer, ctx)


# -------------------------------------------------------------------------------------- critique and revise


def principle_key(principles: Sequence[Principle]) -> list[Any]:
    """What the making of training data reads of a constitution. The names of judges or the guard are not among it."""
    return [[p.id, p.text, p.severity, p.dimension] for p in principles]


def _revised(layer: SFTLayer, revise: Revise, below: Built, ctx: Context) -> Data:
    prompts = ctx.prompts
    principles = ctx.constitution.principles
    own = set(ReviseConfig.model_fields)
    config = ReviseConfig(**{**revise.model_dump(include=own), "seed": ctx.seed})
    critic_identity, reader = ctx.critic(revise.critic, below)
    helpful = ordinary(revise, ctx)
    what = {
        "stage": "revise",
        "config": config.model_dump(mode="json"),
        "prompts": prompts.hash,
        "too_long": ctx.plan.prompts.too_long,
        "principles": principle_key(principles),
        "model": below.identity,
        "critic": critic_identity,
        "audit": audit_identity(revise, below, ctx),
        "helpful": digest([to_json(case) for case in helpful]),
        "code": code_hash(*DATA_ROOMS, "stack/stages/revise"),
        **ctx.numerics,
    }

    def build(folder: Path) -> None:
        from fairlead.judges.critic import critic
        from fairlead.judges.rules import declines
        from fairlead.methods.constitutional import constitutional_data
        from fairlead.methods.reviser import ModelReviser

        judges = [critic(principle, reader) for principle in principles]
        reviser = ModelReviser(
            reader, principles, config.rewrite_temperature, config.max_tokens, config.critique_tokens, config.seed
        )
        used: Used = (
            *(("train", judge.name, judge.lineage) for judge in judges),
            ("train", reviser.name, reviser.lineage),
            *((("train", declines().name, declines().lineage),) if config.evasive != "keep" else ()),
        )
        early_refusal(layer.name, used, ctx)
        readers = auditors(revise, layer.name, used, below, ctx)
        asked = fitted(ctx, below)
        with ctx.voice.progress(f"{layer.name}: critique and revision") as advance:
            heard = 0

            def progress(what: str, rows: int) -> None:
                nonlocal heard
                heard += 1
                advance(heard - 1, 2 + 3 * config.rounds + bool(helpful))

            revision = constitutional_data(
                below.model,
                [case.messages for case in asked.cases],
                principles,
                judges,
                reviser,
                config,
                metas=[case.meta for case in asked.cases],
                harmless=[must_be_answered(case) for case in asked.cases],
                helpful=[case.messages for case in helpful],
                helpful_metas=[case.meta for case in helpful],
                progress=progress,
            )
        # Only now do auditors see anything, and what they say goes into about.json alone.
        views = [revision.critics_view, *audited([done.exchanges for done in revision.rounds], readers)]
        write_exchanges(folder / "data.jsonl", (*revision.final, *revision.helpful))
        rounds = (
            {
                "round": number,
                "row": row,
                "principle": done.drawn[row],
                "critique": done.critiques[row],
                "outcome": done.outcomes[row],
                "scores": {v.principle: v.score for v in done.verdicts[row]},
                "exchange": to_json(done.exchanges[row]),
            }
            for number, done in enumerate(revision.rounds)
            for row in range(len(done.exchanges))
        )
        write_lines(folder / "rounds.jsonl", rounds)
        write_json(
            folder / "about.json",
            {
                "harm": revision.harm(),
                "harm_by_principle": revision.harm_by_principle(),
                "counts": dict(revision.counts),
                **to_plain(views, revision.evading),
                "warnings": warnings_of_rounds(views, revision.evading),
                "used": used_to_json(
                    (
                        *(("train", name, lineage) for name, lineage in revision.judges),
                        *(("audit", reader.name, reader.lineage) for reader in readers),
                    )
                ),
            },
        )

    entry = ctx.cache.make("revisions", what, build)
    about = json.loads((entry.path / "about.json").read_bytes())
    rows = tuple(from_json(Exchange, row) for row in read_lines(entry.path / "data.jsonl"))
    counts = about["counts"]
    notes = [
        f"{counts[k]:,} {words}"
        for k, words in (
            ("missing", "prompts unanswered"),
            ("left_out", "rows left out"),
            ("evasive_left_out", "evasive replies left out"),
            ("helpful", "own samples on ordinary prompts mixed in"),
            ("helpful_missing", "ordinary prompts unanswered"),
            ("helpful_truncated", "ordinary samples cut off, left out"),
            ("unjudged", "verdicts missing"),
            ("failed", "revisions failed"),
        )
        if counts.get(k)
    ]
    times = f"{config.rounds} round{'s' if config.rounds > 1 else ''}"
    brief = told_in_brief(*from_plain(about))
    said = "; ".join([f"{counts['rows']:,} replies revised in {times}", *brief, *notes])
    revised = len(rows) - counts.get("helpful", 0)
    places = tuple(f"revised reply {i}" if i < revised else f"own sample {i - revised}" for i in range(len(rows)))
    return Data(entry, rows, places, used_from_json(about["used"]), said, {k: about[k] for k in about if k != "used"})


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


# ------------------------------------------------------------------------------------------- other sources


def _from_file(path: str, ctx: Context) -> Data:
    """Conversations, or the chosen side of preferences, from a file."""
    demonstrations = ctx.read_demonstrations(path)
    held_out = held_out_prompts(ctx)
    left = [i for i, row in enumerate(demonstrations.rows) if row.messages in held_out]
    kept = sorted(set(range(len(demonstrations))) - set(left))
    if not kept:
        raise InputError(f"{path}: every prompt in it is held out to measure preference accuracy on; nothing to learn")
    rows, places = take(demonstrations.rows, kept), take(demonstrations.places, kept)
    hashes = [file_hash(f.path) for f in demonstrations.report.files]
    entry = ctx.cache.make(
        "demonstrations",
        {"files": hashes, "skip": ctx.skip_bad_rows, "left_out": left, "code": code_hash("feedback")},
        lambda folder: write_exchanges(folder / "data.jsonl", rows),
    )
    said = f"{len(rows):,} demonstrations from {Path(path).name}"
    if left:
        said += f"; {len(left):,} left out, whose prompts are held out to measure preference accuracy on"
    return Data(entry, rows, places, (), said, {"rows": len(rows), "held_out": len(left)})


def held_out_prompts(ctx: Context) -> frozenset[tuple[Message, ...]]:
    """Prompts of the pairs that this run's preference stages keep from training: no stage may learn their answers."""
    prompts: set[tuple[Message, ...]] = set()
    for layer in ctx.plan.layers:
        if isinstance(layer, DPOLayer) and layer.preferences.from_ not in ("ai", "gold"):
            config = layer.preferences
            pairs = ctx.preferences if config.from_ == "given" else ctx.read_preferences(config.from_)
            prompts |= {
                row.messages
                for row, group in zip(pairs.rows, pairs.groups, strict=True)
                if is_held_out(group, share=config.held_out, seed=ctx.seed)
            }
    return frozenset(prompts)


def _gold(layer: SFTLayer, ctx: Context) -> Data:
    """The answers the world's truth would give to the same prompts: an upper bound, only with --oracle."""
    require_oracle(layer.name, ctx)
    from fairlead.apprentice.gold import good_reply
    from fairlead.apprentice.scenes import Scene
    from fairlead.judges.gold import gold

    rows = []
    for case in ctx.prompts.cases:
        scene = Scene(str(case.meta["kind"]), case.messages, {"good": case.reference}, case.cluster)
        rows.append(Exchange(case.messages, (assistant(good_reply(scene)),), case.meta))
    used: Used = (("train", "gold", gold("facts").lineage),)
    what = {"stage": "gold", "prompts": ctx.prompts.hash, "code": code_hash("apprentice")}
    entry = ctx.cache.make("gold", what, lambda folder: write_exchanges(folder / "data.jsonl", rows))
    places = tuple(f"gold answer {i}" for i in range(len(rows)))
    return Data(entry, tuple(rows), places, used, f"{len(rows):,} gold answers", {"rows": len(rows)})


def require_oracle(name: str, ctx: Context) -> None:
    if not ctx.world:
        raise InputError(f"layer {name!r}: gold labels exist only for the apprentice, whose world is known")
    if not ctx.oracle:
        raise InputError(
            f"layer {name!r} learns from gold labels, which no real model has; "
            "for a comparison with the upper bound say so with --oracle"
        )
