"""Models that a training asks while it runs: none at a provider without a bound on what it costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairlead.errors import InputError
from fairlead.judges.named import open_judge
from fairlead.models import Budget
from fairlead.stack.reinforce import PolicyOrder
from fairlead.stack.within import Within


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")


def order(reader: str, within: Within) -> PolicyOrder:
    return PolicyOrder("grpo", "apprentice", "world:facts", ["critic:no-harm"], reader=reader, within=within)


def test_a_reader_at_a_provider_needs_a_budget_and_all_judges_share_it() -> None:
    with pytest.raises(InputError, match=r"^--reader openai/gpt-6-sol: .*say the most with --budget"):
        open_judge("critic:no-harm", reader=order("openai/gpt-6-sol", Within()).critics)
    limit = Budget(tokens=1000)
    asked = order("openai/gpt-6-sol", Within(limit)).critics
    judges = [open_judge(f"critic:{id}", reader=asked) for id in ("no-harm", "voice")]
    assert [judge.model.budget is limit for judge in judges] == [True, True]  # type: ignore[attr-defined]


def test_what_runs_here_or_on_a_server_of_ones_own_needs_none(tmp_path: Path) -> None:
    assert open_judge("critic:no-harm", reader=order("apprentice", Within()).critics).name == "critic:no-harm"
    own = Within().open("vllm/own@http://127.0.0.1:9", "--reader ")
    assert own.name and own.budget is None  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="no such price file"):
        Within(Budget(usd=1.0), tmp_path / "none.json").open("openai/gpt-6-sol", "--reader ")
