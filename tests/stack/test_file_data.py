"""Fine-tuning on a file: conversations, or the chosen side of preferences, without what a later stage holds out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairlead.apprentice.annotators import demonstrations
from fairlead.constitution.yaml import parse_yaml
from fairlead.feedback.split import is_held_out, split_by_group
from fairlead.stack.context import Context
from fairlead.stack.plan import SFTLayer
from fairlead.stack.read import parse_plan
from fairlead.stack.run import Options, context, preflight
from fairlead.stack.stages.shown import demonstrated, from_file
from fairlead.stack.voice import Quiet
from support.talker import CONSTITUTION, preferences

STACK = """
model: ./model
constitution: brand.yaml
preferences: pairs.jsonl
layers:
  - sft: {{data: {{file: {file}}}, steps: 2}}
  - dpo: {{preferences: {{from: {pairs}, held_out: 0.2}}, steps: 2}}
"""


def opened(file: str, pairs: str = "given") -> Context:
    Path("brand.yaml").write_text(CONSTITUTION)
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    preferences(Path("pairs.jsonl"))
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    talks = [{"prompt": row["prompt"], "completion": "yes"} for row in rows]
    Path("talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
    plan = parse_plan(parse_yaml(STACK.format(file=file, pairs=pairs), "fairlead.yaml"))
    return context(plan, Options(cache=Path("cache"), threads=1), Quiet())


@pytest.mark.parametrize(("file", "reply"), [("pairs.jsonl", "the boat is blue"), ("talks.jsonl", "yes")])
@pytest.mark.parametrize("pairs", ["given", "pairs.jsonl"])
def test_prompts_held_out_for_accuracy_are_not_imitated(file: str, reply: str, pairs: str) -> None:
    """The same file for both stages is the usual case; the pairs and the demonstrations of it are told apart."""
    ctx = opened(file, pairs)
    data = from_file(file, ctx)
    all_pairs = ctx.preferences
    kept, out = split_by_group(all_pairs.groups, share=0.2, seed=0)
    assert len(out) > 3
    assert [row.messages for row in data.rows] == [all_pairs.rows[i].messages for i in kept]
    assert {row.reply_text for row in data.rows} == {reply}
    assert f"{len(out)} left out, whose prompts are held out" in data.said
    assert [place.rpartition(":")[2] for place in data.places] == [str(i + 1) for i in kept]


WORLD = """
prompts: {per_principle: 4}
layers:
  - sft: {data: {demonstrations: {n: 40}}, steps: 2}
  - LEARNS: {preferences: {from: given, held_out: 0.3}, steps: 2}
"""


@pytest.mark.parametrize("learns", ["dpo", "reward"])
def test_a_simulated_demonstrator_does_not_show_what_simulated_comparisons_hold_out(learns: str) -> None:
    """Both are drawn of the same prompts of the world; the demonstrator's reply is one of those compared."""
    pytest.importorskip("torch")
    plan = parse_plan(parse_yaml(WORLD.replace("LEARNS", learns), "fairlead.yaml"))
    ctx = context(plan, Options(cache=Path("cache"), threads=1), Quiet())
    layer = plan.layers[0]
    assert isinstance(layer, SFTLayer) and layer.data.demonstrations is not None
    data = demonstrated(layer.data.demonstrations, layer.name, ctx.base(), ctx)
    pairs = ctx.preferences
    out = {row.messages for i, row in enumerate(pairs.rows) if is_held_out(pairs.groups[i], share=0.3, seed=0)}
    everything = {row.messages for row in demonstrations(40, 0)}
    assert len(out & everything) >= 3, "the demonstrator writes to prompts that are held out"
    assert {row.messages for row in data.rows} == everything - out
    assert f"{len(out)} left out, whose prompts are held out" in data.said
    assert data.facts == {"rows": 40 - len(out), "held_out": len(out)}
    alone = context(parse_plan(parse_yaml(WORLD.rpartition("  -")[0], "fairlead.yaml")), Options(threads=1), Quiet())
    everywhere = demonstrated(layer.data.demonstrations, layer.name, alone.base(), alone)
    assert len(everywhere.rows) == 40 and "left out" not in everywhere.said


def test_with_pairs_that_are_made_nothing_is_left_out() -> None:
    data = from_file("pairs.jsonl", opened("pairs.jsonl", "ai"))
    assert len(data.rows) == 60 and "left out" not in data.said


def test_a_plan_with_both_is_found_sound_before_the_work() -> None:
    ctx = opened("pairs.jsonl")
    preflight(ctx)
    assert any("chosen side" in line for line in ctx.voice.lines)  # type: ignore[attr-defined]
