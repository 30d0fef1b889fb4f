"""Held-out accuracy and the baselines that know nothing of the content."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.methods.trainable import pairs, tiny_model  # noqa: E402

from fairlead.exchange import Preference, assistant, user  # noqa: E402
from fairlead.feedback.formats import PreferenceSet, Report  # noqa: E402
from fairlead.methods.evaluate import (  # noqa: E402
    accuracy_table,
    length_matched,
    longer_wins,
    model_margins,
    preference_accuracy,
    writer_only,
)


def pair(chosen: int, rejected: int, strength: float = 1.0) -> Preference:
    return Preference((user("a ?"),), (assistant("x" * chosen),), (assistant("y" * rejected),), strength)


def data(
    rows: list[Preference], writers: list[tuple[str, str] | None], groups: list[str] | None = None
) -> PreferenceSet:
    places = tuple(str(i) for i in range(len(rows)))
    return PreferenceSet(tuple(rows), places, tuple(groups or places), tuple(writers), Report("pairs", ()))


def test_longer_wins_and_length_matched() -> None:
    rows = [pair(10, 5), pair(5, 10), pair(7, 7), pair(100, 91), pair(100, 89), pair(0, 0)]
    assert longer_wins(rows) == [5, -5, 0, 9, 11, 0]
    assert length_matched(rows) == [2, 3]


def test_writer_only_learns_from_training_pairs_alone() -> None:
    train = data([pair(1, 2)] * 3 + [pair(1, 2, 0.5)], [("m", "n"), ("m", "n"), ("n", "m"), ("o", "n")])
    test = data([pair(1, 2)] * 5, [("m", "n"), ("n", "m"), ("o", "n"), ("m", "z"), None])
    assert writer_only(train, test) == [1.0, -1.0, 0.0, None, None]


def test_accuracy_counts_half_for_what_is_not_decided() -> None:
    got = preference_accuracy("s", "all", [1.0, -1.0, 0.0, None, 2.0], list("abcde"))
    assert got.accuracy.value == pytest.approx(3 / 5)
    assert (got.undecided, got.missing, got.accuracy.n) == (1, 1, 5)
    assert "1 missing counted half" in got.line()


def test_pairs_of_one_prompt_are_one_cluster() -> None:
    margins = [1.0 if i % 2 else -1.0 for i in range(40)]
    apart = preference_accuracy("s", "all", margins, [str(i) for i in range(40)])
    together = preference_accuracy("s", "all", margins, [str(i % 2) + str(i // 20) for i in range(40)])
    assert together.accuracy.high - together.accuracy.low > apart.accuracy.high - apart.accuracy.low


def test_the_table_leaves_ties_out_and_has_both_kinds_of_pairs() -> None:
    rows = [pair(10, 5), pair(10, 10), pair(5, 10), pair(10, 10, 0.5)]
    table = accuracy_table({"longer-wins": longer_wins(rows)}, data(rows, [None] * 4))
    assert [(a.pairs, a.accuracy.n, a.accuracy.value) for a in table] == [("all", 3, 0.5), ("length-matched", 1, 0.5)]


def test_model_margins_are_differences_of_log_probs() -> None:
    model, other = tiny_model(), tiny_model(seed=1)
    total = model_margins(model, pairs(), by="sum")
    per_token = model_margins(model, pairs(), by="mean")
    base = model_margins(other, pairs(), by="sum")
    implicit = model_margins(model, pairs(), reference=other)
    assert implicit == pytest.approx([a - b for a, b in zip(total, base, strict=True)])  # type: ignore[operator]
    assert model_margins(model, pairs(), reference=model) == pytest.approx([0.0] * 8)
    assert per_token != total
    with pytest.raises(ValueError, match="give the reference"):
        model_margins(model, pairs())


def test_pairs_that_do_not_fit_are_missing_where_asked() -> None:
    """A pair left out for its length keeps its own place empty and shifts no other."""
    long = Preference((user("the boat " * 100),), (assistant("yes"),), (assistant("no"),))
    fitting = pairs(2)
    got = model_margins(tiny_model(), [fitting[0], long, fitting[1]], by="sum", too_long="skip")
    alone = model_margins(tiny_model(), fitting, by="sum")
    assert got[1] is None
    assert [got[0], got[2]] == pytest.approx(alone)
