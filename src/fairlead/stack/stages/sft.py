"""Supervised fine-tuning: on the model's own revised replies, on demonstrations from a file, or on gold answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fairlead.exchange import Exchange, assistant, from_json, to_json
from fairlead.feedback.write import write_exchanges
from fairlead.methods.constitutional import ReviseConfig
from fairlead.methods.rounds import audited, from_plain, to_plain, told_in_brief, warnings_of_rounds
from fairlead.stack.context import Built, Context, Used, used_from_json, used_to_json
from fairlead.stack.folder import read_lines, write_json, write_lines
from fairlead.stack.identity import code_hash, digest
from fairlead.stack.outcome import warnings_of
from fairlead.stack.plan import Revise, SFTLayer
from fairlead.stack.stages.data import Data, early_refusal, fitted, principle_key, require_oracle
from fairlead.stack.stages.rejection import rejected
from fairlead.stack.stages.revise import audit_identity, auditors, must_be_answered, ordinary
from fairlead.stack.stages.shown import demonstrated, from_file
from fairlead.stack.stages.train import DATA_ROOMS, Clock, require_weights, settled, trained


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
        return tuned.model, facts, tuned.records, tuple(warnings_of(tuned, config))

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
        labels=data.labels,
    )


def _data(layer: SFTLayer, below: Built, ctx: Context) -> Data:
    if layer.data.revise is not None:
        return _revised(layer, layer.data.revise, below, ctx)
    if layer.data.file is not None:
        return from_file(layer.data.file, ctx)
    if layer.data.demonstrations is not None:
        return demonstrated(layer.data.demonstrations, layer.name, below, ctx)
    if layer.data.rejection is not None:
        return rejected(layer.data.rejection, layer.data.general, layer.name, below, ctx)
    return _gold(layer, ctx)


# -------------------------------------------------------------------------------------- critique and revise


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
    told = {k: about[k] for k in about if k != "used"}
    return Data(entry, rows, places, used_from_json(about["used"]), said, told, {"AI revisions": counts["rows"]})


# ------------------------------------------------------------------------------------------- other sources


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
    labels = {"gold answers": len(rows)}
    return Data(entry, tuple(rows), places, used, f"{len(rows):,} gold answers", {"rows": len(rows)}, labels)
