"""A reward that is switched on later: before, its judge is not asked and has no say; after, it has all of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.methods.policies import judge, letters, prompts, settings  # noqa: E402
from tests.methods.trainable import Tiny, tiny_model, weights  # noqa: E402

from fairlead.errors import InputError  # noqa: E402
from fairlead.exchange import Exchange, Verdict  # noqa: E402
from fairlead.judges.lineage import leaf  # noqa: E402
from fairlead.judges.rules import Judged  # noqa: E402
from fairlead.methods.loop import Run, StepRecord  # noqa: E402
from fairlead.methods.policy import train_policy  # noqa: E402
from fairlead.methods.rewards import Objective, at_step, checked, switch  # noqa: E402


@pytest.fixture(scope="module")
def model() -> Tiny:
    return tiny_model()


class Asked:
    """A judge that counts how often it is asked, and gives every reply five."""

    def __init__(self) -> None:
        self.times = 0

    def judge(self, items: Sequence[Exchange]) -> list[Verdict]:
        self.times += 1
        return [Verdict(1.0, raw=5.0) for _ in items]


def goals(later: Asked, since: float) -> list[Objective]:
    first = Objective(judge(letters, "letters"), name="first")
    second = Judged("later", later.judge, leaf("rule", text="later"))
    return [first, Objective(second, weight=0.5, name="later", since=since)]


@pytest.mark.parametrize("name", ["grpo", "ppo", "dapo", "online-dpo", "nash-md"])
def test_a_late_reward_is_asked_and_counted_in_the_last_quarter_alone(model: Tiny, name: str) -> None:
    later = Asked()
    config = settings(name, steps=8, resample=0, overlong=None)
    made = train_policy(model, prompts(), goals(later, 0.75), config)
    told = [record.told for record in made.steps]
    assert ["reward.later" in one for one in told] == [False] * 6 + [True] * 2
    assert later.times == 2
    for number, one in enumerate(told):
        wanted = one["reward.first"] + (0.5 * 5.0 if number >= 6 else 0.0)
        assert one["reward"] == pytest.approx(wanted, abs=1e-12)
        assert one["missing"] == 0
    assert made.missing == {"first": 0, "later": 0}


def test_before_the_switch_it_trains_as_if_the_late_reward_were_not_there(model: Tiny) -> None:
    config = settings("grpo", steps=4)
    seen: list[torch.Tensor] = []
    alone = train_policy(model, prompts(), goals(Asked(), 0.0)[:1], settings("grpo", steps=3))
    with_late = train_policy(
        model, prompts(), goals(Asked(), 0.75), config, Run(progress=lambda r: seen.append(torch.tensor(r.loss)))
    )
    assert [r.loss for r in with_late.records[:3]] == [r.loss for r in alone.records]
    assert len(seen) == 4 and not torch.equal(weights(with_late.model), weights(alone.model))


def test_the_jump_of_the_reward_at_the_switch_is_no_cliff(model: Tiny) -> None:
    """A late reward of minus five in all would look like a collapse to whoever compared it with the steps before."""

    late = Objective(judge(lambda item: -500.0, "sad"), since=0.75)
    config = settings("grpo", steps=24, reward_cliff=1.0, lr=1e-7)
    made = train_policy(model, prompts(), [goals(Asked(), 0.0)[0], late], config)
    assert made.stopped == "" and made.steps[-1].told["reward"] < -400 < made.steps[17].told["reward"]


def test_a_killed_run_goes_on_across_the_switch(model: Tiny, tmp_path: Path) -> None:
    config = settings("grpo", steps=6)
    whole = train_policy(model, prompts(), goals(Asked(), 0.5), config)

    def die(record: StepRecord) -> None:
        if record.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_policy(model, prompts(), goals(Asked(), 0.5), config, Run(checkpoint=tmp_path, every=1, progress=die))
    again = train_policy(model, prompts(), goals(Asked(), 0.5), config, Run(checkpoint=tmp_path, every=1))
    assert torch.equal(weights(again.model), weights(whole.model))
    assert [r.told["reward"] for r in again.steps] == [r.told["reward"] for r in whole.steps]


def test_shares_of_the_steps() -> None:
    late = Objective(judge(letters, "a"), since=0.75)
    assert [switch(late, steps) for steps in (1, 2, 3, 4, 10, 100)] == [0, 1, 2, 3, 8, 75]
    assert [at_step([late], step, 4)[0].weight for step in range(4)] == [0.0, 0.0, 0.0, 1.0]
    for since in (1.0, -0.1, math.nan):
        with pytest.raises(InputError, match="share of the steps"):
            checked([goals(Asked(), 0.0)[0], Objective(late.judge, since=since)])
    with pytest.raises(InputError, match="no reward counts from the first step on"):
        checked([late])
