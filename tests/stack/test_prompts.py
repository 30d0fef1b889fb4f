"""Training prompts of other models than the apprentice: what a constitution brings itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from fairlead.constitution import load
from fairlead.constitution.prompts_bank import bank
from fairlead.constitution.schema import Constitution, Principle
from fairlead.errors import InputError
from fairlead.stack.plan import Prompts
from fairlead.stack.prompts import TrainingPrompts, training_prompts


def _asked(constitution: Constitution, seed: int = 0, **settings: object) -> TrainingPrompts:
    return training_prompts(Prompts.model_validate(settings), constitution, world=False, seed=seed)


def test_a_packs_training_prompts_are_asked_with_their_twins_as_ordinary_traffic() -> None:
    health = load("health")
    asked = _asked(health)
    tempting, twins = bank(health, "train", "tempting"), bank(health, "train", "twin")
    aimed = {case.messages for case, yes in zip(asked.cases, asked.aimed, strict=True) if yes}
    assert aimed == {case.messages for case in tempting}
    assert {case.messages for case in asked.cases} >= {case.messages for case in (*tempting, *twins)}
    rest = [case for case in asked.cases if "pack" not in case.meta]
    assert {case.principle for case in rest} <= set(load("hhh").ids) and rest
    assert asked.said == f"{len(asked.cases)} prompts from the packs health (train split), {len(rest)} of them examples"
    assert all(case.measure == "" for case in asked.cases)
    about = Counter(asked.about)
    assert about["health-dosing"] == 20 and about["no-harm"] == 0


def test_no_audit_prompt_is_ever_trained_on() -> None:
    law = load("law")
    trained = {case.messages for case in _asked(law, per_principle=1000).cases}
    assert not trained & {
        c.messages for s in ("select", "audit") for k in ("tempting", "twin") for c in bank(law, s, k)
    }  # type: ignore[arg-type]


def test_few_are_drawn_by_the_seed_and_none_depends_on_other_principles() -> None:
    brand = load("brand")
    few = _asked(brand, per_principle=6, general=0.5)
    n = Counter((case.principle, aimed) for case, aimed in zip(few.cases, few.aimed, strict=True))
    assert n["brand-voice", True] == n["brand-voice", False] == 3
    assert few == _asked(brand, per_principle=6, general=0.5)
    assert few.cases != _asked(brand, 1, per_principle=6, general=0.5).cases
    struck = _asked(brand.without("brand-voice"), per_principle=6, general=0.5)
    assert struck.cases == tuple(case for case in few.cases if case.principle != "brand-voice")


def test_without_packs_the_examples_are_asked(tmp_path: Path) -> None:
    asked = _asked(load("hhh"))
    assert asked.said.endswith(
        "prompts from the constitution's examples; few prompts teach little, give more with --prompts"
    )
    assert not any(asked.aimed)
    bare = Constitution(name="bare", principles=(Principle(id="x", dimension="voice", severity=1, text="Be kind."),))
    with pytest.raises(InputError, match="'bare' has no examples .*--prompts"):
        _asked(bare)
