"""When a run has collapsed: the rules on hand-written histories, and how often they cry wolf."""

from __future__ import annotations

import random

from fairlead.methods.collapse import PAST, health


def test_a_kl_burst_is_told_at_once_and_one_that_is_no_number_too() -> None:
    assert health([0.5], [0.1], 1.5, kl_burst=1.0, cliff=None).verdict.startswith("KL burst: 1.5 nats")
    assert health([0.5], [0.1], float("nan"), kl_burst=1.0, cliff=None).verdict.startswith("KL burst")
    assert health([0.5], [0.1], None, kl_burst=1.0, cliff=None).verdict == ""


def test_a_cliff_takes_three_steps_and_enough_of_a_past() -> None:
    steady = [0.5 + 0.01 * (-1) ** i for i in range(PAST)]
    one = health([*steady, 0.1], [0.01] * 17, 0.1, kl_burst=1.0, cliff=6.0)
    assert not one.verdict and not one.good, "the weights of a bad step are not kept"
    two = health([*steady, 0.1, 0.1], [0.01] * 18, 0.1, kl_burst=1.0, cliff=6.0)
    assert not two.verdict
    three = health([*steady, 0.1, 0.1, 0.1], [0.01] * 19, 0.1, kl_burst=1.0, cliff=6.0)
    assert three.verdict.startswith("reward cliff: 0.1, 0.1, 0.1 in the last 3 steps")
    assert not health(steady[:6] + [0.1] * 3, [0.01] * 9, 0.1, kl_burst=1.0, cliff=6.0).verdict
    assert not health(steady + [0.1] * 3, [0.01] * 19, 0.1, kl_burst=1.0, cliff=None).verdict


def test_a_steep_rise_is_no_cliff_and_missing_rewards_are_none() -> None:
    assert not health([0.1] * 16 + [0.9] * 3, [0.01] * 19, 0.1, kl_burst=1.0, cliff=6.0).verdict
    holes = [0.5] * 16 + [float("nan")] * 3
    assert not health(holes, [0.01] * 19, 0.1, kl_burst=1.0, cliff=6.0).verdict


def test_noise_alone_hardly_ever_stops_a_run() -> None:
    """200 runs of 100 steps of 64 replies with 0/1 rewards: not one stop (the rule's rate is far below 1 in 10^6)."""
    stops = 0
    for seed in range(200):
        rng = random.Random(seed)
        rewards: list[float] = []
        errors: list[float] = []
        for _ in range(100):
            hits = [float(rng.random() < 0.5) for _ in range(64)]
            rewards.append(sum(hits) / 64)
            errors.append(0.5 / 8)
            stops += bool(health(rewards, errors, 0.1, kl_burst=1.0, cliff=6.0).verdict)
    assert stops == 0
