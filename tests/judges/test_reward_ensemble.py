"""Ensembles of reward models: their numbers by hand, and their folder, whole, swapped or damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.judges.rewards import ITEMS, reward  # noqa: E402

from fairlead.errors import InputError  # noqa: E402
from fairlead.exchange import exchange  # noqa: E402
from fairlead.judges.ensemble import scale_of, standardised  # noqa: E402
from fairlead.judges.lineage import merge  # noqa: E402
from fairlead.judges.protocol import Judge  # noqa: E402
from fairlead.judges.reward_ensemble import Combine, RewardEnsemble, open_reward_folder  # noqa: E402
from fairlead.judges.reward_model import Calibration, RewardModel, open_reward  # noqa: E402


def members() -> tuple[RewardModel, ...]:
    return tuple(reward(head=k, calibration=Calibration(1.0 + k, 0.1 * k)) for k in range(3))


def ensemble(combine: Combine = "mean", penalty: float = 0.5) -> RewardEnsemble:
    three = members()
    return RewardEnsemble("three", three, tuple(scale_of(m, ITEMS) for m in three), combine, penalty)


def by_hand(combine: Combine, values: list[float], penalty: float) -> float:
    centre = sum(values) / len(values)
    variance = sum((v - centre) ** 2 for v in values) / len(values)
    return {"mean": centre, "worst": min(values), "uncertainty": centre - penalty * variance}[combine]


@pytest.mark.parametrize("combine", ["mean", "worst", "uncertainty"])
def test_its_rewards_are_those_of_the_formula_on_one_scale(combine: Combine) -> None:
    made = ensemble(combine, 0.3)
    assert isinstance(made, Judge)
    columns = []
    for member in made.members:
        raws = torch.tensor([v.raw for v in member.judge(ITEMS)], dtype=torch.float64)
        columns.append(((raws - raws.mean()) / raws.std(correction=0)).tolist())
    for verdict, values in zip(made.judge(ITEMS), zip(*columns, strict=True), strict=True):
        assert verdict.raw == pytest.approx(by_hand(combine, list(values), 0.3), abs=1e-9)
        assert verdict.judge == "three"
    assert made.lineage == merge(m.lineage for m in made.members)
    long = made.judge([exchange("the boat " * 90, "yes")])[0]
    assert long.score is None and "do not fit" in long.reason


def test_a_scale_is_what_standardising_finds() -> None:
    member = members()[0]
    whole = RewardEnsemble("one", (member,), (scale_of(member, ITEMS),))
    assert [v.raw for v in whole.judge(ITEMS)] == [v.raw for v in standardised(member, ITEMS).judge(ITEMS)]


@pytest.mark.parametrize("combine", ["mean", "worst", "uncertainty"])
def test_it_comes_back_bit_for_bit(tmp_path: Path, combine: Combine) -> None:
    made = ensemble(combine, 0.7)
    folder = made.save(tmp_path / "it")
    again = open_reward_folder(folder, name="three")
    assert isinstance(again, RewardEnsemble)
    assert [(v.raw, v.score) for v in again.judge(ITEMS)] == [(v.raw, v.score) for v in made.judge(ITEMS)]
    assert (again.scales, again.combine, again.penalty) == (made.scales, combine, 0.7)
    assert again.lineage == made.lineage
    assert [p.name for p in tmp_path.iterdir()] == ["it"]
    assert sorted(p.name for p in folder.iterdir()) == ["ensemble.json", "member-0", "member-1", "member-2"]


def test_one_opener_opens_both_and_the_other_says_so(tmp_path: Path) -> None:
    one = members()[1]
    assert open_reward_folder(one.save(tmp_path / "one"), name="rm").judge(ITEMS) == one.judge(ITEMS)  # type: ignore[union-attr]
    folder = ensemble().save(tmp_path / "three")
    with pytest.raises(
        InputError, match=r"three: several reward models .* reward_ensemble\.open_reward_folder opens it"
    ):
        open_reward(folder)
    assert open_reward(folder / "member-1").weights == one.weights
    with pytest.raises(InputError, match=r"reward\.json: missing"):
        open_reward_folder(tmp_path)


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    folder = ensemble().save(tmp_path / "it")
    about = json.loads((folder / "ensemble.json").read_text())

    def written(**change: object) -> None:
        (folder / "ensemble.json").write_text(json.dumps({**about, **change}))

    flat = [{**about["members"][0], "spread": 0.0}, *about["members"][1:]]
    for change, says in (
        ({"format": 2}, "format 2, not 1"),
        ({"combine": "best"}, "combine is 'best'"),
        ({"penalty": -1, "combine": "uncertainty"}, "penalty is -1"),
        ({"members": flat}, "are no scale"),
        ({"members": []}, "cannot be read"),
        ({"members": [{"folder": "member-0"}]}, "'weights'"),
    ):
        written(**change)
        with pytest.raises(InputError, match=rf"ensemble\.json: cannot be read .*{says}|{says}"):
            open_reward_folder(folder)
    (folder / "ensemble.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        open_reward_folder(folder)
    written()
    shutil.rmtree(folder / "member-2")
    shutil.copytree(folder / "member-1", folder / "member-2")
    with pytest.raises(InputError, match="member-2: not the reward model that"):
        open_reward_folder(folder)
    shutil.rmtree(folder / "member-2")
    with pytest.raises(InputError, match=r"member-2.*reward\.json: missing"):
        open_reward_folder(folder)
