"""Reward models and reinforcement learning in a stack, on a tiny model that lives in the apprentice's world.

It answers next to nothing rightly; what is tested is what the stages make, keep, tell and refuse.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from fairlead.constitution.yaml import parse_yaml
from fairlead.exchange import Ranking, exchange, from_json
from fairlead.judges.lineage import OptimisedJudge
from fairlead.judges.reward_ensemble import open_reward_folder
from fairlead.judges.rules import Judged
from fairlead.methods import policy as loop
from fairlead.stack import run as runner
from fairlead.stack.folder import read_lines
from fairlead.stack.plan import Plan
from fairlead.stack.plan_data import Term
from fairlead.stack.read import parse_plan, read_stack
from fairlead.stack.run import Options, run_plan
from fairlead.stack.stages import policy as stage
from fairlead.stack.stages.judged import Read
from fairlead.stack.voice import Advance, Quiet
from support.talker import talker
from support.world import descendant

STACK = """
model: {model}
prompts: {{per_principle: 4}}
measure: {{cases: 3, only: [sums]}}
layers:
  - sft: {{data: {{demonstrations: {{n: 16}}}}, steps: 2, rows_per_step: 8}}
  - reward: {{name: liked, preferences: {{from: people, replies: 3, max_tokens: 12, held_out: 0.3}}, steps: 2, rows_per_step: 8}}
  - ppo: {{reward: [liked], critic: liked, ptx: 0.3, ptx_rows: 2, steps: 2, passes: 1, {SMALL}}}
  - sft:
      name: restart
      from: base
      data:
        rejection: {{model: ppo, prompts: {{tasks: given, n: 6, general: false}}, judges: ["regex:."], replies: 2, max_tokens: 12}}
        general: {{from: own, n: 4}}
      steps: 1
  - grpo:
      name: late
      reward: [{{judge: "regex:[aeiou]", name: vowel, on: tasks}}, {{judge: liked, since: 0.75, calibrated: true, weight: 0.5}}]
      prompts: {{tasks: given, n: 6}}
      steps: 8
      replies: 3
      {BLOCK}
"""
SETTINGS = {"prompts_per_step": 4, "max_tokens": 12, "lr": 1e-3, "kl_burst": 1e3, "reward_cliff": "null"}
SMALL = ", ".join(f"{key}: {value}" for key, value in SETTINGS.items())
BLOCK = "\n      ".join(f"{key}: {value}" for key, value in SETTINGS.items())


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return descendant(tmp_path_factory.mktemp("world") / "model")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def plan(world: Path) -> Plan:
    return parse_plan(parse_yaml(STACK.format(model=world, SMALL=SMALL, BLOCK=BLOCK), "fairlead.yaml"))


def options(cache: Path, out: str = "run") -> Options:
    return Options(out=Path(out), cache=cache, threads=1)


def only(plan: Plan, *names: str, **grpo: Any) -> Plan:
    """The plan with these stages alone, the last one started from the first; `grpo` are settings of the last."""
    layers = [layer for layer in plan.layers if layer.name in names]
    last = layers[-1]
    train = last.train.model_copy(update=grpo)  # type: ignore[union-attr]
    layers[-1] = last.model_copy(update={"train": train, "from_": layers[0].name})
    return plan.model_copy(update={"layers": tuple(layers)})


def test_rewards_stand_between_the_layers_and_are_none(plan: Plan, cache: Path) -> None:
    voice = Quiet()
    results = run_plan(plan, options(cache), voice).results
    assert results["layers"] == ["base", "sft", "ppo", "restart", "late"]
    assert {row["layer"] for row in results["measures"]} == set(results["layers"])
    assert [row["layer"] for row in results["stages"]] == ["sft", "liked", "ppo", "restart", "late"]
    (reward,) = results["rewards"]
    assert reward["name"] == "liked" and reward["from"] == "sft" and reward["optimised_by"] == ["ppo", "late"]
    own = next(row for row in reward["accuracy"] if (row["scorer"], row["pairs"]) == ("reward", "all"))
    assert 0 <= own["low"] <= own["value"] <= own["high"] <= 1 and own["n"] > 0
    rankings = [from_json(Ranking, row) for row in read_lines(Path("run/rewards/liked/data.jsonl"))]
    assert max(len(row.replies) for row in rankings) == 3 and results["stages"][1]["labels"] == {
        "simulated comparisons": len(rankings)
    }
    judge = open_reward_folder(Path("run/rewards/liked/judge"))
    (verdict,) = judge.judge([exchange("what is 2 + 2 ?", "4 .")])
    assert verdict.raw is not None
    said = [line for line in voice.lines if line.startswith("simulated: ")]
    assert len(said) == len(results["simulated"]) == 2 and "rater" in said[1] and "demonstrator" in said[0]
    moves = {(effect["from"], effect["to"]) for effect in results["side_effects"]}
    assert moves == {("base", "sft"), ("sft", "ppo"), ("base", "restart"), ("restart", "late"), ("base", "late")}


def test_a_late_reward_shows_in_the_numbers_of_the_last_quarter_alone(plan: Plan, cache: Path) -> None:
    rows = run_plan(plan, options(cache)).results["training"]["late"]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert ["reward.liked" in row for row in rows] == [False] * 6 + [True] * 2
    for row in rows:
        assert row["reward"] == pytest.approx(row["reward.vowel"] + 0.5 * row.get("reward.liked", 0.0), abs=1e-9)
    assert all(0 < row["reward.liked"] < 1 for row in rows[6:]), "calibrated"
    asked = read_lines(Path("run/layers/late/prompts.jsonl"))
    kinds = [row["meta"]["asked_as"] for row in asked]
    assert kinds.count("tasks") == 6 and kinds.count("general") > 6


def test_of_a_later_layer_what_passed_teaches_the_base_again(plan: Plan, cache: Path) -> None:
    results = run_plan(plan, options(cache)).results
    labels = {row["layer"]: row["labels"] for row in results["stages"]}["restart"]
    rows = read_lines(Path("run/layers/restart/data.jsonl"))
    kept = labels["verified replies"]
    assert 1 <= kept <= 6 and kept < len(rows) <= kept + 4, "at most one of each prompt, then the base's own"
    assert all(row["reply"] for row in rows)
    layer = json.loads(Path("run/layers/restart/layer.json").read_bytes())
    assert layer["data"]["counts"]["prompts"] == 6 and layer["data"]["counts"]["answered"] == kept


def test_the_second_run_trains_nothing(plan: Plan, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_plan(plan, options(cache)).results

    def never(*args: Any, **more: Any) -> Any:
        raise AssertionError("it was all there")

    monkeypatch.setattr(loop, "train_policy", never)
    monkeypatch.setattr("fairlead.methods.sampling.draw", never)
    voice = Quiet()
    again = run_plan(plan, options(cache, "again"), voice).results
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in first.items() if k != "seconds"}
    assert sum(again["seconds"][name] for name in ("sft", "liked", "ppo", "restart", "late")) == 0
    assert Path("again/rewards/liked/judge/reward.json").is_file()
    assert [line for line in voice.lines if line.startswith("simulated: ")], "said again, though nothing was drawn"


def test_what_was_written_repeats_the_run(plan: Plan, cache: Path) -> None:
    run_plan(plan, options(cache))
    read = parse_plan(read_stack(Path("run/stack.lock.yaml")))
    assert [(layer.name, layer.from_) for layer in read.layers] == [(layer.name, layer.from_) for layer in plan.layers]
    again = run_plan(read, options(cache, "again")).results
    assert sum(again["seconds"][name] for name in ("sft", "liked", "ppo", "restart", "late")) == 0


class Killed(BaseException):
    pass


class Dying(Quiet):
    """Dies while the layer trains, after so many optimiser steps."""

    def __init__(self, layer: str, after: int) -> None:
        super().__init__()
        self.layer, self.after = layer, after

    @contextmanager
    def progress(self, what: str) -> Iterator[Advance]:
        def advance(done: int, total: int) -> None:
            if what == f"{self.layer}: training" and done == self.after:
                raise Killed

        yield advance


def test_a_killed_policy_goes_on_without_asking_anything_twice(
    plan: Plan, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = only(plan, "sft", "liked", "late", steps=6)
    monkeypatch.setattr(stage, "STATES_EVERY", 2)
    whole = run_plan(short, options(cache)).results
    own = tmp_path / "own"
    shutil.copytree(cache, own)
    for entry in (own / "weights").iterdir():
        if json.loads((entry / "key.json").read_bytes())["method"] == "grpo":
            shutil.rmtree(entry)
    judged: list[int] = []
    plain = Read.judge

    def counting(self: Read, items: Sequence[Any]) -> Any:
        judged.append(len(items))
        return plain(self, items)

    monkeypatch.setattr(Read, "judge", counting)
    with pytest.raises(Killed):
        run_plan(short, options(own, "killed"), Dying("late", 3))
    assert not Path("killed").exists()
    states = sorted((own / "unfinished").glob("training-*/step-*"))
    assert [int(state.name.removeprefix("step-")) for state in states] == [2, 3]
    shutil.rmtree(states[-1])  # which a process that is killed outright has not written
    before = len(judged)
    voice = Quiet()
    again = run_plan(short, options(own, "killed"), voice).results
    assert [line for line in voice.lines if "going on after step 2 of 6" in line]
    assert again["training"] == whole["training"]
    one, two = (Path(name, "model", "model.safetensors").read_bytes() for name in ("run", "killed"))
    assert one == two
    # One judge in every step, and the late one in the last: a step's replies are judged once, killed or not.
    assert before == 3 and len(judged) == 6 + 1
    assert not [f for f in (own / "unfinished").rglob("*") if f.is_file()]


def test_the_reward_that_was_optimised_is_no_evidence_from_there_on(
    plan: Plan, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_plan(plan, options(cache))
    judge = open_reward_folder(Path("run/rewards/liked/judge"), name="a name of its own")
    monkeypatch.setattr(runner, "auditors", lambda ctx, bank: {"sums": judge})
    with pytest.raises(OptimisedJudge, match="known there as simulated rater.* was optimised by layer 'liked'"):
        run_plan(plan, options(cache, "audited"))
    weights = frozenset(leaf for leaf in judge.lineage if leaf.kind == "reward")
    alone: Any = Judged("its weights alone", judge.judge, weights)
    monkeypatch.setattr(runner, "auditors", lambda ctx, bank: {"sums": alone})
    with pytest.raises(OptimisedJudge, match=r"known there as liked\) was optimised by layer 'ppo'"):
        run_plan(plan, options(cache, "audited"))
    monkeypatch.setattr(runner, "auditors", lambda ctx, bank: {"sums": judge})
    short = plan.model_copy(update={"layers": plan.layers[:2]})  # before anybody optimised it
    found = run_plan(short, options(cache, "before")).results["measures"]
    assert {row["evidence"] for row in found if row["layer"] in ("base", "sft")} <= {True, "related"}


def test_a_collapse_is_said_in_the_line_and_among_the_warnings(plan: Plan, cache: Path) -> None:
    voice = Quiet()
    short = only(plan, "sft", "liked", "late", steps=6, lr=0.3, kl_burst=1e-3)
    late = short.layers[-1].model_copy(update={"reward": (Term(judge="liked"),)})
    short = short.model_copy(update={"layers": (*short.layers[:-1], late)})
    results = run_plan(short, options(cache, "collapsed"), voice).results
    (warning,) = results["warnings"]
    assert warning.startswith("late stopped early: KL burst")
    assert "STOPPED EARLY, KL burst" in results["stages"][-1]["summary"]
    assert f"warning: {warning}" in voice.lines
    assert len(results["training"]["late"]) < 6


def test_a_rule_that_is_rewarded_is_no_measure_of_what_it_did(tmp_path: Path, cache: Path) -> None:
    """Outside the world rules audit: where one is a reward, what it would measure is named and left out at once."""
    model = talker(tmp_path / "elsewhere")
    text = f"""
    model: {model}
    measure: {{cases: 2}}
    layers:
      - grpo: {{reward: ["rule:refusal"], steps: 1, replies: 2, {SMALL}}}
    """
    voice = Quiet()
    results = run_plan(parse_plan(parse_yaml(text, "fairlead.yaml")), options(cache), voice).results
    left = [line for line in voice.lines if line.startswith("not measured: ") and "layer 'grpo'" in line]
    assert left and all("rule:refusal" in line for line in left)
    assert any("only replies that answer have a style" in line for line in voice.lines)
    measured = {row["measure"] for row in results["measures"]}
    assert (
        "facts" in measured
        and "style_emoji" not in measured
        and not any(f"measure {one!r}" in line for one in measured for line in left)
    )
    named = parse_plan(parse_yaml(text.replace("cases: 2", "cases: 2, audit: rules"), "fairlead.yaml"))
    with pytest.raises(OptimisedJudge, match="was optimised by layer 'grpo'"):
        run_plan(named, options(cache, "named"))
