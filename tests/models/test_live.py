"""`make live` says that it ran against nobody where no key is set, and runs where models are named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fairlead.models.serve import Server
from support.fakes import Echo

ROOT = Path(__file__).parents[2]
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "OPENAI_API_KEY_FILE", "ANTHROPIC_API_KEY_FILE")


def live(*models: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in KEYS}
    command = [sys.executable, str(ROOT / "tests/live/run.py"), *models]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def test_without_a_key_it_says_so() -> None:
    done = live()
    assert done.returncode == 0 and "did NOT run against any provider" in done.stdout
    assert "live:" in (ROOT / "Makefile").read_text()


def test_with_models_it_runs_the_contract() -> None:
    with Server(Echo()) as server:
        done = live(f"openai/echo@{server.url}/v1")
    assert "contract suite against openai/echo@" in done.stdout, done.stderr
    assert "2 failed, 5 passed" in done.stdout and done.returncode == 1, (
        "an echo does not take all that its format offers"
    )


def test_a_model_without_a_key_is_one_sentence() -> None:
    done = live("openai/gpt-6-luna")
    assert done.returncode == 4 and done.stderr.startswith("make live: openai/gpt-6-luna: no key"), done.stderr
    assert "Traceback" not in done.stdout + done.stderr
