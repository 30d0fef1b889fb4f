"""A whole run on a tiny model: layers, cache, resume, folder, and the line between training and evidence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.constitution.yaml import parse_yaml
from fairlead.errors import InputError
from fairlead.judges.lineage import OptimisedJudge
from fairlead.stack import run as runner
from fairlead.stack.plan import Plan
from fairlead.stack.read import parse_plan
from fairlead.stack.run import Options, run_plan
from fairlead.stack.voice import Quiet
from support.talker import CONSTITUTION, preferences, talker

STACK = """
model: {model}
constitution: brand.yaml
layers:
  - sft:
      data: {{revise: {{rounds: 1, critic: self, max_tokens: 8, critique_tokens: 4}}}}
      steps: 2
      rows_per_step: 4
  - dpo:
      preferences: {{from: ai, critic: self, max_tokens: 8}}
      steps: 2
      rows_per_step: 4
      kl_samples: 2
  - guard: {{critic: base}}
measure: {{cases: 3, only: [facts, sums, over_refusal]}}
"""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talker(tmp_path_factory.mktemp("talker") / "model")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the file: what a test did not change is not computed again."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def plan(model: Path, elsewhere: Path) -> Plan:
    (elsewhere / "brand.yaml").write_text(CONSTITUTION)
    return parse_plan(parse_yaml(STACK.format(model=model), "fairlead.yaml"))


def options(cache: Path, out: str = "run") -> Options:
    return Options(out=Path(out), cache=cache, threads=1)


def without_times(folder: Path | str) -> dict[str, object]:
    body: dict[str, object] = json.loads((Path(folder) / "results.json").read_bytes())
    body.pop("seconds")
    return body


def test_a_run_measures_every_layer_and_leaves_the_whole_folder(plan: Plan, cache: Path) -> None:
    done = run_plan(plan, options(cache))
    results = without_times("run")
    assert results["layers"] == ["base", "sft", "dpo", "guard"]
    rows = done.results["measures"]
    assert {(row["measure"], row["layer"]) for row in rows} == {
        (m, layer) for m in ("facts", "sums", "over_refusal") for layer in ("base", "sft", "dpo", "guard")
    }
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 and row["n"] == 3 for row in rows)
    pairs = {(effect["from"], effect["to"]) for effect in done.results["side_effects"]}
    assert pairs == {("base", "sft"), ("sft", "dpo"), ("dpo", "guard"), ("base", "guard")}
    folder = Path("run")
    assert {p.name for p in folder.iterdir()} == {
        "results.json", "stack.lock.yaml", "model", "layers", "exchanges", "log.jsonl",
    }  # fmt: skip
    assert sorted(p.name for p in (folder / "exchanges").iterdir()) == [
        "base.jsonl", "dpo.jsonl", "guard.jsonl", "sft.jsonl",
    ]  # fmt: skip
    assert (folder / "layers" / "sft" / "rounds.jsonl").is_file()
    assert (folder / "layers" / "dpo" / "data.jsonl").is_file()


def test_the_model_that_comes_out_loads_and_answers(plan: Plan, cache: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_plan(plan, options(cache))
    model = AutoModelForCausalLM.from_pretrained("./run/model")
    words = AutoTokenizer.from_pretrained("./run/model")
    ids = words.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_tensors="pt"
    )
    ids = ids["input_ids"] if not hasattr(ids, "shape") else ids
    assert model.generate(ids, max_new_tokens=4).shape[1] > ids.shape[1]


def test_nothing_changed_means_nothing_is_opened(plan: Plan, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_plan(plan, options(cache))
    first = without_times("run")

    def opened(*args: object, **more: object) -> None:
        raise AssertionError("a model was opened although everything is cached")

    monkeypatch.setattr("fairlead.stack.context.open_model", opened)
    monkeypatch.setattr("fairlead.models.local.open_local", opened)
    voice = Quiet()
    run_plan(plan, options(cache, "again"), voice)
    assert without_times("again") == first


def test_two_fresh_runs_of_one_seed_agree(plan: Plan, cache: Path, tmp_path: Path) -> None:
    run_plan(plan, options(cache))
    run_plan(plan, options(tmp_path / "other-cache", "other"))
    assert without_times("other") == without_times("run")


def test_another_seed_is_another_run(plan: Plan, cache: Path) -> None:
    run_plan(plan, options(cache))
    run_plan(plan.model_copy(update={"seed": 1}), options(cache, "other"))
    assert without_times("other") != without_times("run")


def test_a_changed_principle_remakes_what_reads_it_and_a_changed_say_does_not(plan: Plan, cache: Path) -> None:
    run_plan(plan, options(cache))
    entries = {p.name for p in (cache / "revisions").iterdir()}
    Path("brand.yaml").write_text(CONSTITUTION.replace('say: "no ."', 'say: "never ."'))
    run_plan(plan, options(cache, "two"))
    assert {p.name for p in (cache / "revisions").iterdir()} == entries
    Path("brand.yaml").write_text(CONSTITUTION.replace("Hurt nobody.", "Never hurt anyone at all."))
    run_plan(plan, options(cache, "three"))
    assert len({p.name for p in (cache / "revisions").iterdir()} - entries) == 1


def test_a_damaged_result_is_said_and_made_again(plan: Plan, cache: Path) -> None:
    run_plan(plan, options(cache))
    first = without_times("run")
    for victim in (cache / "revisions").glob("*/data.jsonl"):
        victim.write_bytes(victim.read_bytes()[:-20])
    voice = Quiet()
    run_plan(plan, options(cache, "again"), voice)
    assert any("damaged" in line for line in voice.lines)
    assert without_times("again") == first


def test_the_lock_is_a_stack_that_repeats_the_run(plan: Plan, cache: Path) -> None:
    from fairlead.constitution.yaml import read_yaml

    run_plan(plan, options(cache))
    again = parse_plan(read_yaml("run/stack.lock.yaml"))
    assert again.lock is not None
    assert again.lock["layers"]["sft"]["settings"]["lr"] > 0
    run_plan(again, options(cache, "again"))
    assert without_times("again") == without_times("run")


def test_an_interruption_leaves_no_folder_and_keeps_what_was_done(
    plan: Plan, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "write_layers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, options(cache))
    assert [p.name for p in Path().iterdir() if p.name != "brand.yaml"] == []


def test_an_earlier_run_stays_when_the_new_one_fails(plan: Plan, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_plan(plan, options(cache))
    before = (Path("run") / "results.json").read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner, "write_layers", full)
    with pytest.raises(Exception, match="disk is full"):
        run_plan(plan.model_copy(update={"seed": 3}), options(cache))
    assert (Path("run") / "results.json").read_bytes() == before
    assert sorted(p.name for p in Path().iterdir()) == ["brand.yaml", "run"]


def test_a_folder_that_is_no_run_is_never_replaced(plan: Plan, cache: Path) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is no run folder"):
        run_plan(plan, options(cache, "mine"))
    assert Path("mine/thesis.txt").read_text() == "years of work"


# --------------------------------------------------------------------------- the line between sides (DESIGN, idea 3)


def with_layers(plan: Plan, *kept: str, audit: str = "auto", only: tuple[str, ...] | None = None) -> Plan:
    layers, below = [], "base"
    for layer in plan.layers:
        if layer.name in kept:
            layers.append(layer.model_copy(update={"from_": below}))
            below = layer.name
    measure = plan.measure.model_copy(update={"audit": audit, "only": only})
    return plan.model_copy(update={"layers": tuple(layers), "measure": measure})


def voiced() -> None:
    """A constitution whose voice principle is audited by the very critic that trains on it."""
    Path("brand.yaml").write_text(
        CONSTITUTION
        + """  - id: voice
    dimension: voice
    severity: 2
    text: Speak like a clerk.
    guard: {at: [reply], on_violation: refuse, on_error: refuse}
    judges: {train: [critic], audit: [critic]}
"""
    )


def test_the_critic_that_trained_a_layer_is_refused_as_its_evidence_before_any_training(
    plan: Plan, cache: Path, model: Path
) -> None:
    voiced()
    before = set((cache / "weights").iterdir()) if (cache / "weights").is_dir() else set()
    with pytest.raises(OptimisedJudge, match="optimised by layer 'sft'"):
        run_plan(with_layers(plan, "sft", audit=str(model), only=("voice",)), options(cache))
    after = set((cache / "weights").iterdir()) if (cache / "weights").is_dir() else set()
    assert after == before
    assert not Path("run").exists()


def test_the_critic_of_a_guard_check_is_refused_too(plan: Plan, cache: Path, model: Path) -> None:
    voiced()
    with pytest.raises(OptimisedJudge, match="optimised by layer 'guard'"):
        run_plan(with_layers(plan, "guard", audit=str(model), only=("voice",)), options(cache))


# ----------------------------------------------------------------------------------------------- preferences


def test_preferences_from_a_file_bring_their_own_accuracy(plan: Plan, cache: Path) -> None:
    preferences(Path("pairs.jsonl"))
    stack = parse_yaml(
        f"model: {plan.model}\nconstitution: brand.yaml\npreferences: pairs.jsonl\n"
        "layers: [{dpo: {preferences: {from: given, held_out: 0.3}, lr: 0.001, rows_per_step: 8, kl_samples: 0}}]\n"
        "measure: {cases: 2, only: [sums]}",
        "fairlead.yaml",
    )
    voice = Quiet()
    done = run_plan(parse_plan(stack), options(cache), voice)
    assert any("prompt/chosen/rejected" in line for line in voice.lines)  # the format, said aloud
    rows = {row["layer"]: row for row in done.results["measures"] if row["measure"] == "preference_accuracy"}
    assert set(rows) == {"base", "dpo"} and rows["base"]["n"] == rows["dpo"]["n"] > 5
    scorers = {(row["layer"], row["scorer"]) for row in done.results["preference_accuracy"]}
    assert {("base", "longer wins"), ("dpo", "implicit"), ("dpo", "log-prob")} <= scorers
    effect = next(e for e in done.results["side_effects"] if e["measure"] == "preference_accuracy")
    assert effect["change"] is not None  # compared pair by pair


def test_other_methods_are_layers_too(plan: Plan, cache: Path) -> None:
    """KTO learns from both sides of the pairs that SimPO learns from; identical replies say nothing to either."""
    preferences(Path("pairs.jsonl"))
    with Path("pairs.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "same", "chosen": "yes", "rejected": "yes"}) + "\n")
    learning = "preferences: {from: given, held_out: 0.3}, lr: 0.001, rows_per_step: 8, steps: 2, kl_samples: 0"
    other = parse_yaml(
        f"model: {plan.model}\nconstitution: brand.yaml\npreferences: pairs.jsonl\n"
        f"layers: [{{simpo: {{{learning}}}}}, {{kto: {{from: base, {learning}}}}}]\n"
        "measure: {cases: 3, only: [sums]}",
        "fairlead.yaml",
    )
    done = run_plan(parse_plan(other), options(cache))
    simpo, kto = (json.loads(Path(f"run/layers/{name}/layer.json").read_bytes()) for name in ("simpo", "kto"))
    assert (simpo["kind"], kto["kind"]) == ("simpo", "kto")
    pairs = simpo["train"]["pairs"] + simpo["train"]["identical"]
    found = kto["train"]
    assert found["good"] == found["bad"] == pairs - found["undecided"] and found["steps"] == 2
    assert "good log-prob" in kto["summary"] and "chosen log-prob" in simpo["summary"]
    settings = {name: json.loads(next(Path(f"run/layers/{name}").rglob("train.json")).read_bytes())["config"]
                for name in ("simpo", "kto")}  # fmt: skip
    assert settings["simpo"]["gamma"] == 1.0 and settings["kto"]["good"] == 1.0
    assert {row["layer"] for row in done.results["preference_accuracy"]} == {"base", "simpo", "kto"}


# ------------------------------------------------------------------------------------------------ killed runs


def test_a_run_without_a_folder_to_write_to_is_refused_plainly(plan: Plan, cache: Path) -> None:
    Path("file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        run_plan(plan, options(cache, "file"))


KILL_AT = ("revisions", "weights", "measured")  # the first entry of this kind is there: kill


@pytest.mark.full
@pytest.mark.parametrize("moment", KILL_AT)
def test_a_killed_run_goes_on_to_the_identical_result(plan: Plan, cache: Path, moment: str, tmp_path: Path) -> None:
    run_plan(plan, options(cache, "whole"))
    own = tmp_path / "own-cache"
    Path("fairlead.yaml").write_text(STACK.format(model=plan.model))
    command = [
        sys.executable,
        "-m",
        "fairlead.cli.main",
        "align",
        "--out",
        "killed",
        "--cache",
        str(own),
        "--threads",
        "1",
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: any(p.name[:1] != "." for p in (own / moment).glob("*")), process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not Path("killed").exists()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    killed, whole = without_times("killed"), without_times("whole")
    assert killed.pop("recipe") == whole.pop("recipe") == ""
    assert killed == whole
    assert not list(own.rglob(".tmp-*"))


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 600
    while not ready():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_options_are_values() -> None:
    assert replace(Options(), threads=3).threads == 3
