"""What is said about a reward model: each number against a plain computation, and intervals that hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("torch")

from fairlead.exchange import Exchange, Preference, Verdict, assistant, user
from fairlead.judges.lineage import leaf
from fairlead.judges.rules import Judged
from fairlead.methods.reward_evaluate import bootstrap, calibration_error, evaluate_reward


def told(item: Exchange) -> float | None:
    """The reward is written in the reply."""
    word = item.reply_text.split()[0]
    return None if word == "mute" else float(word)


def judge(items: Sequence[Exchange]) -> list[Verdict]:
    return [Verdict(None, reason="mute") if told(i) is None else Verdict(0.5, raw=told(i)) for i in items]


TOLD = Judged("told", judge, leaf("rule", text="told"))


def pair(prompt: str, good: float | str, bad: float | str, strength: float = 1.0, more: str = "") -> Preference:
    return Preference((user(prompt),), (assistant(f"{good}{more}"),), (assistant(str(bad)),), strength=strength)


def test_accuracy_ties_and_missing_are_counted() -> None:
    rows = [
        pair("a", 2.0, 1.0), pair("b", 1.0, 3.0), pair("c", 1.0, 1.5, 0.5), pair("d", 1.0, 1.0),
        pair("e", "mute", 0.0), pair("f", 4.0, 3.0),
    ]  # fmt: skip
    got = evaluate_reward(TOLD, rows)
    first = got.accuracy[0]
    assert (first.scorer, first.pairs, first.accuracy.n) == ("reward", "all", 5)
    assert first.accuracy.value == pytest.approx((1 + 0 + 0.5 + 0.5 + 1) / 5)
    assert (first.undecided, first.missing) == (1, 1)
    assert (got.pairs, got.ties, got.missing) == (6, 1, 1)
    p = [1 / (1 + math.exp(-d)) for d in (1.0, -2.0, 0.0, 1.0)]
    assert got.log_loss.value == pytest.approx(-np.mean(np.log(p)))
    assert "1 ties, 1 without rewards" in got.lines()[-1]
    with pytest.raises(ValueError, match="nothing to be right about"):
        evaluate_reward(TOLD, [pair("a", 1, 0, 0.5)])


def test_length_correlation_is_that_of_the_differences() -> None:
    rng = np.random.default_rng(0)
    lead, extra = rng.normal(size=30), rng.integers(0, 40, 30)
    rows = [
        pair(str(i), f"{d:.3f}", "0.000", more=" " + "x" * int(k))
        for i, (d, k) in enumerate(zip(lead, extra, strict=True))
    ]
    got = evaluate_reward(TOLD, rows)
    a = np.array([float(f"{d:.3f}") for d in lead])
    b = np.array([len(f"{d:.3f} ") + k - len("0.000") for d, k in zip(lead, extra, strict=True)], dtype=float)
    assert got.length.value == pytest.approx(float(a @ b / np.sqrt(a @ a * (b @ b))))
    assert got.length_labels.value == pytest.approx(float(b.sum() / np.sqrt(30 * (b @ b))))
    assert got.length.low < got.length.value < got.length.high


def test_calibration_error_by_hand() -> None:
    p = np.array([0.95, 0.97, 0.2, 0.5])
    strength = np.array([1.0, 0.0, 1.0, 1.0])
    # bins of confidence: [0.95, 1.0]: 0.96 said, 0.5 hit; [0.8, 0.85): 0.8 said, 0 hit; [0.5, 0.55): 0.5 said, 0.5 hit
    expected = (2 * abs(0.96 - 0.5) + abs(0.8 - 0.0) + 0.0) / 4
    assert calibration_error(p, strength, np.ones(4)) == pytest.approx(expected)
    perfect = np.repeat([0.6, 0.9], 500)
    hits = np.concatenate([np.arange(500) < 300, np.arange(500) < 450]).astype(float)
    assert calibration_error(perfect, hits, np.ones(1000)) == pytest.approx(0.0, abs=1e-12)


def test_the_bootstrap_covers_and_knows_clusters() -> None:
    """A mean's interval against the normal one; clusters of equal values widen it as they should."""
    x = np.random.default_rng(0).normal(size=400)

    def mean(weight: np.ndarray) -> float:
        return float(weight @ x / weight.sum())

    got = bootstrap(mean, range(400), seed=1)
    half = 1.96 * x.std() / 20
    assert (got.high - got.low) / 2 == pytest.approx(half, rel=0.15)
    assert bootstrap(mean, range(400), seed=1) == got
    y = np.repeat(x[:100], 4)
    wide = bootstrap(lambda w: float(w @ y / w.sum()), np.repeat(np.arange(100), 4).tolist())
    assert (wide.high - wide.low) / 2 == pytest.approx(1.96 * x[:100].std() / 10, rel=0.2)
    assert wide.n == 400
    assert bootstrap(mean, [0] * 400).low == -math.inf


def test_groups_are_prompts_unless_told() -> None:
    rows = [pair("same", i, 0.5, more=" y") for i in range(8)]
    got = evaluate_reward(TOLD, rows)
    assert (got.accuracy[0].accuracy.low, got.accuracy[0].accuracy.high) == (0.0, 1.0)  # one cluster tells nothing
    own = evaluate_reward(TOLD, rows, groups=[str(i) for i in range(8)])
    assert own.accuracy[0].accuracy.low > 0.4
    with pytest.raises(ValueError, match="8 pairs but 1 groups"):
        evaluate_reward(TOLD, rows, groups=["a"])
