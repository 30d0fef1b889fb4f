from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest

from fairlead.exchange import Exchange, Verdict, exchange
from fairlead.judges import rules
from fairlead.judges.ensemble import (
    calibrated,
    fit_logistic,
    mean,
    minimum,
    renamed,
    standardised,
    threshold,
    uncertainty_weighted,
    weighted,
    worst_case,
)
from fairlead.judges.gold import gold
from fairlead.judges.lineage import leaf
from fairlead.judges.rules import Judged
from fairlead.judges.twoway import sigmoid

ITEM = exchange("x", "y")


def fixed(name: str, score: float | None, raw: float | None = None) -> Judged:
    verdict = Verdict(score, raw=raw, reason="" if score is not None else "no idea")
    return Judged(name, lambda items: [verdict] * len(items), leaf("rule", text=name))


def reading(name: str, raw: Callable[[Exchange], float]) -> Judged:
    def judge(items: Sequence[Exchange]) -> list[Verdict]:
        return [Verdict(sigmoid(raw(item)), raw=raw(item)) for item in items]

    return Judged(name, judge, leaf("critic", text=name, model="wt:m"))


def test_weighted_sums_raw_and_averages_scores() -> None:
    verdict = weighted({fixed("a", 0.8, 2.0): 1.0, fixed("b", 0.2, -4.0): 0.3}).judge([ITEM])[0]
    assert verdict.raw == pytest.approx(2.0 - 1.2)
    assert verdict.score == pytest.approx((0.8 + 0.3 * 0.2) / 1.3)


def test_a_negative_weight_turns_a_judge_round() -> None:
    verdict = weighted([(fixed("a", 0.8, 2.0), -2.0)]).judge([ITEM])[0]
    assert verdict.score == pytest.approx(0.2)
    assert verdict.raw == pytest.approx(-4.0)


def test_mean_and_minimum() -> None:
    children = [fixed("a", 0.9, 3.0), fixed("b", 0.4, -1.0)]
    assert mean(children).judge([ITEM])[0].score == pytest.approx(0.65)
    lowest = minimum(children).judge([ITEM])[0]
    assert (lowest.score, lowest.raw) == (0.4, -1.0)


def test_ensembles_of_rewards_equal_their_formulas() -> None:
    """Coste et al. 2023: the worst case, and mean minus penalty times the ensemble's own variance."""
    scores, raws = [0.9, 0.4, 0.65], [3.0, -1.0, -2.5]
    children = [fixed(str(i), s, r) for i, (s, r) in enumerate(zip(scores, raws, strict=True))]
    worst = worst_case(children).judge([ITEM])[0]
    assert (worst.score, worst.raw) == (0.4, -2.5)  # the lowest of each; `minimum` goes by scores alone
    assert minimum(children).judge([ITEM])[0].raw == -1.0
    mean_raw, mean_score = sum(raws) / 3, sum(scores) / 3
    for penalty in (0.0, 0.1, 0.5):
        got = uncertainty_weighted(children, penalty).judge([ITEM])[0]
        assert got.raw == pytest.approx(mean_raw - penalty * sum((r - mean_raw) ** 2 for r in raws) / 3)
        assert got.score == pytest.approx(mean_score - penalty * sum((s - mean_score) ** 2 for s in scores) / 3)
    assert uncertainty_weighted(children, 0.0).judge([ITEM])[0].raw == pytest.approx(
        mean(children).judge([ITEM])[0].raw
    )
    assert uncertainty_weighted(children, 1e6).judge([ITEM])[0].score == 0.0
    alone = uncertainty_weighted(children[:1], 0.5).judge([ITEM])[0]
    assert (alone.score, alone.raw) == (0.9, 3.0)
    for join in (worst_case, lambda c: uncertainty_weighted(c, 0.5)):
        assert join([*children, fixed("bare", 0.5)]).judge([ITEM])[0].raw is None
        with pytest.raises(ValueError, match="at least one judge"):
            join([])
    for penalty in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="penalty is"):
            uncertainty_weighted(children, penalty)


def test_standardised_rewards_have_mean_0_and_spread_1() -> None:
    items = [exchange("x", str(value)) for value in (4.0, 8.0, 12.0)]
    judge = standardised(reading("m", lambda item: float(item.reply_text)), items)
    verdicts = judge.judge([*items, exchange("x", "8")])
    spread = math.sqrt(32 / 3)
    assert [v.raw for v in verdicts] == pytest.approx([-4 / spread, 0, 4 / spread, 0])
    assert verdicts[0].score == sigmoid(4.0)
    assert judge.lineage == reading("m", lambda item: 0.0).lineage
    with pytest.raises(ValueError, match="3 raw values on 3 exchanges do not vary"):
        standardised(fixed("flat", 0.5, 1.0), [ITEM] * 3)
    with pytest.raises(ValueError, match="0 raw values on 1 exchanges"):
        standardised(fixed("bare", 0.5), [ITEM])


@pytest.mark.parametrize(
    "join",
    [
        mean,
        minimum,
        worst_case,
        lambda c: uncertainty_weighted(c, 0.5),
        lambda c: weighted([(c[0], 1.0), (c[1], 0.0)]),
        lambda c: threshold(c[1]),
    ],
)
def test_a_missing_child_is_never_a_zero(join: Callable[[list[Judged]], Judged]) -> None:
    verdict = join([fixed("fine", 1.0, 1.0), fixed("silent", None)]).judge([ITEM, ITEM])[1]
    assert verdict.score is None
    assert verdict.raw is None
    assert verdict.reason == "silent: no idea"


def test_missing_raw_values_leave_the_whole_without() -> None:
    verdict = mean([fixed("a", 0.5, 1.0), fixed("b", 0.5)]).judge([ITEM])[0]
    assert (verdict.score, verdict.raw) == (0.5, None)


def test_threshold_and_renaming() -> None:
    assert threshold(fixed("a", 0.7, 0.3), 0.7).judge([ITEM])[0].score == 1.0
    assert threshold(fixed("a", 0.69, 0.3), 0.7).judge([ITEM])[0].score == 0.0
    other = renamed(fixed("a", 0.7, 0.3), "b")
    assert (other.name, other.judge([ITEM])[0].score, other.judge([ITEM])[0].raw) == ("b", 0.7, 0.3)


def test_lineages_are_the_childrens() -> None:
    a, b = rules.polite(), gold("facts")
    assert mean([a, b]).lineage == a.lineage | b.lineage
    assert weighted({a: 1.0}).lineage == a.lineage


def test_degenerate_ensembles_are_refused() -> None:
    for children in ([], [(rules.polite(), 0.0)], [(rules.polite(), math.nan)]):
        with pytest.raises(ValueError, match="weights"):
            weighted(children)
    with pytest.raises(ValueError, match="at least one judge"):
        minimum([])
    with pytest.raises(ValueError, match="threshold"):
        threshold(rules.polite(), 0.0)


def test_calibration_recovers_a_known_curve() -> None:
    rng = random.Random(0)
    values = [rng.gauss(0, 3) for _ in range(4000)]
    labels = [rng.random() < sigmoid(0.5 * value - 1.0) for value in values]
    slope, offset = fit_logistic(values, [float(label) for label in labels])
    assert slope == pytest.approx(0.5, abs=0.05)
    assert offset == pytest.approx(-1.0, abs=0.1)

    raw = reading("m", lambda item: float(item.reply_text))
    judge = calibrated(raw, [exchange("x", str(value)) for value in values], labels)
    assert judge.judge([exchange("x", "2.0")])[0].score == pytest.approx(0.5, abs=0.03)
    assert raw.lineage < judge.lineage


def test_separable_and_distant_labels_stay_finite() -> None:
    slope, offset = fit_logistic([-100.0, -90.0, 90.0, 100.0], [0.0, 0.0, 1.0, 1.0])
    assert math.isfinite(slope)
    assert math.isfinite(offset)
    slope, offset = fit_logistic([50.0, 60.0], [0.0, 1.0])
    assert math.isfinite(slope * offset)


def test_calibration_refuses_rows_without_verdict_or_contrast() -> None:
    with pytest.raises(ValueError, match="calibration row 0 .no idea."):
        calibrated(fixed("silent", None), [ITEM], [True])
    with pytest.raises(ValueError, match="break"):
        calibrated(fixed("a", 0.5, 0.0), [ITEM, ITEM], [True, True])
    with pytest.raises(ValueError, match="2 exchanges but 1 labels"):
        calibrated(fixed("a", 0.5, 0.0), [ITEM, ITEM], [True])


def test_the_rows_a_calibration_learnt_from_are_part_of_its_lineage() -> None:
    child = rules.rule("r", lambda item: (0.9 if "yes" in item.reply_text else 0.2, ""), text="r")
    rows = [exchange("x", "yes"), exchange("x", "no")]
    one, same = calibrated(child, rows, [True, False]), calibrated(child, rows, [True, False], name="other")
    other = calibrated(child, [*rows, exchange("x", "yes yes")], [True, False, True])
    assert one.lineage == same.lineage != other.lineage
    assert child.lineage < one.lineage
