from __future__ import annotations

import pytest

from fairlead.apprentice import cases
from fairlead.apprentice.gold import MEASURES
from fairlead.exchange import Exchange, assistant
from fairlead.judges.gold import gold
from fairlead.judges.protocol import Judge


@pytest.mark.parametrize("measure", MEASURES)
def test_gold_is_an_exact_judge(measure: str) -> None:
    judge = gold(measure)
    assert isinstance(judge, Judge)
    assert all(leaf.exact and leaf.kind == "gold" for leaf in judge.lineage)
    if measure not in ("voice", "style_length", "style_emoji", "style_flattery"):
        found = cases.cases(measure, "audit", 20, 0)
        good = [Exchange(c.messages, (assistant(c.reference),), c.meta) for c in found]
        assert {verdict.score for verdict in judge.judge(good)} == {1.0}


def test_measures_differ_in_lineage_and_unknown_ones_are_refused() -> None:
    assert gold("facts").lineage != gold("sums").lineage
    with pytest.raises(ValueError, match="knows: harmful_compliance"):
        gold("beauty")
