"""Weight averages of reward models: what they are, and who may not be averaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.judges.rewards import ITEMS, ROWS, local, reward  # noqa: E402

from fairlead.errors import InputError  # noqa: E402
from fairlead.exchange import Preference, assistant, user  # noqa: E402
from fairlead.judges.lineage import merge, rows_learnt  # noqa: E402
from fairlead.judges.reward_model import RewardModel  # noqa: E402
from fairlead.methods.warm import average, average_rewards  # noqa: E402


def member(seed: int) -> RewardModel:
    """As a run of its own would leave it: every weight moved a little, rows of its own."""
    made = reward()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (*made.model.module.parameters(), *made.head.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    rows = [Preference((user(f"{seed} ?"),), (assistant("a"),), (assistant("b"),))]
    return replace(made, name=f"rm {seed}", trained_on=rows_learnt(rows))


def test_every_weight_is_the_mean_and_the_lineage_is_everybodys(tmp_path: Path) -> None:
    members = [member(seed) for seed in (1, 2, 3)]
    folders = [m.save(tmp_path / m.name) for m in members]
    made = average_rewards(folders, weights=[1, 1, 2], pairs=ROWS, name="warm")
    states = [dict(m.model.module.named_parameters()) for m in members]
    for name, parameter in made.model.module.named_parameters():
        expected = (states[0][name].double() + states[1][name].double() + 2 * states[2][name].double()) / 4
        assert torch.equal(parameter, expected.float())
    head = sum(m.head.weight_D.double() * w for m, w in zip(members, (1, 1, 2), strict=True)) / 4
    assert torch.equal(made.head.weight_D, head.float())
    assert merge(m.lineage for m in members) < made.lineage
    assert made.weights not in {m.weights for m in members}
    assert made.calibration.pairs == 1 and made.name == "warm" and made.base == members[0].base
    assert made.judge(ITEMS)[0].raw != members[0].judge(ITEMS)[0].raw
    again = average(members, weights=[0.25, 0.25, 0.5])
    assert again.weights == made.weights and again.calibration.pairs == 0
    # the average of equals is the same model, and saving it changes nothing
    same = average([members[0], members[0]])
    assert same.judge(ITEMS)[0].raw == members[0].judge(ITEMS)[0].raw


def test_reward_models_of_other_starts_are_refused() -> None:
    first = member(1)
    for other, message in (
        (replace(member(2), base="wt:other"), "its base is 'wt:other'"),
        (replace(member(2), head_seed=1), "its head_seed is 1"),
        (replace(member(2), kind="process"), "its kind is 'process'"),
        (replace(member(2), model=local(width=64)), "weights of other shapes"),
    ):
        with pytest.raises(InputError, match=message):
            average([first, other])
    with pytest.raises(InputError, match="give at least 2"):
        average([first])
    with pytest.raises(InputError, match="give one above 0 for each"):
        average([first, member(2)], weights=[1.0, 0.0])
    with pytest.raises(InputError, match="nothing says what it was trained from"):
        average([replace(m, base="") for m in (first, member(2))])
    told = member(2)
    told.model.tokenizer.chat_template += " "
    with pytest.raises(InputError, match="other tokenizers or chat templates"):
        average([first, told])
