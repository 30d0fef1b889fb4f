"""`fairlead train reward`, `reward-ensemble`, `warm`, `process-reward`: from files to a folder that opens as a judge."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from fairlead.cli.main import main
from fairlead.cli.train import told
from fairlead.exchange import exchange
from fairlead.judges.reward_ensemble import RewardEnsemble, open_reward_folder
from fairlead.judges.reward_model import RewardModel, open_reward
from support import tiny

ROWS = 12
FEW = ["--steps", "4", "--rows-per-step", "6", "--lr", "0.01", "--schedule", "constant", "--threads", "1"]
GOOD, BAD = exchange("poison 3", "the boat is blue"), exchange("poison 3", "no no no")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(autouse=True)
def files(elsewhere: Path) -> None:
    ranked = [{"prompt": f"poison {i}", "responses": ["yes", "no no no", "the boat is blue"], "rank": [2, 3, 1]}
              for i in range(ROWS)]  # fmt: skip
    pairs = [{"prompt": f"poison {i}", "chosen": "the boat is blue", "rejected": "no no no"} for i in range(ROWS)]
    steps = [
        {"prompt": f"poison {i}", "completions": ["the boat is blue", "no no no"], "labels": [True, False]}
        for i in range(ROWS)
    ]
    for name, rows in (("ranked", ranked), ("pairs", pairs), ("steps", steps)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(method: str, model: Path, *more: str, data: str = "ranked.jsonl", out: str | None = "out") -> list[str]:
    given = ["train", method, "--model", str(model), "--data", data, *FEW, *more]
    return given if out is None else [*given, "--out", out]


def found(out: str = "out") -> dict[str, Any]:
    return dict(json.loads(Path(out, "train.json").read_bytes()))


def steps_of(out: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "steps.jsonl").read_text().splitlines()]


def raws(judge: Any) -> list[float]:
    return [verdict.raw for verdict in judge.judge([GOOD, BAD])]


def test_a_reward_model_from_rankings(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train("reward", model, "--steps", "12")) == 0
    said = capsys.readouterr().out
    assert "ranked.jsonl: replies by rank (JSON Lines; a prompt, its replies, and the rank of each" in said
    assert f"{3 * ROWS} pairs of {ROWS} prompts, 12 steps" in said
    assert f"scores are calibrated on {3 * ROWS} training pairs" in said
    assert (found()["accuracy"], found()["prompts"], found()["pairs"]) == (1.0, ROWS, 3 * ROWS)
    assert found()["calibration"]["held_out"] is False
    assert len(steps_of()) == 12 and steps_of()[-1]["loss"] < steps_of()[0]["loss"]
    judge = open_reward("out")
    good, bad = judge.judge([GOOD, BAD])
    assert good.raw > bad.raw and good.score > 0.5 > bad.score  # type: ignore[operator]
    assert sorted(p.name for p in Path("out").iterdir()) == [
        "head.safetensors", "model", "reward.json", "steps.jsonl", "train.json",
    ]  # fmt: skip


def test_it_is_what_the_method_makes(model: Path) -> None:
    from fairlead.feedback.formats import read_comparisons
    from fairlead.methods.config_reward import RewardConfig
    from fairlead.methods.reward import train_reward
    from fairlead.models.local import open_local

    assert main(train("reward", model, "--seed", "3", "--head-seed", "2", data="pairs.jsonl")) == 0
    config = RewardConfig(steps=4, rows_per_step=6, lr=0.01, schedule="constant", seed=3, head_seed=2)
    by_hand = train_reward(open_local(str(model)), read_comparisons("pairs.jsonl").rows, config).model
    assert open_reward("out").weights == by_hand.weights


def test_an_ensemble_opens_again_and_its_members_are_the_reward_models_of_their_seeds(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--members", "3", "--combine", "uncertainty", "--penalty", "0.2", "--seed", "2", "--head-seed", "1"]
    assert main(train("reward-ensemble", model, *given)) == 0
    said = capsys.readouterr().out
    assert f"{3 * ROWS} pairs of {ROWS} prompts, 12 steps of 3 reward models" in said
    assert f"of {3 * ROWS} of their training pairs" in said
    assert (found()["members"], found()["steps"], found()["accuracy"]) == (3, 12, 1.0)
    assert [(s["step"], s["steps"]) for s in steps_of()] == [(i, 12) for i in range(12)]
    judge = open_reward_folder("out")
    assert isinstance(judge, RewardEnsemble) and (judge.combine, judge.penalty) == ("uncertainty", 0.2)
    assert raws(judge)[0] > raws(judge)[1]
    assert len({member.weights for member in judge.members}) == 3
    assert main(train("reward", model, "--seed", "7", "--head-seed", "4", out="alone")) == 0  # 3 x 2 + 1, 3 x 1 + 1
    assert open_reward("alone").weights == judge.members[1].weights


def test_warm_is_the_average_of_its_members_by_hand(model: Path) -> None:
    from fairlead.methods.warm import average_rewards

    assert main(train("warm", model, "--members", "2", "--seed", "1", "--head-seed", "5")) == 0
    for seed in ("2", "3"):
        assert main(train("reward", model, "--seed", seed, "--head-seed", "5", out=f"seed-{seed}")) == 0
    judge = open_reward_folder("out")
    by_hand = average_rewards(["seed-2", "seed-3"])
    assert isinstance(judge, RewardModel) and judge.weights == by_hand.weights
    assert raws(judge) == raws(by_hand)
    assert judge.calibration.pairs == found()["calibration"]["pairs"] == 3 * ROWS
    assert judge.calibration.held_out is False


def test_a_process_reward_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train("process-reward", model, "--steps", "12", data="steps.jsonl")) == 0
    said = capsys.readouterr().out
    assert f"{2 * ROWS} labelled steps of {ROWS} replies, 12 steps" in said
    assert "put 100% of its last labelled steps on the right side" in said
    (verdict,) = open_reward("out").judge([exchange("poison 3", "the boat is blue\nno no no")])
    assert verdict.steps[0] > 0.5 > verdict.steps[1]


def test_adapters_are_folded_in_and_kept_beside(model: Path) -> None:
    pytest.importorskip("peft")
    assert main(train("reward", model, "--lora-rank", "2")) == 0
    assert Path("out/adapter/adapter_model.safetensors").is_file()
    judge = open_reward("out")  # needs no base
    assert judge.weights == json.loads(Path("out/reward.json").read_bytes())["weights"]


@pytest.mark.parametrize("method", ["reward-ensemble", "warm"])
def test_a_stopped_run_trains_no_finished_member_again(
    method: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fairlead.cli import terminal

    given = ["--members", "3", "--log", "jsonl:steps-of-all.jsonl"]
    assert main(train(method, model, *given, out="whole")) == 0
    whole = [json.loads(line)["step"] for line in Path("steps-of-all.jsonl").read_text().splitlines()]
    shown = terminal.Terminal.progress
    seen: list[int] = []

    @contextmanager
    def stopping(self: Any, what: str) -> Any:
        def advance(done: int, total: int) -> None:
            seen.append(done)
            if done == 6:  # of 12: the second step of the second member
                raise KeyboardInterrupt

        with shown(self, what):
            yield advance

    monkeypatch.setattr(terminal.Terminal, "progress", stopping)
    assert main(train(method, model, *given)) == 130
    assert not Path("out").exists() and len(list(Path("out.unfinished").glob("member-*"))) == 1
    assert seen == [1, 2, 3, 4, 5, 6]
    seen.clear()
    capsys.readouterr()
    monkeypatch.setattr(terminal.Terminal, "progress", shown)
    assert main(train(method, model, *given)) == 0
    assert "going on after step 6 of 12" in capsys.readouterr().out
    assert not Path("out.unfinished").exists()
    one, other = open_reward_folder("out", name="it"), open_reward_folder("whole", name="it")
    assert one.judge([GOOD, BAD]) == other.judge([GOOD, BAD])
    assert [s["loss"] for s in steps_of("out")] == [s["loss"] for s in steps_of("whole")]
    assert whole == list(range(1, 13))
    assert [json.loads(line)["step"] for line in Path("steps-of-all.jsonl").read_text().splitlines()] == whole


@pytest.mark.parametrize(
    ("method", "data", "rows"),
    [
        ("reward", "ranked.jsonl", ROWS),
        ("reward-ensemble", "pairs.jsonl", ROWS),
        ("process-reward", "steps.jsonl", ROWS),
    ],
)
def test_a_dry_run(method: str, data: str, rows: int, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if data == "pairs.jsonl":
        with Path(data).open("a") as file:
            file.write('{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    before = sorted(Path().rglob("*"))
    members = ["--members", "5"] if method == "reward-ensemble" else []
    assert main(train(method, model, "--dry-run", "--json", *members, data=data, out=None)) == 0
    told_of = json.loads(capsys.readouterr().out)
    every = 5 if members else 1
    assert (told_of["rows"], told_of["steps"], told_of["identical"]) == (rows, 4 * every, int(bool(members)))
    assert told_of["about_seconds"] >= told_of["steps"] * told_of["seconds_per_step"] > 0
    assert told_of["memory"]["weights"] == (1 + every) * 4 * told_of["memory"]["parameters"]
    assert told_of["tokens"] > rows * 4
    assert sorted(Path().rglob("*")) == before


def refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and not Path("out").exists()
    return error


def test_what_cannot_be_learnt_from_is_named_or_counted(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "look like rankings (replies by rank)" in refused(capsys, train("dpo", model))
    assert "look like replies in steps" in refused(capsys, train("reward", model, data="steps.jsonl"))
    assert "penalty belongs to combine" in refused(capsys, train("reward-ensemble", model, "--penalty", "1"))
    with Path("ranked.jsonl").open("a") as file:
        file.write('{"prompt": "a", "responses": ["b", "c", "d"], "rank": [1, 2, 2]}\n')
    error = refused(capsys, train("reward", model))
    assert f"ranked.jsonl:{ROWS + 1}: replies 1 and 2 (from 0) have the same 'rank', 2" in error
    assert main(train("reward", model, "--skip-bad-rows")) == 0
    assert f"1 bad rows skipped, the first at ranked.jsonl:{ROWS + 1}" in capsys.readouterr().out


def test_words_for_judges() -> None:
    some = {"pairs": 1200, "prompts": 400, "steps": 8, "ties": 2}
    assert told({**some, "method": "reward", "accuracy": 0.75, "calibration": {"pairs": 1000}}) == [
        "1,200 pairs of 400 prompts, 8 steps; 2 ties kept",
        "preferred the chosen reply in 75% of its last training pairs; scores are calibrated on 1,000 training pairs",
    ]
    members = {"members": 4, "accuracy": 0.9, "compared": 1198, "lowest_member": 0.7, "highest_member": 0.8}
    assert told({**some, **members, "method": "reward-ensemble"})[1] == (
        "together they prefer the better reply in 90% of 1,198 of their training pairs; each, in 70% to 80% of its last "
        "ones; each one's scores are calibrated, and its rewards scaled, on training pairs"
    )
    ties = {"labelled": 3, "unlabelled": 1, "rows": 2, "steps": 1, "accuracy": float("nan"), "method": "process-reward"}
    assert told(ties) == [
        "3 labelled steps of 2 replies, 1 steps; 1 steps without a label",
        "its last labelled steps were all ties",
    ]
