"""`fairlead train sft|dpo`: one stage alone, from files to a folder that loads, and everything that stops it early."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from fairlead.cli.main import main
from fairlead.cli.train import told
from fairlead.exchange import user
from support import tiny
from support.talker import preferences

ROWS = 20
SETTINGS = ["--steps", "12", "--rows-per-step", "6", "--lr", "0.003", "--schedule", "constant", "--threads", "1"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a context of 128."""
    return tiny.folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(autouse=True)
def data(elsewhere: Path) -> None:
    """pairs.jsonl and talk.jsonl, 20 rows each, all of them short."""
    preferences(Path("pairs.jsonl"), n=ROWS)
    write("talk.jsonl", *(talk(f"poison {i}", "the boat is blue") for i in range(ROWS)))


@pytest.fixture(autouse=True)
def nothing_half_written(elsewhere: Path) -> Any:
    yield
    assert [p.name for p in elsewhere.rglob("*") if p.name.startswith(".") or p.suffix == ".tmp"] == []


def talk(asked: str, said: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}


def write(name: str, *rows: dict[str, Any]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


DATA = {"sft": "talk.jsonl", "dpo": "pairs.jsonl"}


def train(method: str, model: Path | str, *more: str, out: str | None = "out") -> list[str]:
    given = ["train", method, "--model", str(model), "--data", DATA[method], *more]
    return given if out is None else [*given, "--out", out]


def weights(folder: Path | str) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(Path(folder) / "model.safetensors"))


def same_weights(one: Path | str, other: Path | str) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(bool((first[k] == second[k]).all()) for k in first)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_folder_that_comes_out_loads_and_holds_what_was_done(
    method: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert main(train(method, model, *SETTINGS)) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "out"
    assert f"{ROWS} {'rows' if method == 'sft' else 'pairs'}, 12 steps" in captured.out
    found = json.loads(Path("out/train.json").read_bytes())
    assert (found["method"], found["model"], found["data"]) == (method, str(model), DATA[method])
    assert (found["config"]["steps"], found["config"]["rows_per_step"], found["config"]["lr"]) == (12, 6, 0.003)
    steps = [json.loads(line) for line in Path("out/steps.jsonl").read_text().splitlines()]
    assert [(s["step"], s["rows"], s["lr"]) for s in steps[1:]] == [(i, 6, 0.003) for i in range(1, 12)]
    assert steps[-1]["loss"] < steps[0]["loss"]
    module = AutoModelForCausalLM.from_pretrained("./out")
    words = AutoTokenizer.from_pretrained("./out")
    assert words.chat_template == AutoTokenizer.from_pretrained(model).chat_template
    assert {k: v.shape for k, v in weights("out").items()} == {k: v.shape for k, v in weights(model).items()}
    assert not same_weights("out", model)
    ids = words("the boat", return_tensors="pt")["input_ids"]
    assert module.generate(ids, max_new_tokens=3).shape[1] > ids.shape[1]


def test_sft_does_what_the_method_does(model: Path) -> None:
    from fairlead.exchange import exchange
    from fairlead.methods.config import SFTConfig
    from fairlead.methods.sft import train_sft
    from fairlead.models.local import open_local

    assert main(train("sft", model, *SETTINGS, "--seed", "3", "--warmup", "0.5")) == 0
    rows = [exchange(f"poison {i}", "the boat is blue") for i in range(ROWS)]
    config = SFTConfig(steps=12, rows_per_step=6, lr=0.003, schedule="constant", seed=3, warmup=0.5)
    train_sft(open_local(str(model)), rows, config).model.save("by-hand")  # type: ignore[attr-defined]
    assert same_weights("out", "by-hand")


def test_dpo_moves_the_model_to_the_chosen_side(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fairlead.models.local import open_local

    assert main(train("dpo", model, *SETTINGS, "--beta", "0.3", "--nll", "0.1", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(Path("out/train.json").read_bytes())
    assert (found["config"]["beta"], found["config"]["nll"], found["pairs"]) == (0.3, 0.1, ROWS)
    assert found["kl"]["n"] == 128 and found["accuracy"] == 1.0

    def margin(folder: Path | str) -> float:
        asked = [(user(json.loads(line)["prompt"]),) for line in Path("pairs.jsonl").read_text().splitlines()]
        both = open_local(str(Path(folder).resolve())).logprobs(asked, [["the boat is blue", "no no no"]] * ROWS)
        return sum(chosen - rejected for chosen, rejected in both) / ROWS

    assert margin("out") > margin(model) + 1


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_one_seed_is_one_result(method: str, model: Path) -> None:
    for out, seed in (("one", "0"), ("again", "0"), ("other", "1")):
        assert main(train(method, model, *SETTINGS, "--seed", seed, out=out)) == 0
    assert same_weights("one", "again")
    assert not same_weights("one", "other")


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_dry_run_counts_and_writes_nothing(
    method: str, model: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(elsewhere.rglob("*"))
    given = ["--epochs", "2.5", "--rows-per-step", "8", "--dry-run"]
    assert main(train(method, model, *given, out=None)) == 0
    assert f"{ROWS} rows, " in (line := capsys.readouterr().out.splitlines()[-1]) and "so about" in line
    assert main(train(method, model, *given, "--json", out=None)) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["steps"]) == (ROWS, math.ceil(2.5 * ROWS / 8))
    assert found["about_seconds"] >= found["steps"] * found["seconds_per_step"] > 0
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(model)
    texts = [(f"poison {i}", ["the boat is blue"]) for i in range(ROWS)]
    if method == "dpo":
        rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
        texts = [(row["prompt"], [row["chosen"], row["rejected"]]) for row in rows]
    tokens = 0  # by the template: <|user|> prompt <|end|> \n <|assistant|>, then each reply and its <|end|>
    for asked, replies in texts:
        tokens += len(words(f"<|user|>{asked}<|end|>\n<|assistant|>")["input_ids"])
        tokens += sum(len(words(f"{said}<|end|>")["input_ids"]) for said in replies)
    assert found["tokens"] == tokens
    assert sorted(elsewhere.rglob("*")) == before


# --------------------------------------------------------------------------------------- what stops it early


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], code: int = 2) -> str:
    assert main(argv) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error and not Path("out/config.json").exists()
    return error


def test_an_existing_folder_is_left_alone(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("years of work")
    assert "out: exists already" in refused(capsys, train("sft", model))
    assert [p.name for p in Path("out").iterdir()] == ["thesis.txt"]
    Path("file").write_text("x")
    assert "file: exists already" in refused(capsys, train("sft", model, out="file"))
    Path("empty").mkdir()
    assert main(train("sft", model, *SETTINGS, out="empty")) == 0


def test_no_out_and_no_dry_run(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--out" in refused(capsys, train("sft", model, out=None))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--epochs", "0"], "--epochs"),
        (["--epochs", "1", "--steps", "2"], "epochs and steps are both given"),
        (["--schedule", "steep"], "--schedule: 'steep' is not one of linear, cosine, constant"),
        (["--too-long", "chop"], "--too-long: 'chop'"),
        (["--lr", "-1"], "--lr"),
        (["--lr", "nan"], "--lr"),
        (["--warmup", "1"], "--warmup"),
        (["--steps", "0"], "--steps"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--model", "openai/gpt"], "no weights here to train"),
        (["--tokens-per-batch", "4"], "tokens_per_batch"),
    ],
)
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_wrong_settings(
    method: str, given: list[str], says: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, train(method, model, *given))


def test_data_of_the_wrong_kind_is_recognised(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, train("dpo", model, "--data", "talk.jsonl"))
    assert "talk.jsonl" in error and "look like demonstrations" in error


def test_bad_rows_are_named_or_counted(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("pairs.jsonl").open("a") as file:
        file.write('{"prompt": "a", "chosen": "b"}\n')
    assert f"pairs.jsonl:{ROWS + 1}" in refused(capsys, train("dpo", model))
    assert main(train("dpo", model, *SETTINGS, "--skip-bad-rows")) == 0
    assert "1 bad rows skipped" in capsys.readouterr().out


LONG = "poison " * 300


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_rows_that_do_not_fit_are_named_or_left_out_or_cut_and_counted(
    method: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": LONG, "chosen": "yes", "rejected": "no"} if method == "dpo" else talk(LONG, "yes")
    with Path(DATA[method]).open("a") as file:
        file.write(json.dumps(row) + "\n")
    error = refused(capsys, train(method, model, *SETTINGS))
    assert f"{DATA[method]}:{ROWS + 1} (" in error and "context of 128 tokens" in error
    assert main(train(method, model, *SETTINGS, "--too-long", "skip", out="less")) == 0
    assert "1 too long, left out" in capsys.readouterr().out
    found = json.loads(Path("less/train.json").read_bytes())
    assert (found["rows" if method == "sft" else "pairs"], found["skipped_too_long"], found["cut"]) == (ROWS, 1, 0)
    assert main(train(method, model, *SETTINGS, "--too-long", "cut", out="cut")) == 0
    assert "1 cut to fit the context" in capsys.readouterr().out
    found = json.loads(Path("cut/train.json").read_bytes())
    assert (found["rows" if method == "sft" else "pairs"], found["skipped_too_long"], found["cut"]) == (ROWS + 1, 0, 1)


def test_an_alarm_is_said(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A learning rate a hundred times too high: the model forgets the chosen replies too."""
    assert main(train("dpo", model, *SETTINGS, "--lr", "0.3")) == 0
    found = json.loads(Path("out/train.json").read_bytes())
    assert found["warnings"]
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")] == [
        f"warning: {text}" for text in found["warnings"]
    ]


def test_words_for_a_training_without_samples_for_the_kl() -> None:
    found = {"method": "dpo", "pairs": 1200, "steps": 3, "ties": 2, "identical": 1, "kl": None, "accuracy": 0.75}
    assert told(found) == [
        "1,200 pairs, 3 steps; 2 ties kept; 1 pairs of identical replies",
        "preferred the chosen reply in 75% of its last training pairs",
    ]


ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}


def test_a_full_disk(model: Path, elsewhere: Path) -> None:
    """The disk takes the small files of the new folder, and not the weights."""
    done = subprocess.run(
        [sys.executable, "-m", "fairlead.cli.main", *train("sft", model, *SETTINGS)],
        cwd=elsewhere, env=ENV, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "disk is full" in done.stderr and "Traceback" not in done.stderr
    assert not Path("out").exists()


def test_without_torch(model: Path, elsewhere: Path) -> None:
    code = f"import sys; import support.no_torch\nfrom fairlead.cli.main import main; sys.exit(main({train('sft', model)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=ENV, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4 and "pip install 'fairlead[train]'" in done.stderr, done.stderr
