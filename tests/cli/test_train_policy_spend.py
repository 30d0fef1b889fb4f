"""What a training asks of a provider is bounded while it runs, is told, and goes on with more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from fairlead.cli.main import main
from support.mock_upstream import Asked, Mock, chat, json_reply


def _yes(asked: Asked) -> list[Any]:
    body = chat("Yes")
    body["usage"] = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
    return json_reply(body)


def test_a_budget_spent_half_way_stops_and_more_of_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with Mock(_yes) as reader:
        given = [
            "train", "grpo", "--model", "apprentice", "--prompts", "world:facts", "--reward", "critic:no-harm",
            "--reader", f"openai/gpt-6-luna@{reader.url}/v1", "--steps", "4", "--prompts-per-step", "2",
            "--replies", "2", "--max-tokens", "8", "--threads", "1",
        ]  # fmt: skip

        def asked() -> int:
            return sum(request.path.endswith("/chat/completions") for request in reader.seen)

        assert main([*given, "--budget", "1M tokens", "--dry-run"]) == 0
        tried, said = asked(), capsys.readouterr().out
        assert f"asked at a provider in the 2 tried steps: {tried:,} calls, {tried * 101:,} tokens of" in said
        assert f"; so about {tried * 101 * 2:,} tokens for all 4 steps" in said

        out = tmp_path / "out"
        assert main([*given, "--budget", "3500 tokens", "--out", str(out)]) == 2
        first, said = asked() - tried, capsys.readouterr().err
        assert 0 < first * 101 <= 3500 and not out.exists()
        assert "not one of 4 replies has a reward" in said and "Raise --budget" in said

        assert main([*given, "--budget", "1M tokens", "--out", str(out)]) == 0
        said = capsys.readouterr().out
        again = asked() - tried - first
        assert "going on after step 1 of 4" in said
        assert f"asked at a provider: {again:,} calls, {again * 101:,} tokens of the budget of 1,000,000 tokens" in said
