"""The example that learns published preferences from nothing, as a user runs it, on a few pairs."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT.parent / "shared" / "data" / "alpaca-eval"


def example(cwd: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / "preference_real.py"), *argv]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def pairs(where: Path, n: int = 60) -> Path:
    """Made-up pairs whose longer side always wins, so that a baseline is known."""
    draw = random.Random(0)
    words = ["the", "boat", "rope", "dock", "is", "blue", "red", "old", "and", "lies", "here", "today"]
    rows = [
        {
            "prompt": f"what of {draw.choice(words)} {i} ?",
            "chosen": " ".join(draw.choices(words, k=9)),
            "rejected": " ".join(draw.choices(words, k=4)),
        }
        for i in range(n)
    ]
    where.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return where


@pytest.fixture
def data(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    if request.param == "made up":
        return pairs(tmp_path / "pairs.jsonl")
    if not PUBLISHED.is_dir():
        pytest.skip(f"published data not at hand: {PUBLISHED}")
    return PUBLISHED


QUICK = ["--limit", "24", "--vocabulary", "400", "--context", "1024", "--pretrain-epochs", "1", "--epochs", "1"]


@pytest.mark.full
@pytest.mark.parametrize("data", ["made up", "published"], indirect=True)
def test_a_small_run_ends_with_two_models_and_a_table(data: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    argv = ["--preferences", str(data), "--out", "out", *QUICK]
    done = example(tmp_path, *argv)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 pairs to train on" in done.stdout and "learnt more than length:" in done.stdout
    table = {(row["scorer"], row["pairs"]): row for row in json.loads((tmp_path / "out/accuracy.json").read_bytes())}
    assert {"longer-wins", "base, sum", "base, mean", "dpo, implicit"} <= {scorer for scorer, _ in table}
    for row in (row["accuracy"] for row in table.values()):
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1 and 0 < row["n"] <= 24
    if data.name == "pairs.jsonl":
        assert table["longer-wins", "all"]["accuracy"]["value"] == 1.0
        assert "learnt more than length: cannot tell (no held-out pair" in done.stdout
    else:
        assert ("writer-only", "all") in table  # the published pairs say who wrote them
    for name in ("base", "dpo"):
        words = AutoTokenizer.from_pretrained(tmp_path / "out" / name)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / name)
        ids = words.apply_chat_template(
            [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=True
        )
        assert model.config.vocab_size == len(words) and len(ids["input_ids"]) > 0
    again = example(tmp_path, *argv)  # what is finished is not done again, and the numbers are the same
    assert again.returncode == 0 and again.stdout.count("as trained before") == 2
    other = example(tmp_path, *argv, "--seed", "1")
    assert other.returncode == 2 and "was begun with another --seed" in other.stderr


def test_wrong_input_is_said_without_a_traceback(tmp_path: Path) -> None:
    done = example(tmp_path, "--preferences", "nowhere.jsonl", "--out", "out")
    assert done.returncode == 2 and "nowhere.jsonl: no such file" in done.stderr and "Traceback" not in done.stderr
