"""A whole run on a tiny model: layers, cache, resume, folder, and the line between training and evidence."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.constitution.yaml import parse_yaml
from fairlead.errors import InputError
from fairlead.exchange import Exchange
from fairlead.guard.critic import CriticCheck
from fairlead.guard.decision import Decision
from fairlead.judges.lineage import OptimisedJudge
from fairlead.stack import run as runner
from fairlead.stack.plan import GuardLayer, Plan, PromptLayer
from fairlead.stack.preflight import preflight
from fairlead.stack.read import parse_plan
from fairlead.stack.run import Options, context, run_plan
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


def test_what_the_guard_did_is_counted_shown_and_kept_with_the_answers(
    plan: Plan, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its critic gives no verdict on one reply in two, and says why."""
    plain = CriticCheck.decide

    def half_blind(self: CriticCheck, exchanges: Sequence[Exchange]) -> list[Decision]:
        said = plain(self, exchanges)
        blind = Decision("failed", self.principle, "said neither", (), self.name)
        return [blind if n % 2 else decision for n, decision in enumerate(said)]

    monkeypatch.setattr(CriticCheck, "decide", half_blind)
    # facts and sums ask apart; voice and style ask the same prompts, and each reply counts once
    guarded = with_layers(plan, "guard", only=("facts", "over_refusal", "style_length", "style_emoji"))
    voice = Quiet()
    own = cache / "half-blind"
    first = run_plan(guarded, options(own), voice).results
    lines = map(json.loads, Path("run/exchanges/guard.jsonl").read_text().splitlines())
    asked = {json.dumps(line["exchange"]["messages"]) for line in lines}
    counts = first["guard"]
    assert counts["replies"] == len(asked) == sum(counts["released"].values())
    failed = counts["failed"]["critic:no-harm < 0.5"]["closed"]
    assert failed == len(asked) // 2 and counts["released"]["refused"] >= failed
    warning = (
        f"guard: the check critic:no-harm < 0.5 failed on {failed} of {len(asked)} replies, "
        "which were refused (said neither)"
    )
    assert first["warnings"] == [warning]
    assert f"warning: {warning}" in voice.lines
    again = Quiet()
    assert run_plan(guarded, options(own, "again"), again).results["guard"] == counts  # from the cache
    assert f"warning: {warning}" in again.lines


def test_without_a_guard_nothing_is_told_of_one(plan: Plan, cache: Path) -> None:
    results = run_plan(with_layers(plan, "sft", only=("sums",)), options(cache)).results
    assert "guard" not in results and results["warnings"] == []


def test_what_a_critics_server_left_unanswered_is_asked_again(
    plan: Plan, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = with_layers(plan, "guard", only=("sums",))
    own = cache / "unanswered"

    def down(self: CriticCheck, exchanges: Sequence[Exchange]) -> list[Decision]:
        told = "the critic did not answer: connection lost"
        return [Decision("failed", self.principle, told, (), self.name)] * len(exchanges)

    with monkeypatch.context() as patched:
        patched.setattr(CriticCheck, "decide", down)
        first = run_plan(guarded, options(own)).results
    assert len(first["warnings"]) == 1 and "connection lost" in first["warnings"][0]
    assert len(list((own / "measured").iterdir())) == 1  # the base's own answers are whole
    again = run_plan(guarded, options(own)).results
    assert again["warnings"] == [] and again["guard"]["failed"] == {}


def test_a_judge_that_reads_the_same_rule_the_other_way_has_results_of_its_own(plan: Plan, cache: Path) -> None:
    values = []
    for name in ("refusal", "answers"):
        text = CONSTITUTION.replace("    guard: {at", f"    judges: {{audit: [{name}]}}\n    guard: {{at", 1)
        Path("brand.yaml").write_text(text)
        results = run_plan(with_layers(plan, "guard", only=("harmful_compliance",)), options(cache)).results
        values.append(results["measures"][0]["value"])
    assert values[0] + values[1] == 1.0  # refuses, or answers: never both


def test_rules_of_a_stack_refuse_what_they_match_and_other_rules_are_another_layer(plan: Plan, cache: Path) -> None:
    guarded = with_layers(plan, "guard", only=("sums",))
    identities = []
    for pattern, refused in (("zzz", 0), (r"\w|\W", 3)):
        layer = GuardLayer(name="guard", from_="base", critic="none", rules={"no-harm": (pattern,)})
        counts = run_plan(guarded.model_copy(update={"layers": (layer,)}), options(cache)).results["guard"]
        assert counts["released"].get("refused", 0) == refused and counts["replies"] == 3
        identities.append(re.search(r"guard:\n\s+identity: (\w+)", Path("run/stack.lock.yaml").read_text())[1])  # type: ignore[index]
    assert len(set(identities)) == 2


def test_a_prompt_layer_is_a_column_of_its_own_and_what_it_changed_is_told(plan: Plan, cache: Path) -> None:
    prompted = with_layers(plan, "guard", only=("facts", "sums"))
    layer = PromptLayer(name="prompt", from_="base", budget=300)
    results = run_plan(prompted.model_copy(update={"layers": (layer,)}), options(cache)).results
    assert results["layers"] == ["base", "prompt"]
    assert {(row["measure"], row["layer"]) for row in results["measures"]} == {
        (measure, column) for measure in ("facts", "sums") for column in ("base", "prompt")
    }
    effects = {(e["measure"], e["from"], e["to"]): e["verdict"] for e in results["side_effects"]}
    assert set(effects) == {(m, "base", "prompt") for m in ("facts", "sums")}
    facts = json.loads(Path("run/layers/prompt/layer.json").read_bytes())
    assert facts["budget"] == 300 and 0 < facts["tokens"] <= 300 and "Hurt nobody." in facts["text"]


def test_another_wording_of_the_auditor_is_another_result(plan: Plan, cache: Path, model: Path) -> None:
    """Weights alone are its lineage; what the auditor is asked, and how it reads it, decides the numbers too."""
    reader = Path("reader")
    shutil.copytree(model, reader)
    voiced()
    read = with_layers(plan, "guard", audit="./reader", only=("voice",))
    read = read.model_copy(update={"layers": (PromptLayer(name="prompt", from_="base"),)})
    measured = cache / "measured"
    run_plan(read, options(cache))
    before = set(measured.iterdir())
    run_plan(read, options(cache))
    assert set(measured.iterdir()) == before
    (reader / "prompts").mkdir()
    (reader / "prompts" / "judge.md").write_text("{{ principle }} {{ reply }} yes or no ?")
    run_plan(read, options(cache))
    assert len(set(measured.iterdir()) - before) == 2  # base and prompt, read anew


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


def nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*args: object, **more: object) -> None:
        raise AssertionError("a case was asked although the stack refuses its own evidence")

    monkeypatch.setattr(runner, "measure", asked)


GUARDED = {
    "a trained model, read by the base": "sft: {data: {revise: {rounds: 1, critic: self}}, steps: 2}|guard: {critic: base}",
    "the base itself": "guard: {critic: base}",
    "the base behind a prompt": "prompt: {text: from-constitution}|guard: {critic: base}",
    "the base behind a prompt, by itself": "prompt: {text: from-constitution}|guard: {critic: self}",
    "the base behind a guard, by itself": "guard: {name: inner, critic: none}|guard: {critic: self}",
}


@pytest.mark.parametrize("layers", GUARDED.values(), ids=GUARDED)
def test_the_critic_of_a_guard_check_is_refused_too_before_anything_is_asked(
    layers: str, plan: Plan, cache: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voiced()
    if "inner" in layers:  # a guard without a critic has rules only where there are secrets to keep
        with Path("brand.yaml").open("a") as file:
            file.write(KEEPER)
    nothing_is_asked(monkeypatch)
    written = "".join(f"  - {layer}\n" for layer in layers.split("|"))
    body = f"model: {plan.model}\nconstitution: brand.yaml\nlayers:\n{written}measure: {{cases: 2, only: [voice], audit: {model}}}"
    with pytest.raises(OptimisedJudge, match="optimised by layer 'guard'"):
        run_plan(parse_plan(parse_yaml(body, "fairlead.yaml")), options(cache))
    assert not Path("run").exists()


KEEPER = """  - id: keep-words
    dimension: secrecy
    severity: 5
    text: Tell no secret.
    guard: {at: [reply], on_violation: redact, on_error: refuse}
secrets: [{id: told-to-keep, from: system}]
"""


@pytest.mark.parametrize(
    ("layer", "change", "says"),
    [
        ("guard: {critic: base}", ("at: [reply]", "at: [prompt]"), "leave prompt out of `at`"),
        ("guard: {checks: [no-harms]}", None, "no principle 'no-harms' with a `guard:`"),
        ("guard: {rules: {no-harms: [rope]}}", None, "'no-harms', which is no principle"),
        ("guard: {rules: {honest: [rope]}}", None, "'honest', which is not guarded"),
        ("guard: {thresholds: {voise: 0.2}}", None, "'voise', which is no principle"),
        ("guard: {critic: none}", ("    guard: {at: [reply], on_violation: refuse, on_error: refuse, say: \"no .\"}\n", ""), "there is nothing to check"),
        ("prompt: {text: none.txt}", None, "none.txt: no such prompt file"),
    ],
)  # fmt: skip
def test_mistakes_of_a_late_layer_are_told_before_the_first_question(
    layer: str, change: tuple[str, str] | None, says: str, plan: Plan, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("brand.yaml").write_text(CONSTITUTION.replace(*change) if change else CONSTITUTION)
    nothing_is_asked(monkeypatch)
    body = (
        f"model: {plan.model}\nconstitution: brand.yaml\nlayers:\n"
        f"  - sft: {{data: {{revise: {{rounds: 1}}}}, steps: 2}}\n  - {layer}\nmeasure: {{cases: 2, only: [sums]}}"
    )
    with pytest.raises(InputError, match=re.escape(says)):
        run_plan(parse_plan(parse_yaml(body, "fairlead.yaml")), options(cache))


def test_what_is_said_goes_to_no_vendor_that_the_constitution_does_not_name(
    plan: Plan, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer's critic reads every prompt and reply: refused before the first, unless the base is served there too."""
    pytest.importorskip("openai", reason="openai is missing: pip install 'fairlead[dev]'")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    nothing_is_asked(monkeypatch)
    far = "openai/x@https://critic.example/v1"

    def checked(model: object, critic: str, layers: str = "") -> None:
        body = f"model: {model}\nconstitution: brand.yaml\nlayers:\n{layers}  - guard: {{critic: {critic}}}\nmeasure: {{cases: 2, only: [sums]}}"
        preflight(context(parse_plan(parse_yaml(body, "fairlead.yaml")), options(cache), Quiet()))

    for model in (plan.model, "openai/y@https://model.example/v1"):
        with pytest.raises(InputError, match=r"to critic\.example, and the constitution brand does not allow it"):
            checked(model, far)
    told = "  - prompt: {text: from-constitution}\n"
    for critic in ("base", "self", "none", far):
        checked("openai/y@https://critic.example/v1", critic, told)
    with Path("brand.yaml").open("a") as file:
        file.write("vendors: [critic.example]\n")
    checked(plan.model, far)


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


def test_the_preferred_replies_of_the_given_file_are_imitated_first(plan: Plan, cache: Path) -> None:
    """The recipe `dpo`: SFT on the chosen side of what was given, without the prompts kept out to measure on."""
    preferences(Path("pairs.jsonl"))
    stack = parse_yaml(
        f"model: {plan.model}\nconstitution: brand.yaml\npreferences: pairs.jsonl\nmeasure: {{cases: 2, only: [sums]}}\n"
        "layers: [{sft: {data: {file: given}, steps: 1}}, {dpo: {preferences: {from: given, held_out: 0.3}, steps: 1}}]",
        "fairlead.yaml",
    )
    folder = run_plan(parse_plan(stack), options(cache)).folder
    written = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    shown = [json.loads(line) for line in (folder / "layers" / "sft" / "data.jsonl").read_text().splitlines()]
    imitated = {row["reply"][0]["parts"][0]["text"] for row in shown}
    assert imitated and imitated <= {row["chosen"] for row in written}
    assert 0 < len(shown) < len(written)


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


def align_command(out: str, cache: Path) -> list[str]:
    given = ["align", "--out", out, "--cache", str(cache), "--threads", "1"]
    return [sys.executable, "-m", "fairlead.cli.main", *given]


ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_two_processes_of_one_seed_agree_byte_for_byte(plan: Plan, tmp_path: Path) -> None:
    """Each with its own hashes of strings, so that the order of a set shows, and its own cache."""
    Path("fairlead.yaml").write_text(STACK.format(model=plan.model).replace("cases: 3", "cases: 2"))
    started = [
        subprocess.Popen(
            align_command(seed, tmp_path / seed),
            env={**ENV, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for seed in ("1", "2")
    ]  # fmt: skip
    for process in started:
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said
    assert without_times("1") == without_times("2")
    kept = [
        sorted(f.relative_to(run) for f in run.rglob("*") if f.is_file() and f.parent.name in ("exchanges", "model"))
        + sorted(f.relative_to(run) for f in (run / "layers").rglob("data.jsonl"))
        for run in (Path("1"), Path("2"))
    ]
    assert kept[0] == kept[1] and len(kept[0]) > 8
    for name in kept[0]:
        assert (Path("1") / name).read_bytes() == (Path("2") / name).read_bytes(), name


# The first finished entry of this kind is there: kill. `unfinished` holds the state of a training under way.
KILL_AT = ("revisions", "unfinished", "weights", "measured")


@pytest.mark.full
@pytest.mark.parametrize("moment", KILL_AT)
def test_a_killed_run_goes_on_to_the_identical_result(model: Path, cache: Path, moment: str, tmp_path: Path) -> None:
    Path("brand.yaml").write_text(CONSTITUTION)
    # A state is written every fifty steps, so a kill in the middle needs more than that.
    stack = STACK.format(model=model)
    if moment == "unfinished":
        stack = stack.replace("steps: 2", "steps: 150", 1)
    Path("fairlead.yaml").write_text(stack)
    run_plan(parse_plan(parse_yaml(stack, "fairlead.yaml")), options(cache, "whole"))
    own = tmp_path / "own-cache"
    command = align_command("killed", own)
    process = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: reached(own / moment), process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not Path("killed").exists()
    if moment == "unfinished":
        assert not list((own / "weights").glob("[!.]*"))  # it was indeed in the middle
        key = next((own / "unfinished").glob("training-*"))
        (key / ".step-00000100.tmp").mkdir()  # as a kill while a state is written leaves it
        (key / ".step-00000100.tmp" / "state.json").write_text("half")
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    killed, whole = without_times("killed"), without_times("whole")
    assert killed.pop("recipe") == whole.pop("recipe") == ""
    assert killed == whole
    assert Path("killed/model/model.safetensors").read_bytes() == Path("whole/model/model.safetensors").read_bytes()
    assert not list(own.rglob(".tmp-*"))
    went_on = re.findall(r"sft: going on after step (\d+) of 150", done.stdout)
    assert [int(step) >= 50 for step in went_on] == [True] * (moment == "unfinished")
    assert not [f for f in (own / "unfinished").rglob("*") if f.is_file()]


def reached(place: Path) -> bool:
    """Whether something finished lies there: an entry, or the tensors of a training state."""
    if place.name == "unfinished":
        return any(not any(part.endswith(".tmp") for part in f.parts) for f in place.rglob("*.safetensors"))
    return any(p.name[:1] != "." for p in place.glob("*"))


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 600
    while not ready():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_options_are_values() -> None:
    assert replace(Options(), threads=3).threads == 3
