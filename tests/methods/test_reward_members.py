"""Several reward models of the same comparisons: their seeds, what a stopped run keeps, and what it does again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.judges.rewards import local  # noqa: E402
from tests.methods.parallel_jobs import Spy  # noqa: E402

from fairlead.errors import InputError  # noqa: E402
from fairlead.exchange import Exchange, Preference, Ranking, assistant, user  # noqa: E402
from fairlead.methods import reward_members  # noqa: E402
from fairlead.methods.config_reward import RewardConfig, RewardEnsembleConfig, WarmConfig  # noqa: E402
from fairlead.methods.loop import Run, StepRecord  # noqa: E402
from fairlead.methods.reward import train_reward  # noqa: E402
from fairlead.methods.reward_members import member_configs, train_ensemble, train_warm  # noqa: E402

GOOD, FAIR, BAD = ((assistant(text),) for text in ("the boat is blue", "yes", "no no no"))
ROWS: list[Preference | Ranking] = [
    *(Preference((user(f"{i} ?"),), GOOD, BAD) for i in range(5)),
    Ranking((user("which ?"),), (FAIR, BAD, GOOD), (2, 0, 1)),
    Preference((user("a tie ?"),), GOOD, FAIR, strength=0.5),
]
SETTINGS: dict[str, Any] = {"steps": 3, "rows_per_step": 4, "lr": 3e-3, "members": 3}
ASKED = [Exchange((user("9 ?"),), reply) for reply in (GOOD, FAIR, BAD)]


class Killed(Exception):
    pass


def test_members_differ_in_their_seeds_alone() -> None:
    made = member_configs(RewardEnsembleConfig(**SETTINGS, seed=2, head_seed=1, centre=0.2))
    assert [(m.seed, m.head_seed) for m in made] == [(6, 3), (7, 4), (8, 5)]
    assert {(type(m), m.centre, m.steps) for m in made} == {(RewardConfig, 0.2, 3)}
    assert [(m.seed, m.head_seed) for m in member_configs(WarmConfig(**SETTINGS, seed=2, head_seed=1))] == [
        (6, 1), (7, 1), (8, 1),
    ]  # fmt: skip
    first, second = (member_configs(RewardEnsembleConfig(**SETTINGS, seed=seed)) for seed in (0, 1))
    assert not {m.seed for m in first} & {m.seed for m in second}


def test_each_is_the_reward_model_of_its_seeds() -> None:
    model, config = local(), RewardEnsembleConfig(**SETTINGS)
    got = train_ensemble(model, ROWS, config)
    for member, own in zip(got.model.members, member_configs(config), strict=True):  # type: ignore[union-attr]
        alone = train_reward(model, ROWS, own).model
        assert member.weights == alone.weights and member.judge(ASKED)[0].raw == alone.judge(ASKED)[0].raw
    assert (got.prompts, got.pairs, got.ties, got.compared) == (7, 9, 1, 8)
    assert [(r.step, r.steps) for r in got.records] == [(i, 9) for i in range(9)]


@pytest.mark.parametrize("at", [4, 5, 6])
def test_a_stopped_run_goes_on_with_the_member_it_was_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Stopped in the second of three members: between two of its steps, and after its last (4, 5, 6 of 9)."""
    model, config = local(), WarmConfig(**SETTINGS)
    whole = train_warm(model, ROWS, config)

    def die(record: StepRecord) -> None:
        if record.step + 1 == at:
            raise Killed

    with pytest.raises(Killed):
        train_warm(model, ROWS, config, Run(checkpoint=tmp_path, every=1, progress=die))
    fits: list[int] = []
    real = reward_members.fitted
    monkeypatch.setattr(
        reward_members, "fitted", lambda data, own, *a, **k: fits.append(own.seed) or real(data, own, *a, **k)
    )
    spy = Spy()
    again = train_warm(model, ROWS, config, Run(checkpoint=tmp_path, every=1, progress=spy.progress, loggers=[spy]))
    assert fits == [1, 2], "the first is finished"
    assert spy.told == spy.steps == list(range(at + 1, 10))
    assert spy.closed >= 1
    assert again.model.weights == whole.model.weights  # type: ignore[union-attr]
    assert again.model.judge(ASKED) == whole.model.judge(ASKED)
    assert [r.loss for r in again.records] == [r.loss for r in whole.records]
    # once more on the same folder: nothing is left to train, and another join takes the members that are there
    fits.clear()
    assert train_warm(model, ROWS, config, Run(checkpoint=tmp_path)).model.weights == whole.model.weights  # type: ignore[union-attr]
    assert fits == []


def test_a_damaged_member_is_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, config = local(), RewardEnsembleConfig(**SETTINGS | {"members": 2})
    whole = train_ensemble(model, ROWS, config, Run(checkpoint=tmp_path))
    one, two = sorted(tmp_path.glob("member-*"))
    (one / "member.json").unlink()  # as if it was killed before the member was whole
    file = two / "model" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 255
    file.write_bytes(raw)
    with caplog.at_level(logging.WARNING):
        again = train_ensemble(model, ROWS, config, Run(checkpoint=tmp_path))
    assert sum("training it again" in message for message in caplog.messages) == 2
    assert again.model.judge(ASKED) == whole.model.judge(ASKED)


def test_members_of_other_rows_or_settings_are_not_taken(tmp_path: Path) -> None:
    model, config = local(), RewardEnsembleConfig(**SETTINGS | {"members": 2})
    train_ensemble(model, ROWS, config, Run(checkpoint=tmp_path))
    assert len(list(tmp_path.glob("member-*"))) == 2
    train_ensemble(model, ROWS, config.model_copy(update={"combine": "worst"}), Run(checkpoint=tmp_path))
    assert len(list(tmp_path.glob("member-*"))) == 2
    train_ensemble(model, ROWS[:-1], config, Run(checkpoint=tmp_path))
    assert len(list(tmp_path.glob("member-*"))) == 4


def test_rewards_that_are_all_alike_make_no_scale() -> None:
    same = [Preference((user("x ?"),), GOOD, (assistant("the boat is red"),))]

    model = local()
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.zero_()  # every state is 0, whatever is said, and no gradient leads away
    with pytest.raises(InputError, match="do not vary: no scale. Train longer"):
        train_ensemble(model, same, RewardEnsembleConfig(**SETTINGS | {"members": 2}))
