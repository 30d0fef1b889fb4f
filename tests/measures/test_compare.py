from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from fairlead import stats
from fairlead.measures.compare import compare, side_effects
from fairlead.measures.measure import Better, Outcome
from fairlead.measures.result import MeasureResult


def result(
    layer: str,
    values: Sequence[float | str | None],
    *,
    measure: str = "facts",
    better: Better = "higher",
    clusters: Sequence[str] | None = None,
    difference: bool = False,
    lineage: str = "aa",
) -> MeasureResult:
    """None is missing, "-" not asked."""
    outcomes = []
    for index, value in enumerate(values):
        cluster = clusters[index] if clusters else f"c{index}"
        if value is None or isinstance(value, str):
            status = "missing" if value is None else "not asked"
            outcomes.append(Outcome(f"{index:04}", cluster, status, reason="why"))  # type: ignore[arg-type]
        else:
            outcomes.append(Outcome(f"{index:04}", cluster, "scored", value=value, score=value))
    return MeasureResult(
        measure, "", layer, None, 0.0, 1.0, len(values), 0, better, "judge", lineage, True,
        difference=difference, outcomes=tuple(outcomes),
    )  # fmt: skip


def test_independent_pairs_are_newcombe_and_mcnemar() -> None:
    before, after = [1.0] * 60 + [0.0] * 40, [1.0] * 50 + [0.0] * 10 + [1.0] * 30 + [0.0] * 10
    effect = compare(result("base", before), result("sft", after))
    expected = stats.newcombe_paired(50, 30, 10, 10)
    assert effect.change == pytest.approx(0.2)
    assert (effect.low, effect.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert effect.p == pytest.approx(stats.mcnemar_exact(30, 10))
    assert (effect.verdict, effect.n, effect.missing) == ("better", 100, 0)


def test_direction_follows_the_measure() -> None:
    before, after = [0.0] * 50, [1.0] * 40 + [0.0] * 10
    assert compare(result("a", before), result("b", after)).verdict == "better"
    assert compare(result("a", before, better="lower"), result("b", after, better="lower")).verdict == "worse"


def test_no_change_and_small_changes_cannot_be_told() -> None:
    assert compare(result("a", [1.0] * 50), result("b", [1.0] * 50)).verdict == "cannot tell"
    few = compare(result("a", [0.0] * 50), result("b", [1.0] * 4 + [0.0] * 46))
    assert few.verdict == "cannot tell"  # 4 of 4 discordant: p = 0.125
    assert few.p == pytest.approx(0.125)


def test_what_is_missing_is_filled_in_against_the_claim() -> None:
    before, after = [0.0] * 60, [1.0] * 12 + [0.0] * 48
    whole = compare(result("a", before), result("b", after))
    assert whole.verdict == "better"
    gaps: list[float | None] = [*after[:40], *[None] * 20]
    holed = compare(result("a", before), result("b", gaps))
    assert holed.change == pytest.approx(12 / 40)
    assert (holed.n, holed.missing) == (60, 20)
    assert holed.low == pytest.approx(whole.low)  # the gaps as 0, which they were
    assert holed.high > whole.high
    lost_before: list[float | None] = [None] * 20 + [0.0] * 40
    assert compare(result("a", lost_before), result("b", after)).verdict == "cannot tell"


def test_only_cases_asked_in_both_layers_count() -> None:
    effect = compare(result("a", ["-", *[0.0] * 19]), result("b", [*[1.0] * 19, "-"]))
    assert (effect.n, effect.missing, effect.change) == (18, 0, 1.0)
    nothing = compare(result("a", ["-", 0.0]), result("b", [1.0, "-"]))
    assert (nothing.change, nothing.n, nothing.verdict) == (None, 0, "cannot tell")


def test_clusters_take_certainty_away() -> None:
    """All change in three of six phrasings: telling as 60 independent cases, not as 6 phrasings."""
    before, after = [0.0] * 60, [1.0] * 30 + [0.0] * 30
    clusters = [f"t{i // 10}" for i in range(60)]
    alone = compare(result("a", before), result("b", after))
    shared = compare(result("a", before, clusters=clusters), result("b", after, clusters=clusters))
    assert alone.verdict == "better"
    assert shared.verdict == "cannot tell"
    assert shared.p > alone.p
    assert shared.low < alone.low


def test_a_change_in_every_cluster_can_be_told_from_few() -> None:
    rng = random.Random(0)
    before = [float(rng.random() < 0.95) for _ in range(200)]
    after = [float(rng.random() < 0.04) for _ in range(200)]
    clusters = [f"t{i % 4}" for i in range(200)]
    effect = compare(
        result("a", before, clusters=clusters, better="lower"), result("b", after, clusters=clusters, better="lower")
    )
    assert effect.verdict == "better"
    assert effect.p < 0.01
    assert -1.0 < effect.low < effect.high < -0.5


def test_the_interval_and_the_p_value_agree_where_cases_share_clusters() -> None:
    rng = random.Random(1)
    for trial in range(30):
        shift = trial / 60
        before = [float(rng.random() < 0.3) for _ in range(80)]
        after = [float(rng.random() < 0.3 + shift) for _ in range(80)]
        clusters = [f"t{i % 8}" for i in range(80)]
        effect = compare(result("a", before, clusters=clusters), result("b", after, clusters=clusters))
        if effect.p <= 0.05:
            assert not effect.low <= 0 <= effect.high


def test_fractional_scores_and_differences_are_compared_too() -> None:
    rng = random.Random(2)
    before = [rng.random() * 0.5 for _ in range(60)]
    after = [value + 0.3 for value in before]
    effect = compare(result("a", before), result("b", after))
    assert effect.change == pytest.approx(0.3)
    assert effect.verdict == "better"
    pressed = compare(
        result("a", [1.0, 0.0, 1.0, 1.0] * 15, difference=True, better="lower"),
        result("b", [0.0, 0.0, 0.0, -1.0] * 15, difference=True, better="lower"),
    )
    assert pressed.change == pytest.approx(-1.0)
    assert pressed.verdict == "better"
    assert -2.0 <= pressed.low <= pressed.change <= pressed.high <= 2.0


def test_holm_goes_over_all_side_effects_of_a_run() -> None:
    """One change at p = 0.02 stands alone, and falls among twelve comparisons."""
    moved = [1.0] * 9 + [0.0] + [0.0] * 40
    back = [0.0] * 9 + [1.0] + [0.0] * 40
    alone = side_effects({"base": [result("base", back)], "sft": [result("sft", moved)]})
    assert alone[0].p == pytest.approx(stats.mcnemar_exact(9, 1))
    assert 0.01 < alone[0].p < 0.05
    assert alone[0].verdict == "better"
    names = [f"m{i}" for i in range(11)]
    still = [0.0] * 50
    many = side_effects(
        {
            "base": [result("base", back), *[result("base", still, measure=name) for name in names]],
            "sft": [result("sft", moved), *[result("sft", still, measure=name) for name in names]],
        }
    )
    assert len(many) == 12
    assert many[0].p_adjusted == pytest.approx(12 * many[0].p)
    assert many[0].verdict == "cannot tell"


def test_pairs_of_layers_and_rows() -> None:
    layers = {name: [result(name, [float(i)] * 30)] for name, i in (("base", 0), ("sft", 1), ("guard", 1))}
    effects = side_effects(layers)
    assert [(e.before, e.after, e.verdict) for e in effects] == [
        ("base", "sft", "better"), ("sft", "guard", "cannot tell"), ("base", "guard", "better"),
    ]  # fmt: skip
    row = effects[0].row()
    assert {"measure", "from", "to", "change", "low", "high", "verdict"} <= set(row)
    assert (row["from"], row["to"], row["change"]) == ("base", "sft", 1.0)
    assert [e.after for e in side_effects(layers, [("base", "guard")])] == ["guard"]
    assert side_effects({"base": layers["base"]}) == []


def test_the_order_of_cases_does_not_matter() -> None:
    rng = random.Random(3)
    before: list[float | None] = [rng.choice([rng.random(), None]) for _ in range(60)]
    after: list[float | None] = [rng.choice([rng.random(), rng.random(), None]) for _ in range(60)]
    a, b = result("a", before), result("b", after)
    mixed = [replace(item, outcomes=tuple(rng.sample(item.outcomes, len(item.outcomes)))) for item in (a, b)]
    assert compare(a, b) == compare(*mixed)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="two measures"):
        compare(result("a", [1.0]), result("b", [1.0], measure="sums"))
    with pytest.raises(ValueError, match="same judge"):
        compare(result("a", [1.0]), result("b", [1.0], lineage="bb"))
