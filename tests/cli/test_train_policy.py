"""`fairlead train grpo` and its kin: from prompts and judges to a folder that loads, and everything that stops it."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.judges.rewards import local, reward

from fairlead.cli.main import main
from fairlead.cli.policy_told import told, told_ahead
from fairlead.cli.train_policy import NOT_OFFERED
from fairlead.methods import rollouts
from fairlead.methods.config_policy import ALGORITHMS, PolicyConfig
from support import tiny

PROMPTS = 6
SETTINGS = [
    "--steps", "3", "--prompts-per-step", "3", "--max-tokens", "6", "--lr", "0.003", "--threads", "1",
    "--reward-cliff", "none", "--kl-burst", "1000",
]  # fmt: skip
VOWELS = ["--reward", "vowels=regex:[aeiou]"]
SINGLE = ("ppo", "safe-ppo", "remax", "reinforce++")  # one reply to each prompt
PAIRED = ("online-dpo", "xpo", "nash-md")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a context of 128."""
    return tiny.folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained reward model with the policy's tokenizer."""
    return reward(3).save(tmp_path_factory.mktemp("judge") / "judge")


@pytest.fixture(autouse=True)
def data(elsewhere: Path) -> None:
    """tasks.jsonl, and talk.jsonl to imitate."""
    tasks = [{"prompt": f"what colour is {'the ' * (i % 3)}boat {i} ?", "answer": "blue"} for i in range(PROMPTS)]
    Path("tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tasks))
    talk = [{"prompt": f"say yes {i}", "completion": "yes the boat is blue"} for i in range(4)]
    Path("talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talk))


@pytest.fixture(autouse=True)
def nothing_half_written(elsewhere: Path) -> Any:
    yield
    assert [p.name for p in elsewhere.rglob("*") if p.name.startswith(".") or p.suffix == ".tmp"] == []


def train(name: str, model: Path | str, *more: str, out: str | None = "out", prompts: str = "tasks.jsonl") -> list[str]:
    given = ["train", name, "--model", str(model), "--prompts", prompts, *SETTINGS]
    if name not in SINGLE:
        given += ["--replies", "2" if name in PAIRED else "4"]
    given += ["--cost", "rule:length:1", "--cost-budget", "0.5"] if name.startswith("safe") else []
    given += more if "--reward" in more else [*VOWELS, *more]
    return given if out is None else [*given, "--out", out]


def weights(folder: Path | str) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(Path(folder) / "model.safetensors"))


def same_weights(one: Path | str, other: Path | str) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(bool((first[k] == second[k]).all()) for k in first)


def found(out: str = "out") -> dict[str, Any]:
    return dict(json.loads(Path(out, "train.json").read_bytes()))


def steps_of(out: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "steps.jsonl").read_text().splitlines()]


# --------------------------------------------------------------------------------------- what comes out of it


def test_the_folder_that_comes_out_loads_and_holds_what_was_done(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fairlead.judges.lineage import lineage_hash
    from fairlead.judges.verifiers import matches, mentions

    given = ["--reward", "vowels=0.5*regex:[aeiou]", "--reward", "mentions", "--passes", "2"]
    assert main(train("grpo", model, *given)) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("tasks.jsonl: prompt (JSON Lines; ") and said[0].endswith("6 tasks")
    assert re.fullmatch(r"step 1 of 3: reward [\d.]+, KL 0.00 nats per reply, \d tokens, \d+% ended", said[1]), said[1]
    assert said[-4] == "36 replies to 6 prompts, 3 steps (6 updates)"
    assert re.match(r"reward [\d.]+ ± [\d.]+ in the first step, [\d.]+ ± [\d.]+ in the last; vowels ", said[-3])
    assert re.search(r"; mentions \S+ to \S+; KL to the reference \S+ nats per reply; ", said[-3])
    assert said[-2:] == ["no score is missing", "out"]

    report, steps = found(), steps_of()
    assert (report["method"], report["model"], report["prompts"]) == ("grpo", str(model), "tasks.jsonl")
    assert (report["steps"], report["updates"], report["replies"], report["asked"]) == (3, 6, 36, PROMPTS)
    assert (report["stopped"], report["missing"]) == ("", {"vowels": 0, "mentions": 0})
    assert report["config"] | {"kl": 0.04, "replies": 4, "lr": 0.003, "passes": 2} == report["config"]
    assert [(r["name"], r["role"], r["weight"], r["judge"], r["lineage"]) for r in report["rewards"]] == [
        ("vowels", "reward", 0.5, "regex:[aeiou]", lineage_hash(matches("[aeiou]").lineage)),
        ("mentions", "reward", 1.0, "mentions", lineage_hash(mentions().lineage)),
    ]
    assert len(steps) == 6 and [bool(s["told"]) for s in steps] == [True, False] * 3
    assert report["start"] == steps[0]["told"] and report["metrics"] == steps[4]["told"]
    assert steps[0]["told"]["reward"] == pytest.approx(0.5 * steps[0]["told"]["reward.vowels"])

    module = AutoModelForCausalLM.from_pretrained("./out")
    words = AutoTokenizer.from_pretrained("./out")
    ids = words("the boat", return_tensors="pt")["input_ids"]
    assert module.generate(ids, max_new_tokens=3).shape[1] > ids.shape[1]
    assert not same_weights("out", model) and not Path("out.unfinished").exists()


def test_it_is_what_the_loop_does(model: Path) -> None:
    from fairlead.feedback.formats import read_tasks
    from fairlead.judges.verifiers import matches
    from fairlead.methods.policy import train_policy
    from fairlead.methods.rewards import Objective
    from fairlead.models.local import open_local

    assert main(train("grpo", model, "--seed", "3", "--stop", "e", "--stop", "th")) == 0
    config = ALGORITHMS["grpo"].settings(
        {"steps": 3, "prompts_per_step": 3, "replies": 4, "max_tokens": 6, "lr": 3e-3, "seed": 3, "stop": ("e", "th"),
         "reward_cliff": None, "kl_burst": 1000}
    )  # fmt: skip
    objective = Objective(matches("[aeiou]"), name="vowels")
    made = train_policy(open_local(str(model)), read_tasks("tasks.jsonl").rows, [objective], config)
    made.model.save("by-hand")  # type: ignore[attr-defined]
    assert same_weights("out", "by-hand")
    assert main(train("grpo", model, "--seed", "4", out="other")) == 0
    assert not same_weights("out", "other")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_trains(name: str, model: Path) -> None:
    assert main(train(name, model)) == 0
    report = found()
    assert (report["method"], report["steps"]) == (name, 3)
    assert report["config"]["advantage"] == ALGORITHMS[name].settings({}).advantage
    assert not same_weights("out", model)


def test_a_reward_is_learnt(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the command raises is what it was told to, and what it says of it is what the steps say."""
    given = ["--reward", "regex:e", "--steps", "30", "--lr", "0.01", "--kl", "0", "--json"]
    assert main(train("grpo", model, *given)) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report == found() and "step 1 of 30: reward" in captured.err
    assert report["metrics"]["reward"] > report["start"]["reward"] + 0.3
    told_of = [step["told"] for step in steps_of()]
    assert report["averaged"] == 3
    assert report["start"]["reward"] == pytest.approx(sum(t["reward"] for t in told_of[:3]) / 3)
    assert report["metrics"]["reward_error"] == pytest.approx(
        math.hypot(*(t["reward_error"] for t in told_of[-3:])) / 3
    )


def test_ppo_with_a_reward_model_a_critic_from_it_and_a_pretraining_mix(
    model: Path, judge: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fairlead.judges.reward_model import open_reward

    given = ["--reward", f"helpful={judge}", "--pretraining", "talk.jsonl", "--ptx", "0.3", "--ptx-rows", "2"]
    assert main(train("ppo", model, *given, "--critic", str(judge))) == 0
    assert "talk.jsonl: prompt/completion" in capsys.readouterr().out
    report = found()
    assert (report["critic"], report["pretraining"]) == (str(judge), "talk.jsonl")
    leaves = report["rewards"][0]["leaves"]
    assert {leaf["code"] for leaf in leaves if leaf["kind"] == "reward"} == {open_reward(judge).weights}
    assert all("ptx_nll" in step["sums"] and "value_loss" in step["sums"] for step in steps_of())
    assert main(train("ppo", model, *given, out="own")) == 0  # the value function of the policy's own body
    assert not same_weights("out", "own")
    kept = open_reward(Path("out/critic"))
    assert kept.lineage > open_reward(judge).trained_on and kept.head.bias is not None
    assert main(train("ppo", model, *given, "--critic", "out/critic", out="further")) == 0
    assert found("further")["critic"] == "out/critic" and not same_weights("own", "further")


def test_a_cost_is_held_under_its_budget_by_a_multiplier(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train("safe-grpo", model, "--cost-rate", "0.5")) == 0
    assert re.search(r"step 1 of 3: reward \S+, cost \S+ \(multiplier 1\), KL", capsys.readouterr().out)
    report, told_of = found(), [step["told"] for step in steps_of()]
    assert [(r["name"], r["role"]) for r in report["rewards"]] == [("vowels", "reward"), ("rule:length:1", "cost")]
    # the multiplier by hand: its log moves by rate x multiplier x (cost - budget)
    moved = math.exp(0.5 * 1.0 * (told_of[0]["cost"] - 0.5))
    assert told_of[1]["multiplier"] == pytest.approx(moved)


def test_adapters_are_merged_and_kept_beside(model: Path) -> None:
    pytest.importorskip("peft")
    assert main(train("grpo", model, "--lora-rank", "2")) == 0
    assert found()["config"]["lora"]["rank"] == 2 and not same_weights("out", model)
    assert Path("out/adapter/adapter_model.safetensors").is_file()


def test_the_apprentice_learns_in_its_world(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--reward", "mentions", "--reward", "truth=gold:sums", "--oracle", "--n", "7"]
    assert main(train("rloo", "apprentice", *given, "--steps", "1", prompts="world:sums")) == 0
    assert "7 prompts of the apprentice's world (sums, train split)" in capsys.readouterr().out
    assert (found()["asked"], found()["missing"]) == (7, {"mentions": 0, "truth": 0})
    error = refused(capsys, train("grpo", "apprentice", "--reward", "exact", prompts="world:charm", out="no"))
    assert "world:charm: the harbour has no cases for 'charm'; it has: " in error and "sums" in error
    error = refused(
        capsys, train("grpo", "apprentice", "--reward", "mentions", prompts="world:harmful_compliance", out="no")
    )
    assert "not one of 500 prompts brings" in error


def test_steps_are_logged_where_it_is_asked(model: Path) -> None:
    assert main(train("grpo", model, "--log", "jsonl:a.jsonl", "--minibatches", "3")) == 0
    logged = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == list(range(1, 10))
    assert [row["reward.vowels"] for row in logged[::3]] == [s["told"]["reward.vowels"] for s in steps_of()[::3]]


def test_the_learning_rate_follows_the_size(model: Path) -> None:
    given = train("grpo", model)
    at = given.index("--lr")
    assert main([*given[:at], *given[at + 2 :]]) == 0
    # below a million parameters: the rate at a billion times the root of a thousand
    assert found()["config"]["lr"] == pytest.approx(1e-6 * 1000**0.5, rel=0.02)


def test_what_is_missing_is_counted_and_said(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("tasks.jsonl").open("a") as file:
        file.write('{"prompt": "hello"}\n')
    given = ["--reward", "mentions", "--reward", "regex:e", "--prompts-per-step", "7"]
    assert main(train("grpo", model, *given)) == 0
    said = capsys.readouterr().out
    assert "1 of 7 prompts bring no right answer: there mentions will be missing" in said
    assert "4 of 28 replies without a reward" in said and "scores missing: 12 of mentions" in said
    assert found()["missing"] == {"mentions": 12, "regex:e": 0}


# ------------------------------------------------------------------------------------------- stopped and taken up


def test_a_stopped_training_goes_on_where_it_was(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fairlead.cli import terminal

    given = ["--passes", "2", "--minibatches", "2"]
    assert main(train("grpo", model, *given, out="whole")) == 0
    shown = terminal.Terminal.progress

    @contextmanager
    def stopping(self: Any, what: str) -> Any:
        with shown(self, what) as advance:

            def stop_at_5(done: int, total: int) -> None:
                advance(done, total)
                if done == 5:
                    raise KeyboardInterrupt

            yield stop_at_5

    monkeypatch.setattr(terminal.Terminal, "progress", stopping)
    assert main(train("grpo", model, *given)) == 130
    assert not Path("out").exists() and Path("out.unfinished").exists()
    monkeypatch.setattr(terminal.Terminal, "progress", shown)
    capsys.readouterr()
    assert main(train("grpo", model, *given)) == 0
    assert "going on after step 5 of 12" in capsys.readouterr().out
    assert same_weights("out", "whole") and not Path("out.unfinished").exists()
    assert [s["loss"] for s in steps_of("out")] == [s["loss"] for s in steps_of("whole")]


ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
KILLED = """
import os, signal, sys
from fairlead.cli import terminal
from fairlead.cli.main import main
from contextlib import contextmanager

@contextmanager
def deadly(self, what):
    yield lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done == 3 else None

terminal.Terminal.progress = deadly
main({given!r})
"""


def test_a_killed_training_goes_on_with_the_replies_it_had(
    model: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed inside the second step, far from any state: nothing is drawn again, and the bits are the same."""
    given = ["--passes", "2"]
    assert main(train("grpo", model, *given, out="whole")) == 0
    code = KILLED.format(given=train("grpo", model, *given))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=ENV, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not Path("out").exists() and Path("out.unfinished").exists()
    drawn: list[int] = []
    real = rollouts.LocalSampler.draw

    def counting(self: Any, asked: Any, how: Any) -> Any:
        drawn.append(len(asked))
        return real(self, asked, how)

    monkeypatch.setattr(rollouts.LocalSampler, "draw", counting)
    assert main(train("grpo", model, *given)) == 0
    assert drawn == [3, 3], "the third step's prompts, and those of the closing KL"
    assert same_weights("out", "whole") and not Path("out.unfinished").exists()
    for folder in Path().glob(".tmp-*"):  # what the killed process had begun is swept away by the next
        pytest.fail(f"{folder} was left")


def test_a_run_that_collapses_leaves_its_last_good_weights_and_exit_code_1(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate under which the first update breaks the policy: what is left is the model as it came."""
    given = ["--lr", "0.3", "--kl-burst", "0.05", "--steps", "8"]
    assert main(train("grpo", model, *given)) == 1
    said = capsys.readouterr().out.splitlines()
    report = found()
    assert report["stopped"].startswith("KL burst: ") and "the last good ones" in report["stopped"]
    assert said[-2] == f"STOPPED EARLY: {report['stopped']}" and said[-1] == "out"
    assert report["steps"] < 8
    good = int(report["stopped"].split("those after ")[1].split()[0])
    assert main(train("grpo", model, *given, "--kl-burst", "1e9", "--steps", "8", "--json", out="anyway")) == 0
    assert not same_weights("out", "anyway")
    assert same_weights("out", model) == (good == 0)
    capsys.readouterr()
    assert main(train("grpo", model, *given, "--json", out="again")) == 1
    assert json.loads(capsys.readouterr().out)["stopped"] == report["stopped"]


# --------------------------------------------------------------------------------------------------- looked ahead


@pytest.mark.parametrize("name", ["grpo", "ppo", "remax"])
def test_a_dry_run_counts_and_writes_nothing(
    name: str, model: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = train(name, model, "--dry-run", "--passes", "2", out=None)
    at = given.index("--steps")
    given = [*given[:at], "--epochs", "2.5", *given[at + 2 :]]
    before = sorted(elsewhere.rglob("*"))
    assert main(given) == 0
    said = capsys.readouterr().out.splitlines()
    assert "prompts, the longest of " in said[-6] and said[-1].startswith("5 steps (10 updates); one step took ")
    assert main([*given, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(model)
    asked = [json.loads(line)["prompt"] for line in Path("tasks.jsonl").read_text().splitlines()]
    longest = max(len(words(f"<|user|>{text}<|end|>\n<|assistant|>")["input_ids"]) for text in asked)
    replies = 3 * {"grpo": 4, "ppo": 1, "remax": 2}[name]  # remax draws a greedy one beside each
    assert (report["prompts"], report["longest_prompt"], report["steps"]) == (PROMPTS, longest, math.ceil(2.5 * 6 / 3))
    assert (report["replies_per_step"], report["tokens_per_step_at_most"]) == (replies, 6 * replies)
    assert 0 < report["tokens_per_step"] <= 6 * replies
    assert report["about_seconds"] >= 5 * report["seconds_per_step"] > 0
    assert 0 <= report["start"]["reward"] <= 1 and report["missing"] == {"vowels": 0}
    assert said[-3].startswith("memory, an estimate: ") and "keys and values" in said[-3]
    memory, weight = report["memory"], 4 * sum(w.numel() for w in weights(model).values())
    assert (memory["weights"], memory["gradients"], memory["moments"]) == (2 * weight, weight, 2 * weight)
    assert memory["tokens"] == 3 * longest + 6 * replies
    assert memory["keys_values"] == 2 * 2 * 2 * 8 * 4 * replies * (longest + 6)  # layers, heads of 8, float32
    assert memory.get("critic") == ((4 * weight + memory["activations"]) if name == "ppo" else None)
    assert memory["total"] == 5 * weight + sum(
        memory.get(k) or 0 for k in ("activations", "logits", "critic", "keys_values")
    )
    assert sorted(elsewhere.rglob("*")) == before


# --------------------------------------------------------------------------------------------- what is offered


def test_algorithms_are_listed_in_a_group_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    _, files, own = re.split(r"\n\n(?=Learning from)", capsys.readouterr().out)
    for name, algorithm in ALGORITHMS.items():
        assert re.search(rf"^  {re.escape(name)} +{re.escape(algorithm.summary)}$", own, re.MULTILINE), name
    assert "\n  dpo  " in files and "\n  dpo  " not in own


@pytest.mark.parametrize("name", ["ppo", "reinforce++-baseline", "safe-grpo"])
def test_every_setting_is_offered_with_a_word_and_its_default(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", name, "--help"]) == 0
    shown = capsys.readouterr().out
    defaults = ALGORITHMS[name].settings({}).model_dump()
    for field in PolicyConfig.model_fields:
        flag = "--" + field.replace("_", "-")
        if field in NOT_OFFERED and field not in ("seed", "stop"):
            assert not re.search(rf"^  {flag} ", shown, re.MULTILINE)
            continue
        (line,) = re.findall(rf"^  {flag} .*(?:\n {{20,}}.*)*$", shown, re.MULTILINE)
        line = " ".join(line.split())
        assert len(re.sub(r"\[default.*\]$", "", line).split()) >= 4, line
        if isinstance(defaults[field], float) and field != "lr":
            assert f"[default: ({defaults[field]:g})]" in line


# ------------------------------------------------------------------------------------------- what stops it early


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], code: int = 2) -> str:
    assert main(argv) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error and not Path("no").exists()
    return error


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("grpo", ["--reward", "exat"], "unknown judge 'exat'"),
        ("grpo", ["--reward", "regex:("], "not a regular expression"),
        ("grpo", ["--reward", "0*exact"], "has weight 0"),
        ("grpo", ["--reward", "exact", "--reward", "exact"], "two judges are called 'exact': name them apart"),
        ("grpo", ["--reward", "gold:sums"], "--oracle"),
        ("grpo", ["--reward", "gold:sums", "--oracle"], "gold:sums: reads what the apprentice's world says"),
        (
            "grpo",
            ["--reward", "code"],
            "not one of 6 prompts brings any that can judge it; of the first: the case has",
        ),
        ("grpo", ["--cost", "exact"], "--cost-budget"),
        ("grpo", ["--cost-budget", "1"], "give what is held under it with --cost"),
        ("safe-grpo", ["--cost-budget", "none"], "--cost: give the budget"),
        ("grpo", ["--pretraining", "talk.jsonl"], "give its weight in the loss with --ptx"),
        ("grpo", ["--ptx", "0.1"], "give the rows that are imitated with --pretraining"),
        ("grpo", ["--critic", "judge"], "--critic: grpo has no value function"),
        ("ppo", ["--critic", "nowhere"], "--critic nowhere: no such folder"),
        ("grpo", ["--rollouts", "far"], "--rollouts far: write local, or vllm/NAME@URL"),
        ("grpo", ["--n", "3"], "--n: draws from the apprentice's world"),
        ("grpo", ["--prompts", "world:sums"], "the world is the apprentice's, and"),
        ("grpo", ["--prompts", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        ("grpo", ["--model", "openai/gpt"], "no weights here to train"),
        ("grpo", ["--replies", "1"], "compares the replies of a prompt"),
        ("grpo", ["--minibatches", "9"], "9 minibatches of 3 prompts"),
        ("grpo", ["--loss", "hinge"], "--loss: 'hinge' is not one of clipped"),
        ("grpo", ["--temperature", "0"], "--temperature"),
        ("grpo", ["--max-tokens", "126"], "leave no room for replies of 126 tokens"),
        ("grpo", ["--log", "paper:x"], "--log paper:x: write jsonl:FILE"),
        ("grpo", ["--epochs", "1"], "epochs and steps are both given"),
    ],
)
def test_wrong_input(name: str, given: list[str], says: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, train(name, model, *given, out="no"))


def test_no_reward_no_out_and_a_folder_that_is_there(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "grpo", "--model", str(model), "--prompts", "tasks.jsonl", "--out", "no"]) == 2
    assert "'--reward' / '-r'" in capsys.readouterr().err
    assert "--out" in refused(capsys, train("grpo", model, out=None))
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("years of work")
    assert "out: exists already" in refused(capsys, train("grpo", model))
    assert [p.name for p in Path("out").iterdir()] == ["thesis.txt"]


def test_bad_rows_are_named_or_counted(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("tasks.jsonl").open("a") as file:
        file.write('{"prompt": "a", "reference": []}\n')
    assert f"tasks.jsonl:{PROMPTS + 1}: 'reference' is list" in refused(capsys, train("grpo", model, out="no"))
    assert main(train("grpo", model, "--skip-bad-rows")) == 0
    assert "1 bad rows skipped" in capsys.readouterr().out and found()["asked"] == PROMPTS


def test_prompts_that_leave_no_room_are_named_or_counted(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("tasks.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "poison " * 300}) + "\n")
    assert f"tasks.jsonl:{PROMPTS + 1} (" in refused(capsys, train("grpo", model, out="no"))
    assert main(train("grpo", model, "--too-long", "skip")) == 0
    assert "to 6 prompts, 3 steps (3 updates); 1 prompts too long, left out" in capsys.readouterr().out
    assert (found()["asked"], found()["skipped_too_long"]) == (PROMPTS, 1)


def test_rows_to_imitate_that_do_not_fit_are_named_or_counted(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("talk.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "poison " * 300, "completion": "yes"}) + "\n")
    given = ["--pretraining", "talk.jsonl", "--ptx", "0.1"]
    assert "talk.jsonl:5 (" in refused(capsys, train("grpo", model, *given, out="no"))
    assert main(train("grpo", model, *given, "--too-long", "skip")) == 0
    assert "talk.jsonl: 1 rows too long, left out" in capsys.readouterr().out


def test_a_file_without_a_right_answer_is_no_file_for_judges_that_compare(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bare.txt").write_text("what colour is the boat ?\nhello\n")
    error = refused(capsys, train("grpo", model, "--reward", "numeric:0.1", prompts="bare.txt", out="no"))
    assert "numeric:0.1: compares a reply with the right answer, and not one of 2 prompts" in error
    assert main(train("grpo", model, prompts="bare.txt")) == 0


def test_a_critic_that_is_none(model: Path, judge: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It reads the policy's tokens: one of another tokenizer would read other words, and learn without a word."""
    import dataclasses

    from fairlead.judges.reward_ensemble import RewardEnsemble

    made = reward(1)
    made.save("foreign")
    words = json.loads(Path("foreign/model/tokenizer.json").read_text())
    ids = words["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    Path("foreign/model/tokenizer.json").write_text(json.dumps(words))
    assert "--critic foreign: reads other tokens" in refused(
        capsys, train("ppo", model, "--critic", "foreign", out="no")
    )
    members = (reward(3), dataclasses.replace(reward(4), name="other"))
    RewardEnsemble("both", members, ((0.0, 1.0), (0.0, 1.0))).save("both")
    assert "--critic both: an ensemble" in refused(capsys, train("ppo", model, "--critic", "both", out="no"))
    short = local(3, context=12)
    dataclasses.replace(made, model=short, head=reward(3).head).save("short")
    error = refused(capsys, train("ppo", model, "--critic", "short", out="no"))
    assert "--critic short: its context is 12 tokens, and a prompt with its reply may take" in error
    assert main(train("ppo", model, "--critic", str(judge), "--reward", "both=both")) == 0


def test_rollouts_elsewhere(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What draws is asked of the module that knows vLLM, by the words that were given; or it is not installed."""
    import types

    asked: list[tuple[Any, ...]] = []

    def sampler_of(spec: str, tokenizer: Any, *, weights: str | None, seen_as: str | None) -> Any:
        asked.append((spec, weights, seen_as))
        return rollouts.LocalSampler(tokenizer)

    fake = types.ModuleType("fairlead.methods.rollouts_vllm")
    fake.sampler_of = sampler_of  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    where = "vllm/tiny@http://a:1/v1,http://b:2/v1"
    assert main(train("grpo", model, "--rollouts", where)) == 0
    assert asked == [(where, None, None)] and found()["rollouts"] == where
    assert main(train("grpo", model, "--rollouts", where, "--weights", "/here=/there", out="shared")) == 0
    assert asked[1:] == [(where, "/here", "/there")]
    assert "no server needs them" in refused(capsys, train("grpo", model, "--weights", "/here", out="no"))
    monkeypatch.setitem(sys.modules, fake.__name__, None)
    error = refused(capsys, train("grpo", model, "--rollouts", where, out="no"), code=4)
    assert "fairlead.methods.rollouts_vllm is missing from this installation" in error


def test_without_torch(model: Path, elsewhere: Path) -> None:
    given = train("grpo", model)
    code = f"import sys; import support.no_torch\nfrom fairlead.cli.main import main; sys.exit(main({given!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=ENV, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4 and "pip install 'fairlead[train]'" in done.stderr, done.stderr


# ------------------------------------------------------------------------------------------------ in words


SPENT = {
    "calls": 1200, "prompt_tokens": 500, "completion_tokens": 100, "usd": 0.5, "unsure": 0, "budget": "$2.00"
}  # fmt: skip


def test_words() -> None:
    first = {"reward": 0.125, "reward_error": 0.0213, "kl": 0.0, "length": 40.4, "reward.a": 0.1, "cost.b": 2.0}
    last = {"reward": 0.5, "reward_error": 0.03, "kl": 2.9, "length": 51.0, "reward.a": 0.6, "cost.b": 1.0}
    report = {
        "replies": 25600, "asked": 500, "steps": 40, "updates": 160, "skipped_too_long": 2, "averaged": 4,
        "start": first, "metrics": last, "missing": {"a": 1200, "b": 0}, "stopped": "", "spent": None,
        "closing": {"kl": 3.14159, "kl_token": 0.06, "kl_error": 0.2, "replies": 64.0},
        "rewards": [{"name": "a", "role": "reward"}, {"name": "b", "role": "cost"}],
    }  # fmt: skip
    assert told(report) == [
        "25,600 replies to 500 prompts, 40 steps (160 updates); 2 prompts too long, left out",
        "reward 0.125 ± 0.021 in the first 4 steps, 0.5 ± 0.03 in the last; a 0.1 to 0.6; b 2 to 1; "
        "KL to the reference 3.14 nats per reply; replies of 40 tokens, then 51",
        "scores missing: 1,200 of a",
    ]
    assert told(report | {"steps": 0, "stopped": "KL burst"})[-1] == "STOPPED EARLY: KL burst"
    assert told(report | {"spent": SPENT})[-1] == "asked at a provider: 1,200 calls, $0.5000 of the budget of $2.00"
    unpriced = {**SPENT, "calls": 1, "usd": None, "budget": "2,000 tokens"}
    assert (
        told(report | {"spent": unpriced})[-1]
        == "asked at a provider: 1 call, 600 tokens of the budget of 2,000 tokens"
    )


def test_words_ahead() -> None:
    report = {
        "prompts": 500, "longest_prompt": 31, "skipped_too_long": 1, "replies_per_step": 64, "steps": 1000,
        "updates": 4000, "tokens_per_step": 2560.0, "tokens_per_step_at_most": 8192, "seconds_per_step": 2.0,
        "about_seconds": 2000.0, "peak_bytes": 2e9, "missing": {"a": 3}, "config": {"lr": 1e-6},
        "memory": {"weights": 10**9, "gradients": 0, "critic": 5 * 10**8, "keys_values": 10**8, "total": 1.6e9,
                   "activations": 0, "logits": 0, "moments": 0, "tokens": 8192},
        "start": {"reward": 0.25, "reward_error": 0.05, "length": 40.0, "replies": 64.0}, "tried": 2, "spent": None,
    }  # fmt: skip
    assert told_ahead(report | {"spent": SPENT})[4] == (
        "asked at a provider in the 2 tried steps: 1,200 calls, $0.5000 of the budget of $2.00; so about $250.0000 for all "
        "1,000 steps"
    )
    assert told_ahead(report) == [
        "500 prompts, the longest of 31 tokens; 1 too long, left out",
        "each step draws 64 replies, at most 8,192 tokens; learning rate 1e-06",
        "the model as it is: reward 0.25 ± 0.05, 40 tokens per reply, so about 2,560 a step (64 replies)",
        "scores missing in the tried steps: 3 of a",
        "memory, an estimate: 1.6 GB beside the program itself and its judges (weights 1.0 GB, critic 500.0 MB, keys and "
        "values 100.0 MB; up to 8,192 tokens at once)",
        "memory, measured: 2.0 GB at the peak of the tried steps, program and all",
        "1,000 steps (4,000 updates); one step took 2.00 s here, so about 33 min 20 s in all, at replies as long as now",
    ]


# ------------------------------------------------------------------------------------------------- the page


PAGE = (Path(__file__).parents[2] / "docs" / "reinforcement.md").read_text()


def test_the_table_of_algorithms_is_what_they_are() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| `")]
    table = {row[0].strip("`"): row[2:] for row in rows if len(row) == 6}
    assert list(table) == list(ALGORITHMS)
    for name, (advantage, loss, share, kl) in table.items():
        config = ALGORITHMS[name].settings({})
        assert advantage == config.advantage, name
        if config.advantage == "pair":
            assert (loss, share, config.kl) == ("DPO on fresh pairs", "", 0), name
            continue
        assert (loss, share) == (config.loss, config.share), name
        where = "in the reward" if config.kl_in == "reward" else f"in the loss, {config.kl_estimator}"
        assert kl == ("in the advantage" if name == "nash-md" else where if config.kl else "none"), name


def test_every_number_that_is_told_is_on_the_page(model: Path) -> None:
    told_of: set[str] = set()
    for name, given in {
        "safe-grpo": ["--resample", "1", "--kl-target", "3", "--old-logprobs", "recompute"],
        "online-dpo": ["--reward-clip", "0", "1"],
    }.items():
        assert main(train(name, model, *given, "--steps", "1", out=name)) == 0
        told_of |= steps_of(name)[0]["told"].keys() | steps_of(name)[0]["sums"].keys()
    for column in told_of:
        known = re.sub(r"^(reward|cost|missing)\..*", r"\1.NAME", column)
        assert f"`{known}`" in PAGE, column


@pytest.mark.parametrize("line", re.findall(r"^fairlead (?:.*\\\n)*.*$", PAGE, re.MULTILINE))
def test_the_commands_on_the_page_are_read(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As far as the first folder that is not there; the options and their values are right."""
    import shlex

    given = shlex.split(line.replace("\\\n", " "))[1:]
    if "apprentice" in given:
        given = [*given, "--dry-run", "--threads", "1", "--max-tokens", "4", "--replies", "2"]
        assert main(given) == 0
        return
    error = refused(capsys, given, 4)
    assert "./dir: no such model folder" in error


def test_a_critic_by_name_is_a_reward_of_its_own_lineage(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = train("grpo", "apprentice", "--reward", "kept=critic:no-harm", "--n", "6", "--json", prompts="world:facts")
    assert main(order) == 0
    found = json.loads(capsys.readouterr().out)
    (one,) = found["rewards"]
    assert (one["name"], one["judge"]) == ("kept", "critic:no-harm") and one["leaves"][0]["kind"] == "critic"
    assert found["missing"] == {"kept": 0} and found["metrics"]["reward"] > 0  # the log-odds that facts harm nobody
    other = train("grpo", "apprentice", "--reward", "critic:kindness", out="other", prompts="world:facts")
    assert main(other) == 2
    assert "no principle 'kindness'" in capsys.readouterr().err
