"""The value function is kept: what a run ends with is what another starts from, under adapters too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.methods.policies import objectives, prompts, settings  # noqa: E402
from tests.methods.trainable import tiny_model  # noqa: E402

import fairlead.methods.policy as loop  # noqa: E402
from fairlead.engine.heads import score_values  # noqa: E402
from fairlead.engine.layout import Tree  # noqa: E402
from fairlead.judges.reward_model import RewardModel, open_reward  # noqa: E402
from fairlead.methods.config import Lora  # noqa: E402
from fairlead.methods.learner import Learner, new_learner  # noqa: E402
from fairlead.methods.policy import train_policy  # noqa: E402

TREES = [Tree((5, 6, 7), ((8, 9, 10), (11, 12))), Tree((7, 7), ((30, 31, 32, 33),))]


def values_of(critic: RewardModel) -> Any:
    return score_values(critic.model.module, critic.head, TREES, at="before").value_N


def values_in(learner: Learner) -> Any:
    with torch.no_grad():
        return learner.values(TREES)[:, 0]


@pytest.mark.parametrize(("name", "lora"), [("ppo", None), ("ppo", Lora(rank=4)), ("safe-ppo", Lora(rank=4))])
def test_the_critic_of_a_run_is_saved_whole_and_starts_another(
    name: str, lora: Lora | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, made_of = tiny_model(torch.float32), []

    def spy(*args: Any) -> Learner:
        made_of.append(new_learner(*args))
        return made_of[-1]

    monkeypatch.setattr(loop, "new_learner", spy)
    config = settings(name, lr=0.02, passes=2, lora=lora)
    made = train_policy(model, prompts(), objectives(name), config)
    (trained,) = made_of
    critic = made.critic
    assert critic is not None and (critic.adapter is not None) is (lora is not None)
    inside = values_in(trained)
    assert torch.allclose(values_of(critic), inside, rtol=0, atol=1e-5), "what it was at the end, adapters folded in"
    fresh = values_in(new_learner(model, config, None))
    assert float((values_of(critic) - fresh).abs().max()) > 0.05, "and it has learnt"
    again = open_reward(critic.save(tmp_path / "critic"))
    assert torch.equal(values_of(again), values_of(critic)) and again.lineage == critic.lineage
    start = values_in(new_learner(model, config, again))
    assert torch.allclose(start, values_of(critic), rtol=0, atol=1e-6), "the bias of its head too"


def test_without_a_value_function_there_is_none_to_keep() -> None:
    assert train_policy(tiny_model(), prompts(), objectives(), settings("grpo", steps=1)).critic is None
