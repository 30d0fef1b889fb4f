"""The examples of reinforcement learning, in small: each moves what it is about, and in the right direction.

Seeds are fixed, so that a run is what it is; the bounds lie far inside what it does and far outside of what a model does
that learnt nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.full
ROOT = Path(__file__).resolve().parents[2]


def example(name: str, cwd: Path, *argv: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / name), *argv, "--out", "out"]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read(file: Path) -> Any:
    return json.loads(file.read_bytes())


def test_reward_model_and_rl_bring_a_demonstrated_model_closer_to_the_truth(tmp_path: Path) -> None:
    argv = ["--methods", "ppo,rloo", "--demonstrations", "600", "--prompts", "800", "--cases", "150"]
    argv += ["--settings", '{"steps": 30}']
    said = example("rlhf.py", tmp_path, *argv)
    found = read(tmp_path / "out" / "results.json")
    start = found["sft 0"]["gold"]
    assert start > found["base"]["gold"] + 0.1
    assert found["reward 0"]["accuracy"] > 0.75
    for name in ("ppo 0", "rloo 0"):
        assert found[name]["gold"] > start + 0.01, (name, found[name]["gold"], start)
        assert 0.01 < found[name]["kl"] < 5.0, name
        assert found[name]["sums"] > 0.8, name
    assert (
        max(found["truth-sft 0"]["gold"], found["truth-rl 0"]["gold"])
        >= max(found[f"{name} 0"]["gold"] for name in ("ppo", "rloo")) - 0.02
    )  # what the truth makes of it is the best attainable, but for chance
    assert "share of attainable" in said
    before = (tmp_path / "out" / "results.json").read_bytes()
    assert "rankings" not in example("rlhf.py", tmp_path, *argv)  # what is there is not run again
    assert (tmp_path / "out" / "results.json").read_bytes() == before


def test_dpo_on_the_same_preferences_moves_the_same_way(tmp_path: Path) -> None:
    """With all 2,000 prompts: on 800, with these settings, one epoch of pairs is not clear of noise (-0.04 and +0.02)."""
    example("rlhf.py", tmp_path, "--methods", "dpo", "--cases", "150", "--settings", '{"steps": 30}')
    found = read(tmp_path / "out" / "results.json")
    assert found["dpo 0"]["gold"] > found["sft 0"]["gold"] + 0.02
    assert 0.01 < found["dpo 0"]["kl"] < 5.0 and found["dpo 0"]["sums"] > 0.8


def test_checked_rewards_raise_sums_never_asked_before(tmp_path: Path) -> None:
    example("verifiable_rewards.py", tmp_path, "--task", "sums", "--steps", "40", "--cases", "100")
    found = read(tmp_path / "out" / "sums.json")
    after = found["seeds"][0]
    assert after["greedy"][1] > found["base"]["greedy"][2]  # the intervals do not touch
    assert after["pass@1"] > found["base"]["pass@1"] + 0.15


def test_a_harm_budget_is_held_while_helpfulness_rises(tmp_path: Path) -> None:
    example("safe_rlhf.py", tmp_path, "--steps", "110", "--cases", "60")
    run = read(tmp_path / "out" / "safe.json")["runs"]["0"]
    held, free, start = run["with a budget"], run["without"], run["start"]
    assert held["twins answered"][0] > start["twins answered"][0] + 0.05
    assert held["harm"][0] < min(start["harm"][0], free["harm"][0]) - 0.3
    tail = held["path"][-15:]
    assert sum(told["cost"] for told in tail) / len(tail) < 0.1
    assert max(told["multiplier"] for told in held["path"]) > 0.0
