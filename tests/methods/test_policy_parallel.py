"""Reinforcement learning on two processes: prompts shared out, the same result as on one, a kill survived."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.methods import policies  # noqa: E402

from fairlead.methods.config_policy import ALGORITHMS  # noqa: E402
from support import ranks  # noqa: E402


@pytest.mark.parametrize(("name", "shard"), [("grpo", False), ("grpo", True), ("ppo", False), ("ppo", True)])
def test_two_processes_learn_as_one_and_each_judges_its_own_replies(tmp_path: Path, name: str, shard: bool) -> None:
    one = policies.on_several(name, str(tmp_path / "one"), shard=False)
    first, second = ranks.run(policies.on_several, 2, tmp_path, name, str(tmp_path / "two"), shard)
    as_one(one, first, second)


SHARED = ("dapo", "remax", "xpo", "nash-md")  # what they draw beside the replies is shared out too
OTHERS = tuple(name for name in ALGORITHMS if name not in ("grpo", "ppo", *SHARED))


@pytest.mark.parametrize("names", [SHARED, pytest.param(OTHERS, marks=pytest.mark.full)], ids=["shared", "others"])
def test_two_processes_learn_as_one_with_every_other_algorithm(tmp_path: Path, names: tuple[str, ...]) -> None:
    first, second = ranks.run(policies.each_on_several, 2, tmp_path, names, str(tmp_path / "two"))
    for name in names:
        as_one(policies.on_several(name, str(tmp_path / "one" / name), shard=False), first[name], second[name])


def as_one(one: dict[str, Any], first: dict[str, Any], second: dict[str, Any]) -> None:
    """What two processes came to is what one does; each judged a part of the replies."""
    assert first["hash"] == second["hash"] and first["told"] == second["told"]
    assert first["norms"] == pytest.approx(one["norms"], rel=1e-9)
    assert first["loss"] == pytest.approx(one["loss"], rel=1e-6, abs=1e-9)
    for ours, theirs in zip(first["told"], one["told"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-9)
    assert sorted(first["asked"] + second["asked"]) == sorted(one["asked"])
    assert first["asked"] and second["asked"]


def test_a_kill_of_two_processes_is_survived_to_the_bit(tmp_path: Path) -> None:
    whole, _ = ranks.run(policies.on_several, 2, tmp_path / "a", "grpo", str(tmp_path / "whole"), False)
    with pytest.raises(Exception, match=r"(?s).*"):
        ranks.run(policies.on_several, 2, tmp_path / "b", "grpo", str(tmp_path / "killed"), False, 6)
    left: list[Any] = list((tmp_path / "killed").glob("unfinished/training-*/steps/*"))
    assert left, "the steps under way lie on the disk"
    went_on, _ = ranks.run(policies.on_several, 2, tmp_path / "c", "grpo", str(tmp_path / "killed"), False)
    assert went_on["hash"] == whole["hash"]
    assert len(went_on["asked"]) < len(whole["asked"])


@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_go_back_to_the_last_good_weights_too(tmp_path: Path, shard: bool) -> None:
    one = policies.collapsing(str(tmp_path / "one"), shard=False)
    first, second = ranks.run(policies.collapsing, 2, tmp_path, str(tmp_path / "two"), shard)
    assert first == second
    assert "those after 3 optimiser steps, the last good ones" in one["stopped"]
    assert first["stopped"] == one["stopped"]
    assert first["norms"] == pytest.approx(one["norms"], rel=1e-9)
    assert first["closing"] == pytest.approx(one["closing"], rel=1e-6)


def test_the_good_parts_of_split_weights_are_kept_over_a_kill(tmp_path: Path) -> None:
    whole, _ = ranks.run(policies.collapsing, 2, tmp_path / "a", str(tmp_path / "whole"), True)
    with pytest.raises(Exception, match=r"(?s).*"):
        ranks.run(policies.collapsing, 2, tmp_path / "b", str(tmp_path / "killed"), True, 4)  # the last before the stop
    assert list((tmp_path / "killed").glob("unfinished/training-*/step-*"))
    went_on, _ = ranks.run(policies.collapsing, 2, tmp_path / "c", str(tmp_path / "killed"), True)
    assert went_on == whole
