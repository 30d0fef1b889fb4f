"""The judge of a voice by samples: its features by hand, and its bound on texts it never saw."""

from __future__ import annotations

import numpy as np
import pytest

from fairlead.constitution.style import FEATURES, KEPT, features, style_of
from fairlead.exchange import exchange
from fairlead.judges.voice import voice_of
from support.brand import ALIEN, PASSAGES


def test_features_by_hand() -> None:
    found = features("You can't stay here! We don't know why? Ask me 😀.")
    assert found["sentence"] == pytest.approx(10 / 3) and found["exclamations"] == found["questions"] == pytest.approx(
        1 / 3
    )
    assert (
        found["contractions"] == 20.0 and found["reader"] == 10.0 and found["writer"] == 20.0 and found["emoji"] == 10.0
    )
    assert found["letters"] == pytest.approx(len("Youcan'tstayhereWedon'tknowwhyAskme") / 10)
    assert set(found) == set(FEATURES) and features("") == dict.fromkeys(FEATURES, 0.0)


def test_texts_of_the_same_hand_that_were_held_out_are_in_voice_and_another_hand_is_not() -> None:
    judge = voice_of(PASSAGES[0::2])
    own = judge.judge([exchange("q", text) for text in PASSAGES[1::2]])
    assert sum(verdict.score or 0.0 for verdict in own) >= 6  # of 8
    (other,) = judge.judge([exchange("q", ALIEN)])
    assert other.score == 0.0 and "the samples have" in other.reason


def test_the_bound_lets_nine_in_ten_of_new_texts_pass() -> None:
    """Texts of random sentence lengths: the share of new ones within the bound, over many draws, is near KEPT."""
    rng = np.random.default_rng(0)

    def text() -> str:
        return " ".join(" ".join(["word"] * int(n)) + "." for n in rng.integers(4, 20, 4))

    inside = []
    for _ in range(40):
        style = style_of([text() for _ in range(19)])
        inside += [style.distance(features(text())) <= style.bound for _ in range(20)]
    assert abs(np.mean(inside) - KEPT) < 0.06


def test_too_few_words_or_samples_are_said() -> None:
    (verdict,) = voice_of(PASSAGES).judge([exchange("q", "No.")])
    assert verdict.score is None and "too few" in verdict.reason
    with pytest.raises(ValueError, match="at least 3"):
        style_of(PASSAGES[:2])


def test_other_samples_are_another_judge() -> None:
    assert voice_of(PASSAGES).lineage == voice_of(PASSAGES[::-1]).lineage != voice_of(PASSAGES[1:]).lineage
