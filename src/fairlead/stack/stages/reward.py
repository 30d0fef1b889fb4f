"""A reward model for the stages after it: from AI feedback, people's comparisons, a simulated rater's, or gold ones.

It is no layer: it answers nothing. Its accuracy on comparisons that it did not learn from is worked out beside, and its
lineage stands on the train side of every layer that optimises it, so it can be no evidence there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.errors import InputError
from fairlead.exchange import to_json
from fairlead.feedback.rankings import Comparison
from fairlead.feedback.split import split_by_group, take
from fairlead.judges.lineage import merge
from fairlead.methods.catalogue import METHODS
from fairlead.stack.cache import Entry
from fairlead.stack.context import Built, Context, Rewarded, Used, used_from_json, used_to_json
from fairlead.stack.folder import write_lines
from fairlead.stack.identity import code_hash, digest, file_hash
from fairlead.stack.outcome import facts_of, warnings_of
from fairlead.stack.plan import RewardLayer
from fairlead.stack.simulated import whose
from fairlead.stack.stages.data import comparisons_of
from fairlead.stack.stages.dpo import compared
from fairlead.stack.stages.rater import ranked
from fairlead.stack.stages.train import Clock, require_weights, settled, trained

JUDGE = "judge"  # the folder of a judge in its entry


@dataclass(frozen=True, slots=True)
class Learnt:
    """Comparisons to learn from, whose they are, and a line that says it."""

    entry: Entry
    rows: tuple[Comparison, ...]
    places: tuple[str, ...]
    used: Used
    said: str
    facts: dict[str, Any]
    labels: dict[str, int]


def reward(layer: RewardLayer, below: Built, ctx: Context) -> Rewarded:
    """Make or read the comparisons, keep some from training, learn the rest, and say how often it is right on those."""
    require_weights(layer.kind, layer.name, below, ctx)
    clock = Clock()
    data = _learnt(layer, below, ctx)
    config = settled(layer.kind, layer.train, ctx)
    share = layer.preferences.held_out
    train_at, out_at = _split(layer, data, share, ctx)
    labellers = merge(lineage for _, _, lineage in data.used)

    def train(model: Any, run: Any) -> Any:
        made = METHODS[layer.kind].train(
            model,
            take(data.rows, train_at),
            config,
            run,
            places=take(data.places, train_at),
            held_out=take(data.rows, out_at),
            labelled_by=labellers,
            name=layer.name,
        )
        facts = {
            **facts_of(made),
            "held_out": _accuracy(made.model, take(data.rows, out_at), ctx.seed),
            "lineage": used_to_json((("train", layer.name, made.model.lineage),)),
        }
        return made.model, facts, made.records, tuple(warnings_of(made, config))

    split = {
        "comparisons": data.entry.key, "held_out": share, "seed": ctx.seed, "name": layer.name,
        "code": code_hash("judges", "stack/stages/reward"),
    }  # fmt: skip
    # The entry's own key does not know which of its rows are learnt from.
    source = dataclasses.replace(data.entry, key=digest(split))
    entry, facts = trained(layer.name, layer.kind, config, source, below, ctx, train, into=JUDGE)
    ((_, _, lineage),) = used_from_json(facts["lineage"])
    return Rewarded(
        name=layer.name,
        kind=layer.kind,
        identity=digest({"judge": entry.key}),
        folder=entry.path / JUDGE,
        lineage=lineage,
        start=below.name,
        summary="; ".join([data.said, f"{facts['steps']:,} steps", *_right(facts["held_out"])]),
        used=data.used,
        entry=entry.path,
        data=data.entry.path,
        seconds=clock.seconds if entry.made or data.entry.made else None,
        facts={"data": data.facts, "train": facts},
        settings=config.model_dump(mode="json"),
        warnings=tuple(f"{layer.name}: {told}" for told in (*data.facts.get("warnings", ()), *facts["warnings"])),
        labels=data.labels,
    )


def _split(layer: RewardLayer, data: Learnt, share: float, ctx: Context) -> tuple[list[int], list[int]]:
    from fairlead.feedback.formats import prompt_text

    try:
        return split_by_group([prompt_text(row.messages) for row in data.rows], share=share, seed=ctx.seed)
    except ValueError as error:
        raise InputError(f"layer {layer.name!r}: {error}") from None


def _accuracy(judge: Any, rows: Sequence[Comparison], seed: int) -> list[dict[str, Any]]:
    """How often the judge puts the better reply first, and whoever prefers the longer one does; [] without pairs."""
    from fairlead.methods.evaluate import decided
    from fairlead.methods.reward import as_preferences
    from fairlead.methods.reward_evaluate import evaluate_reward

    pairs = list(as_preferences(rows))
    if not decided(pairs):
        return []
    return [
        {
            "scorer": one.scorer, "pairs": one.pairs, "value": one.accuracy.value, "low": one.accuracy.low,
            "high": one.accuracy.high, "n": one.accuracy.n, "undecided": one.undecided, "missing": one.missing,
        }
        for one in evaluate_reward(judge, pairs, seed=seed).accuracy
    ]  # fmt: skip


def _right(rows: Sequence[dict[str, Any]]) -> list[str]:
    own = next((row for row in rows if (row["scorer"], row["pairs"]) == ("reward", "all")), None)
    if own is None:
        return ["no held-out pair has a better reply"]
    return [f"right on {own['value']:.2f} [{own['low']:.2f}, {own['high']:.2f}] of {own['n']:,} held-out pairs"]


def _learnt(layer: RewardLayer, below: Built, ctx: Context) -> Learnt:
    config = layer.preferences
    source = comparisons_of(config, layer.name, ctx)
    if source in ("ai", "gold"):
        pairs = compared(layer.name, config, below, ctx, gold=source == "gold")
        return Learnt(pairs.entry, pairs.rows, pairs.places, pairs.used, pairs.said, pairs.facts, dict(pairs.labels))
    if source == "rater":
        found = ranked(config, layer.name, below, ctx)
        used: Used = (("train", "simulated rater", found.rater),)
        places = tuple(f"ranking {i}" for i in range(len(found.rows)))
        labels = {"simulated comparisons": len(found.rows)}
        return Learnt(found.entry, found.rows, places, used, found.said, {"counts": found.counts}, labels)
    return _from_file(source, ctx)


def _from_file(path: str, ctx: Context) -> Learnt:
    rows = ctx.read_comparisons(path)
    hashes = [file_hash(f.path) for f in rows.report.files]

    def build(folder: Path) -> None:
        write_lines(folder / "data.jsonl", map(to_json, rows.rows))

    entry = ctx.cache.make(
        "comparisons",
        {"files": hashes, "skip": ctx.skip_bad_rows, "code": code_hash("feedback")},
        build,
    )
    used, kind = whose(path, hashes, ctx)
    said = f"{len(rows):,} comparisons from {Path(path).name}"
    return Learnt(entry, rows.rows, rows.places, used, said, {"rows": len(rows)}, {f"{kind} comparisons": len(rows)})
