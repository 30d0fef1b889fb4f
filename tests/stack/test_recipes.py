"""Every recipe reads, stands the check before work, says which file it lacks, and has a small form of itself."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from fairlead.constitution.yaml import parse_yaml
from fairlead.errors import InputError
from fairlead.methods.config import Training
from fairlead.stack.plan import Plan, RewardLayer, SFTLayer
from fairlead.stack.plan_rl import PolicyLayer
from fairlead.stack.preflight import preflight
from fairlead.stack.read import parse_plan, read_recipe, read_stack, recipe_names, with_options, with_recipe
from fairlead.stack.run import Options, context
from fairlead.stack.simulated import whose
from fairlead.stack.smoke import MOST, smoke
from fairlead.stack.stages.asked import asked
from fairlead.stack.voice import Quiet
from support import tiny

HISTORIC = [
    "constitutional-rl", "instructgpt", "online", "r1", "r1-aligned-first", "r1-preferences-first", "safe",
]  # fmt: skip
ALONE = ["constitutional", "dpo", "managed", *HISTORIC]  # run on the apprentice without any file of the user


def planned(recipe: str, **options: Any) -> Plan:
    given = {tuple(key.split("__")): value for key, value in options.items()}
    return parse_plan(with_recipe(with_options(read_stack(None), given), read_recipe(recipe)))


def checked(plan: Plan) -> list[str]:
    """The check before work; what was said on the way."""
    voice = Quiet()
    preflight(context(plan, Options(threads=1), voice))
    return voice.lines


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_short_and_says_whose_it_is(name: str) -> None:
    text = resources.files("fairlead.stack").joinpath("recipes", f"{name}.yaml").read_text()
    lines = text.splitlines()
    assert lines[0].startswith("# ") and len(lines) <= 26 and max(map(len, lines)) <= 125
    if name in HISTORIC:
        assert "arXiv" in text
    assert planned(name).layers


@pytest.mark.parametrize("name", ALONE)
def test_a_recipe_needs_no_file_in_the_apprentices_world(name: str) -> None:
    pytest.importorskip("torch")
    said = checked(planned(name, prompts__per_principle=4))
    assert all("Traceback" not in line for line in said)


@pytest.fixture
def elsewhere_model(tmp_path: Path) -> Path:
    pytest.importorskip("torch")
    return tiny.folder(tmp_path / "model")


def test_where_nobody_brings_comparisons_the_world_s_are_called_simulated(tmp_path: Path) -> None:
    """Of `n` prompts a pair each at most; the same again from the cache; no human's in the ledger."""
    pytest.importorskip("torch")
    plan, voice = planned("dpo", prompts__per_principle=4), Quiet()
    ctx = context(plan, Options(threads=1, cache=tmp_path / "cache"), voice)
    pairs = ctx.preferences
    assert 8 <= len(pairs) <= 24 and all(pair.annotator == "simulated rater" for pair in pairs.rows)
    assert [line for line in voice.lines if line.startswith("simulated: preferences: the best and the worst")]
    used, kind = whose(ctx.preferences_path, ["h"], ctx)
    assert (used[0][:2], kind) == (("train", "simulated rater"), "simulated")
    assert context(plan, Options(threads=1, cache=tmp_path / "cache"), Quiet()).preferences_path == ctx.preferences_path
    second = context(
        planned("dpo", prompts__per_principle=4, seed=1), Options(threads=1, cache=tmp_path / "cache"), Quiet()
    )
    assert second.preferences.rows != pairs.rows, "another seed has others"
    alone = context(plan, Options(threads=1, cache=tmp_path / "cache"), quiet := Quiet())
    assert whose("mine.jsonl", ["h"], alone)[1] == "human" and not quiet.lines, "nothing is made for who brings a file"
    other = context(planned("dpo", preferences="mine.jsonl"), Options(threads=1), Quiet())
    assert other.preferences_path == "mine.jsonl" and whose("mine.jsonl", ["h"], other)[1] == "human"


@pytest.mark.parametrize(
    ("recipe", "given", "option"),
    [
        ("instructgpt", {}, "--demonstrations"),
        ("instructgpt", {"demonstrations": "demos.jsonl"}, "--preferences"),
        ("online", {}, "--demonstrations"),
        ("safe", {"demonstrations": "demos.jsonl"}, "--preferences"),
        ("r1", {}, "--demonstrations"),
        ("r1", {"demonstrations": "demos.jsonl"}, "--prompts"),
        ("r1", {"demonstrations": "demos.jsonl", "prompts__from": "tasks.jsonl"}, "--preferences"),
        ("r1-preferences-first", {"demonstrations": "demos.jsonl", "preferences": "pairs.jsonl"}, "--prompts"),
        ("r1-aligned-first", {}, "--preferences"),
        ("dpo", {}, "--preferences"),
    ],
)
def test_elsewhere_a_recipe_says_which_file_it_lacks(
    elsewhere_model: Path, recipe: str, given: dict[str, str], option: str
) -> None:
    files()
    with pytest.raises(InputError, match=option) as caught:
        checked(planned(recipe, model=str(elsewhere_model), **given))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("recipe", ["instructgpt", "online", "safe", "r1", "r1-preferences-first", "r1-aligned-first"])
def test_elsewhere_a_recipe_runs_on_files(elsewhere_model: Path, recipe: str) -> None:
    files()
    given = {"demonstrations": "demos.jsonl", "preferences": "ranks.jsonl", "prompts__from": "tasks.jsonl"}
    said = checked(planned(recipe, model=str(elsewhere_model), **given))
    assert not [line for line in said if line.startswith("simulated")]
    assert [line for line in said if line.startswith("ranks.jsonl: replies by order")]


def files() -> None:
    """Demonstrations, pairs, rankings, and prompts of which some bring their answer."""
    rows: dict[str, list[dict[str, Any]]] = {
        "demos.jsonl": [{"prompt": f"say {i}", "completion": f"{i}"} for i in range(20)],
        "pairs.jsonl": [{"prompt": f"say {i}", "chosen": "yes", "rejected": "no"} for i in range(20)],
        "ranks.jsonl": [{"prompt": f"say {i}", "replies": ["a", "b", "c"], "order": [2, 0, 1]} for i in range(20)],
        "tasks.jsonl": [{"prompt": f"what is {i} + 1 ?", **({"reference": i + 1} if i % 2 else {})} for i in range(20)],
    }
    for name, lines in rows.items():
        Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_tasks_without_a_single_answer_are_refused(elsewhere_model: Path) -> None:
    files()
    Path("tasks.jsonl").write_text('{"prompt": "what is 1 + 1 ?"}\n')
    given = {"demonstrations": "demos.jsonl", "preferences": "pairs.jsonl", "prompts__from": "tasks.jsonl"}
    with pytest.raises(InputError, match="not one of 1 prompts in tasks.jsonl brings its right answer"):
        checked(planned("r1", model=str(elsewhere_model), **given))


# ---------------------------------------------------------------------------------------------- the small form


@pytest.mark.parametrize("name", recipe_names())
def test_the_small_form_has_the_same_stages_and_small_numbers(name: str) -> None:
    whole = planned(name)
    small = smoke(whole)
    assert [(a.name, a.kind, a.from_) for a in small.layers] == [(a.name, a.kind, a.from_) for a in whole.layers]
    assert small.prompts.per_principle == MOST["per_principle"] and small.measure.cases == MOST["cases"]
    for layer in small.layers:
        if layer.trains:
            train: Training = layer.train  # type: ignore[union-attr]
            assert (train.steps or 0) <= MOST["steps"] and (train.epochs or 0) <= MOST["epochs"]
            assert getattr(train, "prompts_per_step", 0) <= MOST["prompts_per_step"]
        if isinstance(layer, PolicyLayer):
            assert layer.prompts.n <= MOST["n"]
        if isinstance(layer, SFTLayer) and layer.data.rejection is not None:
            assert layer.data.rejection.prompts.n <= MOST["n"] and layer.data.general is not None
            assert layer.data.general.n <= MOST["n"]
    train = next((layer.train for layer in small.layers if isinstance(layer, PolicyLayer)), None)
    assert train is None or type(train).model_validate(train.model_dump(exclude_unset=True)), (
        "settings that still belong together"
    )


def test_the_small_form_leaves_what_is_smaller_as_it_is() -> None:
    text = "measure: {cases: 3}\nlayers:\n - grpo: {reward: [exact], prompts: {tasks: given, n: 5}, steps: 2}"
    plan = parse_plan(parse_yaml(text, "fairlead.yaml"))
    small = smoke(plan)
    assert small.measure.cases == 3 and small.layers[0].train.steps == 2  # type: ignore[union-attr]
    assert small.layers[0].prompts.n == 5  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------- settings of the new stages


def plan(text: str) -> Plan:
    return parse_plan(parse_yaml(text, "fairlead.yaml"))


def test_a_reward_is_no_layer_and_the_next_stage_starts_from_the_model_before_it() -> None:
    read = plan("layers:\n - sft: {data: {gold: true}}\n - reward\n - ppo: {reward: reward, critic: reward}")
    assert read.columns == ("base", "sft", "ppo")
    assert [(layer.name, layer.from_) for layer in read.layers] == [
        ("sft", "base"), ("reward", "sft"), ("ppo", "sft"),
    ]  # fmt: skip
    assert isinstance(read.layers[1], RewardLayer) and isinstance(read.layers[2], PolicyLayer)
    assert read.layers[2].train.advantage == "gae" and read.layers[2].train.passes == 4, "the algorithm's own defaults"


def test_a_judge_is_written_as_on_the_command_line_or_as_keys() -> None:
    read = plan(
        "layers:\n - reinforce++: {reward: ['short=-0.2*regex:^.{9,}', numeric, {judge: exact, since: 0.75, on: tasks}],"
        " prompts: {tasks: given}}"
    )
    (layer,) = read.layers
    assert isinstance(layer, PolicyLayer) and layer.name == "reinforcepp"
    assert [(t.column, t.judge, t.weight, t.since, t.on) for t in layer.reward] == [
        ("short", "regex:^.{9,}", -0.2, 0.0, "all"), ("numeric", "numeric", 1.0, 0.0, "all"),
        ("exact", "exact", 1.0, 0.75, "tasks"),
    ]  # fmt: skip


REWARD = "layers:\n - reward: {name: liked}\n - "


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (REWARD + "dpo: {from: liked}", "starts from 'liked', which is a reward, and no model; earlier: base"),
        (REWARD + "sft: {name: liked, data: {gold: true}}", "two layers are called 'liked'"),
        (REWARD + "ppo: {reward: [liked], critic: likd}", "critic: 'likd' is no earlier reward stage; earlier: liked"),
        (REWARD + "grpo: {reward: [liked], critic: liked}", "fairlead.yaml:3: layer 'grpo': critic: advantage group"),
        (REWARD + "grpo: {}", "layer 'grpo': missing key 'reward'"),
        (REWARD + "grpo: {reward: []}", "fairlead.yaml:3: layer 'grpo': reward"),
        (REWARD + "grpo: {reward: [{judge: liked, since: 0.5}]}", "reward: none counts from the first step on"),
        (REWARD + "grpo: {reward: [liked, liked]}", "two judges are called 'liked'"),
        (REWARD + "grpo: {reward: ['0*liked']}", "a weight of 0 has no say"),
        (REWARD + "grpo: {reward: [{judge: liked, on: tasks}]}", "is asked about tasks, and prompts: has none"),
        (REWARD + "grpo: {reward: [liked], cost: [exact]}", "cost: give the budget"),
        (REWARD + "safe-grpo: {reward: [liked], cost_budget: 0.1}", "cost_budget: give what is held under it"),
        (REWARD + "grpo: {reward: [liked], replies: 1}", "compares the replies of a prompt"),
        (REWARD + "grpo: {reward: [liked], stepz: 1}", "layer 'grpo': unknown key 'stepz'. Did you mean 'steps'"),
        (REWARD + "grpo: {reward: [liked], seed: 1}", "layer 'grpo': unknown key 'seed'"),
        (REWARD + "grpo: {reward: [liked], prompts: {general: false}}", "leaves nothing to ask"),
        ("layers:\n - reward: {preferences: {rater: {noise: 0}}}", "noise"),
        ("layers:\n - process-reward", "learns from labelled steps"),
        ("layers:\n - sft: {data: {demonstrations: 0}}", "demonstrations"),
        ("layers:\n - sft: {data: {gold: true, general: 5}}", "general is mixed in with rejection"),
        (
            "layers:\n - sft: {data: {rejection: {model: later, judges: [exact]}}}",
            "rejection: model 'later' is no earlier layer; earlier: base",
        ),
        (
            "layers:\n - sft: {data: {rejection: {model: base, judges: [{judge: exact, since: 0.5}]}}}",
            "since and on belong to a reward",
        ),
    ],
)
def test_what_cannot_work_is_refused_where_it_is_read(text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        plan(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("grpo: {reward: [exakt]}", "unknown judge 'exakt'"),
        ("grpo: {reward: ['gold:sums']}", "say --oracle"),
        ("grpo: {reward: ['critic:no-such']}", "no principle 'no-such'"),
        ("grpo: {reward: ['constitution:sincere']}", "no principle of dimension 'sincere'; it has"),
        ("grpo: {reward: [{judge: exact, calibrated: true}]}", "calibrated belongs to a reward stage"),
        ("reward: {preferences: {from: gold}}", "--oracle"),
        ("sft: {data: {rejection: {model: base, judges: [exakt]}}}", "unknown judge 'exakt'"),
        ("sft: {data: {demonstrations: {from: none.jsonl}}}", "none.jsonl"),
        ("reward: {preferences: {from: none.jsonl}}", "none.jsonl"),
    ],
)
def test_what_cannot_work_is_refused_before_work(text: str, says: str) -> None:
    pytest.importorskip("torch")
    with pytest.raises(InputError) as caught:
        checked(plan(f"prompts: {{per_principle: 2}}\nlayers:\n - {text}"))
    assert says in str(caught.value)


def test_an_ensemble_is_no_start_of_a_value_function() -> None:
    pytest.importorskip("torch")
    text = "prompts: {per_principle: 2}\nlayers:\n - reward-ensemble: {name: several}\n - ppo: {reward: several, critic: several}"
    with pytest.raises(InputError, match="'several' is a reward-ensemble; a value function starts from one"):
        checked(plan(text))


def test_the_share_of_harmful_requests_is_what_the_page_says() -> None:
    pytest.importorskip("torch")
    plan = planned("safe")
    ctx = context(plan, Options(threads=1), Quiet())
    (layer,) = (one for one in plan.layers if isinstance(one, PolicyLayer))
    rows = asked(layer.prompts, layer.name, ctx.base(), ctx).rows
    harmful = sum(row.meta["kind"] == "harm" for row in rows)
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text().replace("\n", " ")
    assert f"{harmful} of the {len(rows):,} prompts asked, {harmful / len(rows):.0%}" in page
