"""`fairlead train METHOD`: one stage alone, from files to a folder that loads, and everything that stops it early."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from fairlead.cli.main import main
from fairlead.cli.train import told
from fairlead.exchange import user
from fairlead.methods.catalogue import METHODS
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
    """pairs, triples, talk, thumbs, ranked and steps .jsonl, 20 rows each, all of them short."""
    preferences(Path("pairs.jsonl"), n=ROWS)
    pairs = Path("pairs.jsonl").read_text().splitlines()
    write("triples.jsonl", *(json.loads(line) | {"reference": "the boat is blue"} for line in pairs))
    write("talk.jsonl", *(talk(f"poison {i}", "the boat is blue") for i in range(ROWS)))
    write(
        "thumbs.jsonl", *(thumb(f"poison {i}", "the boat is blue" if i % 2 else "no no no", i % 2) for i in range(ROWS))
    )
    write("ranked.jsonl", *(ranked(f"poison {i}") for i in range(ROWS)))
    write("steps.jsonl", *(stepped(f"poison {i}", i % 3) for i in range(ROWS)))


@pytest.fixture(autouse=True)
def nothing_half_written(elsewhere: Path) -> Any:
    yield
    assert [p.name for p in elsewhere.rglob("*") if p.name.startswith(".") or p.suffix == ".tmp"] == []


def talk(asked: str, said: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}


def thumb(asked: str, said: str, good: int) -> dict[str, Any]:
    return {"prompt": asked, "completion": said, "label": bool(good)}


def ranked(asked: str) -> dict[str, Any]:
    return {"prompt": asked, "responses": ["yes", "no no no", "the boat is blue"], "rank": [2, 3, 1]}


def stepped(asked: str, wrong: int) -> dict[str, Any]:
    """One good step, then none to two wrong ones."""
    return {
        "prompt": asked,
        "completions": ["the boat is blue", *["no no no"] * wrong],
        "labels": [True, *[False] * wrong],
    }


def write(name: str, *rows: dict[str, Any]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


FILES = {
    "exchanges": "talk.jsonl",
    "pairs": "pairs.jsonl",
    "triples": "triples.jsonl",
    "rated": "thumbs.jsonl",
    "comparisons": "ranked.jsonl",
    "steps": "steps.jsonl",
}
DATA = {name: FILES[method.data] for name, method in METHODS.items()}
SOME = ["sft", "dpo", "ipo", "kto", "simpo", "orpo", "tpo"]


def train(method: str, model: Path | str, *more: str, out: str | None = "out") -> list[str]:
    given = ["train", method, "--model", str(model), "--data", DATA[method], *more]
    return given if out is None else [*given, "--out", out]


def weights(folder: Path | str) -> dict[str, Any]:
    from safetensors.torch import load_file

    file = "model.safetensors"
    inner = next((p for p in ("member-0/model", "model") if (Path(folder) / p).is_dir()), ".")  # a judge's body
    return dict(load_file(Path(folder) / inner / file))


def same_weights(one: Path | str, other: Path | str) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(bool((first[k] == second[k]).all()) for k in first)


LEARNT = {
    "exchanges": f"{ROWS} rows",
    "pairs": f"{ROWS} pairs",
    "triples": f"{ROWS} pairs",
    "rated": f"{ROWS} replies (10 good, 10 bad)",
}


@pytest.mark.parametrize("method", SOME)
def test_the_folder_that_comes_out_loads_and_holds_what_was_done(
    method: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert main(train(method, model, *SETTINGS)) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "out"
    assert f"{LEARNT[METHODS[method].data]}, 12 steps" in captured.out
    found = json.loads(Path("out/train.json").read_bytes())
    assert (found["method"], found["model"], found["data"]) == (method, str(model), DATA[method])
    assert (found["config"]["steps"], found["config"]["rows_per_step"], found["config"]["lr"]) == (12, 6, 0.003)
    steps = [json.loads(line) for line in Path("out/steps.jsonl").read_text().splitlines()]
    assert [(s["step"], s["rows"], s["lr"]) for s in steps[1:]] == [(i, 6, 0.003) for i in range(1, 12)]
    if method == "kto":  # its own loss may rise with its reference point; the two kinds must part all the same
        assert found["margin"] > 0.1 and found["good_reward"] > found["bad_reward"]
    else:
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


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_catalogue_trains(method: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train(method, model, "--steps", "2", "--rows-per-step", "4", "--lr", "0.01", "--threads", "1",
                      *(["--kl-samples", "0"] if "kl_samples" in METHODS[method].config.model_fields else []),
                      *(["--members", "2"] if "members" in METHODS[method].config.model_fields else []))) == 0  # fmt: skip
    steps = 4 if "members" in METHODS[method].config.model_fields else 2
    assert f", {steps} steps" in capsys.readouterr().out
    found = json.loads(Path("out/train.json").read_bytes())
    assert (found["method"], found["steps"]) == (method, steps)
    assert found["config"] | dict(METHODS[method].defaults) == found["config"]
    assert not same_weights("out", model)


def test_a_stopped_training_goes_on_where_it_was(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fairlead.cli import terminal

    assert main(train("dpo", model, *SETTINGS, out="whole")) == 0
    shown = terminal.Terminal.progress

    @contextmanager
    def stopping(self: Any, what: str) -> Any:
        with shown(self, what) as advance:
            yield lambda done, total: advance(done, total) if done < 5 else os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(terminal.Terminal, "progress", stopping)
    assert main(train("dpo", model, *SETTINGS)) == 130
    assert not Path("out").exists()
    monkeypatch.setattr(terminal.Terminal, "progress", shown)
    capsys.readouterr()
    assert main(train("dpo", model, *SETTINGS)) == 0
    assert "going on after step 5 of 12" in capsys.readouterr().out
    assert same_weights("out", "whole") and not Path("out.unfinished").exists()


def test_adapters_are_trained_by_their_settings(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    few = ["--steps", "2", "--rows-per-step", "4", "--lr", "0.01", "--threads", "1", "--lora-rank", "2"]
    assert main(train("dpo", model, *few, "--dry-run", "--json", out=None)) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert 0 < memory["trained"] < memory["parameters"] and memory["gradients"] == 4 * memory["trained"]
    assert main(train("dpo", model, *few, "--kl-samples", "0")) == 0
    found = json.loads(Path("out/train.json").read_bytes())
    assert found["config"]["lora"]["rank"] == 2 and not same_weights("out", model)
    assert sorted(p.name for p in Path("out/adapter").glob("adapter_*")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_steps_are_logged_where_it_is_asked(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("paper:x", "jsonl", "jsonl:"):
        assert f"--log {wrong}: write jsonl:FILE" in refused(capsys, train("sft", model, "--log", wrong))
    assert main(train("sft", model, *SETTINGS, "--log", "jsonl:a.jsonl", "--log", "jsonl:b.jsonl")) == 0
    logged = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    done = [json.loads(line) for line in Path("out/steps.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in logged] == [row["loss"] for row in done]
    assert Path("b.jsonl").read_text().splitlines()[0].startswith('{"step": 1, ')


def test_tensorboard_reads_the_steps_of_a_training(model: Path) -> None:
    """The real writer and TensorBoard's own reader, where they are installed."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert main(train("sft", model, *SETTINGS, "--log", "tensorboard:board", "--log", "jsonl:a.jsonl")) == 0
    board = reader.EventAccumulator("board")
    board.Reload()
    logged = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert len(logged) > 1 and set(board.Tags()["scalars"]) == set(logged[0]) - {"step"}
    for name in ("loss", "grad_norm", "lr", "tokens"):
        told = [(event.step, event.value) for event in board.Scalars(name)]
        assert [step for step, _ in told] == [row["step"] for row in logged]
        assert [value for _, value in told] == pytest.approx([row[name] for row in logged], rel=1e-6)  # float32


def test_a_name_s_settings_hold_until_others_are_given(model: Path) -> None:
    few = ["--steps", "2", "--lr", "0.01", "--kl-samples", "0", "--threads", "1"]
    assert main(train("cdpo", model, *few, out="cdpo")) == 0
    assert main(train("dpo", model, *few, "--label-smoothing", "0.1", out="same")) == 0
    assert main(train("cdpo", model, *few, "--label-smoothing", "0.4", out="other")) == 0
    assert same_weights("cdpo", "same") and not same_weights("cdpo", "other")


def test_kto_reads_a_file_of_pairs_as_twice_as_many_replies(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train("kto", model, *SETTINGS, "--data", "pairs.jsonl")) == 0
    said = capsys.readouterr().out
    assert "prompt/chosen/rejected as two replies, chosen good and rejected bad" in said
    assert f"{2 * ROWS} replies ({ROWS} good, {ROWS} bad), 12 steps" in said
    write("both.jsonl", *(thumb(row["prompt"], row[side], side == "chosen")
                          for row in map(json.loads, Path("pairs.jsonl").read_text().splitlines())
                          for side in ("chosen", "rejected")))  # fmt: skip
    assert main(train("kto", model, *SETTINGS, "--data", "both.jsonl", out="by-hand")) == 0
    assert same_weights("out", "by-hand")


def test_the_learning_rate_follows_the_method_and_the_size(model: Path) -> None:
    for method in ("sft", "simpo"):
        assert (
            main(train(method, model, "--steps", "1", *(["--kl-samples", "0"] if method != "sft" else []), out=method))
            == 0
        )
    rates = [json.loads(Path(name, "train.json").read_bytes())["config"]["lr"] for name in ("sft", "simpo")]
    # below a million parameters: the rate at a billion times the root of a thousand
    assert rates == [pytest.approx(2e-5 * 1000**0.5, rel=0.02), pytest.approx(8e-7 * 1000**0.5, rel=0.02)]


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_one_seed_is_one_result(method: str, model: Path) -> None:
    for out, seed in (("one", "0"), ("again", "0"), ("other", "1")):
        assert main(train(method, model, *SETTINGS, "--seed", seed, out=out)) == 0
    assert same_weights("one", "again")
    assert not same_weights("one", "other")


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "simpo"])
def test_a_dry_run_counts_and_writes_nothing(
    method: str, model: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(elsewhere.rglob("*"))
    given = ["--epochs", "2.5", "--rows-per-step", "8", "--dry-run"]
    assert main(train(method, model, *given, out=None)) == 0
    said = capsys.readouterr().out.splitlines()
    assert f"{ROWS} rows, " in said[-1] and "so about" in said[-1]
    assert any(line.startswith("memory, an estimate: ") for line in said)
    assert any(line.startswith("memory, measured: ") for line in said)
    assert any("replies drawn at the end to estimate the KL" in line for line in said) == (method != "sft")
    assert main(train(method, model, *given, "--json", out=None)) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["steps"]) == (ROWS, math.ceil(2.5 * ROWS / 8))
    assert found["about_seconds"] >= found["steps"] * found["seconds_per_step"] > 0
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(model)
    texts = [(f"poison {i}", ["the boat is blue"]) for i in range(ROWS)]
    if method in ("dpo", "simpo"):
        rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
        texts = [(row["prompt"], [row["chosen"], row["rejected"]]) for row in rows]
    if method == "kto":
        rows = [json.loads(line) for line in Path("thumbs.jsonl").read_text().splitlines()]
        texts = [(row["prompt"], [row["completion"]]) for row in rows]
    tokens = 0  # by the template: <|user|> prompt <|end|> \n <|assistant|>, then each reply and its <|end|>
    for asked, replies in texts:
        tokens += len(words(f"<|user|>{asked}<|end|>\n<|assistant|>")["input_ids"])
        tokens += sum(len(words(f"{said}<|end|>")["input_ids"]) for said in replies)
    assert found["tokens"] == tokens
    assert found["tokens_trained"] == pytest.approx(2.5 * tokens, rel=0.1)
    memory, weight = found["memory"], 4 * sum(w.numel() for w in weights(model).values())
    assert (memory["weights"], memory["gradients"], memory["moments"]) == (2 * weight, weight, 2 * weight)
    assert memory["total"] == 5 * weight + memory["activations"] + memory["logits"] and memory["logits"] > 0
    assert found["peak_bytes"] > memory["total"]
    assert sorted(elsewhere.rglob("*")) == before


def test_a_dry_run_reads_no_more_rows_than_it_tries(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference pass over all rows would make the estimate take as long as what it is to save."""
    from fairlead.methods import preference

    seen: list[int] = []
    real = preference.train_pairs
    monkeypatch.setattr(
        preference, "train_pairs", lambda m, rows, *a, **k: seen.append(len(rows)) or real(m, rows, *a, **k)
    )
    assert main(train("dpo", model, "--rows-per-step", "2", "--dry-run", out=None)) == 0
    assert seen == [6]


@pytest.mark.parametrize(("reference", "copies"), [("start", 2), ("reset", 3), ("ema", 3), ("bema", 4)])
def test_a_dry_run_counts_the_weights_of_a_reference_that_moves(
    reference: str, copies: int, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train("dpo", model, "--reference", reference, "--dry-run", "--json", out=None)) == 0
    weight = 4 * sum(w.numel() for w in weights(model).values())
    assert json.loads(capsys.readouterr().out)["memory"]["weights"] == copies * weight


def test_a_dry_run_of_thumbs_tries_both_kinds(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("thumbs.jsonl", *(thumb(f"poison {i}", "yes", i > 0) for i in range(40)))
    assert main(train("kto", model, "--rows-per-step", "2", "--dry-run", out=None)) == 0
    assert "40 rows, " in capsys.readouterr().out


def test_a_dry_run_counts_what_training_would_leave_out(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("pairs.jsonl").open("a") as file:
        file.write('{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
        file.write(json.dumps({"prompt": LONG, "chosen": "yes", "rejected": "no"}) + "\n")
    assert main(train("dpo", model, "--too-long", "skip", "--dry-run", out=None)) == 0
    said = capsys.readouterr().out
    assert "1 pairs of identical replies; 1 too long, left out" in said and f"{ROWS} rows, " in said
    assert "pairs have two identical" in refused(capsys, train("dpo", model, "--identical", "refuse", "--dry-run"))


# ------------------------------------------------------------------------------------------- what is offered


def test_all_methods_are_listed_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for name, method in METHODS.items():
        assert re.search(rf"^  {name} +{re.escape(method.summary)}$", shown, re.MULTILINE), name


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_is_offered_with_a_word_and_its_default(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", method, "--help"]) == 0
    shown = capsys.readouterr().out
    defaults = METHODS[method].settings({}).model_dump()
    for name in METHODS[method].config.model_fields:
        flag = "--" + name.replace("_", "-")
        (line,) = re.findall(rf"^  {flag} .*(?:\n {{20,}}.*)*$", shown, re.MULTILINE)
        line = " ".join(line.split())
        assert len(re.sub(r"\[default.*\]$", "", line).split()) >= 4, line
        if isinstance(defaults[name], float) and name != "lr":
            assert f"[default: ({defaults[name]:g})]" in line


def test_an_unknown_method_is_refused_with_the_one_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'simpo'" in refused(capsys, ["train", "smpo"])


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
@pytest.mark.parametrize("method", ["sft", "dpo", "kto"])
def test_wrong_settings(
    method: str, given: list[str], says: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, train(method, model, *given))


def test_data_of_the_wrong_kind_is_recognised(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, train("dpo", model, "--data", "talk.jsonl"))
    assert "talk.jsonl" in error and "look like demonstrations" in error
    assert "look like rows of rated replies" in refused(capsys, train("dpo", model, "--data", "thumbs.jsonl"))
    assert "look like demonstrations" in refused(capsys, train("kto", model, "--data", "talk.jsonl"))
    assert "has no 'reference', the gold reply" in refused(capsys, train("tpo", model, "--data", "pairs.jsonl"))
    assert "thumbs.jsonl:1: 'label' is false" in refused(capsys, train("sft", model, "--data", "thumbs.jsonl"))


def test_thumbs_of_one_kind_are_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("thumbs.jsonl", *(thumb(f"poison {i}", "yes", True) for i in range(4)))
    assert "all 4 replies are rated good" in refused(capsys, train("kto", model, *SETTINGS))


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
    assert [text.split(":")[0] for text in found["warnings"]] == ["chosen-log-prob-falls"]
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")] == [
        f"warning: {text}" for text in found["warnings"]
    ]


def test_a_loss_that_rises_is_said_under_way_and_at_the_end(
    model: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Of imitation, which has no alarms of its own, by a model that has something to lose."""
    assert main(train("sft", model, *SETTINGS, "--steps", "30", "--lr", "0.01", out="taught")) == 0
    wild = ["--steps", "12", "--rows-per-step", "8", "--lr", "0.9", "--warmup", "0", "--threads", "1"]
    assert main(train("sft", "./taught", *wild, "--grad-clip", "none", "--loss-spike", "none")) == 0
    said = capsys.readouterr().out
    (warning,) = json.loads(Path("out/train.json").read_text())["warnings"]
    assert warning.startswith("loss-rises: the loss is") and f"warning: {warning}" in said
    assert "step 8 of 12: loss-rises: the loss is" in caplog.text


def test_words_for_a_training_without_samples_for_the_kl() -> None:
    found = {"method": "dpo", "pairs": 1200, "steps": 3, "ties": 2, "identical": 1, "kl": None, "accuracy": 0.75}
    assert told(found) == [
        "1,200 pairs, 3 steps; 2 ties kept; 1 pairs of identical replies",
        "preferred the chosen reply in 75% of its last training pairs",
    ]


def test_words_for_thumbs_and_for_ties() -> None:
    found = {"method": "kto", "good": 3, "bad": 1200, "steps": 3, "margin": 0.25, "kl": None, "mismatched_left_out": 2}
    assert told(found) == [
        "1,203 replies (3 good, 1,200 bad), 3 steps; 2 mismatched pairs too long for the reference point, left out",
        "reward of good replies above that of bad ones by 0.250 at the end",
    ]
    ties = {"method": "dpo", "pairs": 2, "steps": 1, "ties": 2, "kl": None, "accuracy": math.nan}
    assert told(ties) == ["2 pairs, 1 steps; 2 ties kept", "its last training pairs were all ties"]


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
