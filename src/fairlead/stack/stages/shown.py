"""Replies that a model is shown: of people, of a simulated demonstrator of the apprentice's world, or its own."""

from __future__ import annotations

import json
from pathlib import Path

from fairlead.errors import InputError
from fairlead.exchange import Exchange, from_json, to_json
from fairlead.feedback.split import take
from fairlead.feedback.write import write_exchanges
from fairlead.judges.lineage import leaf
from fairlead.stack.context import Built, Context, Used
from fairlead.stack.folder import read_lines, write_json
from fairlead.stack.identity import code_hash, digest, file_hash
from fairlead.stack.plan_base import PEOPLE
from fairlead.stack.plan_data import GIVEN, OWN, Demonstrations
from fairlead.stack.stages.data import Data, fitted, held_out_prompts
from fairlead.stack.stages.train import DATA_ROOMS


def demonstrations_of(config: Demonstrations, name: str, ctx: Context) -> str:
    """Where a stage's demonstrations come from: own, simulated, or the path of a file.

    Raises InputError where there is no such source here, saying what to give.
    """
    if config.from_ != PEOPLE:
        return config.from_
    if ctx.plan.demonstrations is not None:
        return ctx.plan.demonstrations
    if ctx.world:
        return "simulated"
    raise InputError(
        f"layer {name!r} imitates people: give a file of conversations with --demonstrations (or `demonstrations:`); "
        "only in the apprentice's world can a demonstrator be simulated"
    )


def demonstrated(config: Demonstrations, name: str, below: Built, ctx: Context) -> Data:
    """What the stage of this name imitates. `below` is the model that it starts from."""
    source = demonstrations_of(config, name, ctx)
    if source == "simulated":
        return _simulated(config, name, ctx)
    return _own(config, name, below, ctx) if source == OWN else from_file(source, ctx)


def _simulated(config: Demonstrations, name: str, ctx: Context) -> Data:
    from fairlead.apprentice import annotators

    show = annotators.worked if config.show == "worked" else annotators.demonstrations
    try:
        written = show(config.n, ctx.seed, slips=config.slips)
    except ValueError as error:
        raise InputError(f"layer {name!r}: demonstrations: {error}") from None
    kept_out = held_out_prompts(ctx)  # simulated comparisons ask the demonstrator's own prompts
    rows = tuple(row for row in written if row.messages not in kept_out)
    left = len(written) - len(rows)
    if not rows:
        raise InputError(f"layer {name!r}: demonstrations: every prompt is held out to measure preference accuracy on")
    kind = "worked examples" if config.show == "worked" else "demonstrations"
    ctx.simulates(f"{name}: {kind} by a demonstrator of the apprentice's world ({config.slips:.0%} slips)")
    what = {
        "stage": "simulated demonstrations", "config": config.model_dump(mode="json"), "seed": ctx.seed,
        "rows": digest([to_json(row) for row in rows]), "code": code_hash("apprentice"),
    }  # fmt: skip
    entry = ctx.cache.make("demonstrations", what, lambda folder: write_exchanges(folder / "data.jsonl", rows))
    shown = f"{config.show} {config.slips:g} {ctx.seed}"
    used: Used = (("train", "simulated demonstrator", leaf("annotator", text="simulated demonstrator", code=shown)),)
    places = tuple(f"demonstration {i}" for i in range(len(rows)))
    said = f"{len(rows):,} {kind} by a simulated demonstrator" + _left_out(left)
    facts = {"rows": len(rows), "held_out": left}
    return Data(entry, rows, places, used, said, facts, {f"simulated {kind}": len(rows)})


def _own(config: Demonstrations, name: str, below: Built, ctx: Context) -> Data:
    """The model's own greedy replies to the run's prompts; those that did not end are left out and counted."""
    what = {
        "stage": "own replies", "n": config.n, "prompts": ctx.prompts.hash, "model": below.identity,
        "code": code_hash(*DATA_ROOMS), **ctx.numerics,
    }  # fmt: skip

    def build(folder: Path) -> None:
        from fairlead.methods.sampling import draw

        cases = fitted(ctx, below).cases[: config.n]
        with ctx.voice.progress(f"{name}: replies of {below.name}"):
            found = draw(
                below.model, [case.messages for case in cases], max_tokens=_ROOM, temperature=0.0, seed=ctx.seed
            )
        kept = [
            e for one in found for e, cut in zip(one.exchanges, one.truncated, strict=True) if not cut and e.reply_text
        ]
        write_exchanges(folder / "data.jsonl", kept)
        write_json(folder / "about.json", {"left_out": len(cases) - len(kept)})

    entry = ctx.cache.make("demonstrations", what, build)
    rows = tuple(from_json(Exchange, row) for row in read_lines(entry.path / "data.jsonl"))
    left = int(json.loads((entry.path / "about.json").read_bytes())["left_out"])
    said = f"{len(rows):,} replies of {below.name} itself" + (f"; {left:,} unfinished, left out" if left else "")
    places = tuple(f"own reply {i}" for i in range(len(rows)))
    return Data(entry, rows, places, (), said, {"rows": len(rows), "left_out": left})


_ROOM = 256  # tokens of an own reply


def from_file(path: str, ctx: Context) -> Data:
    """Conversations, or the chosen side of preferences, from a file."""
    demonstrations = ctx.read_demonstrations(path)
    kept_out = held_out_prompts(ctx)
    left = [i for i, row in enumerate(demonstrations.rows) if row.messages in kept_out]
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
    name = ctx.preferences_path if path == GIVEN else path
    said = f"{len(rows):,} demonstrations from {Path(name).name}" + _left_out(len(left))
    kind = "simulated" if path == GIVEN and ctx.preferences_are_simulated else "human"
    labels = {f"{kind} demonstrations": len(rows)}
    return Data(entry, rows, places, (), said, {"rows": len(rows), "held_out": len(left)}, labels)


def _left_out(count: int) -> str:
    return f"; {count:,} left out, whose prompts are held out to measure preference accuracy on" if count else ""
