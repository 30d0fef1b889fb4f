"""From scores to rewards: by hand, and against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fairlead.methods.shaping import (  # noqa: E402
    clip_rewards,
    combine,
    overlong,
    reply_rewards,
    rewards_of,
    scale_rewards,
    token_rewards,
    unfinished,
)

NAN = math.nan


def same(got: torch.Tensor, want: list[float]) -> bool:
    return np.allclose(got.numpy(), want, atol=1e-12, equal_nan=True)


def test_nothing_given_is_missing_and_not_zero() -> None:
    assert same(rewards_of([1, None, 0.0, NAN]), [1.0, NAN, 0.0, NAN])
    assert rewards_of([]).shape == (0,)
    with pytest.raises(ValueError, match="reply 1: the reward is -inf"):
        rewards_of([0.0, -math.inf])


def test_clipping_counts_and_keeps_what_is_missing() -> None:
    clipped, outside = clip_rewards(torch.tensor([-9.0, 0.5, NAN, 3.0, 2.0]), low=-1.0, high=2.0)
    assert same(clipped, [-1.0, 0.5, NAN, 2.0, 2.0]) and outside == 2
    with pytest.raises(ValueError, match="low below high"):
        clip_rewards(torch.zeros(1), low=1.0, high=1.0)


def test_scaling_is_by_fixed_numbers() -> None:
    assert same(scale_rewards(torch.tensor([1.0, NAN, 5.0]), mean=3.0, std=2.0), [-1.0, NAN, 1.0])
    with pytest.raises(ValueError, match="above 0"):
        scale_rewards(torch.zeros(1), std=0.0)


def test_an_unfinished_reply_has_the_reward_of_the_rule() -> None:
    ended = torch.tensor([True, False, True, False])
    assert same(unfinished(torch.tensor([2.0, 5.0, NAN, NAN]), ended, score=-1.0), [2.0, -1.0, NAN, -1.0])


def test_the_overlong_penalty_is_a_ramp() -> None:
    lengths = torch.tensor([1, 80, 81, 90, 100, 101, 500])
    assert same(overlong(lengths, limit=100, cushion=20), [0.0, 0.0, -0.05, -0.5, -1.0, -1.0, -1.0])
    for cushion in (0, 101):
        with pytest.raises(ValueError, match="cushion"):
            overlong(lengths, limit=100, cushion=cushion)


def test_a_sum_with_a_missing_part_is_missing() -> None:
    table = torch.tensor([[1.0, 2.0, NAN], [1.0, NAN, 3.0], [0.0, -1.0, 5.0]])
    assert same(combine(table, torch.tensor([2.0, 0.5, 0.0])), [3.0, NAN, -0.5])  # weight 0: not asked for
    assert same(combine(table, torch.tensor([1.0, 1.0, 1.0])), [NAN, NAN, 4.0])
    with pytest.raises(ValueError, match="weight 0"):
        combine(table, torch.zeros(3))
    with pytest.raises(ValueError, match="one weight per objective"):
        combine(table, torch.ones(2))


def test_the_reward_stands_on_the_last_scored_token() -> None:
    """Three replies: one ended by its end token, one cut, one of a single token. No padding: nothing is behind them."""
    count = torch.tensor([3, 2, 1])
    kl = torch.tensor([0.5, -0.25, 1.0, 2.0, 0.0, -1.0], dtype=torch.float64)
    got = token_rewards(torch.tensor([1.0, NAN, -3.0]), kl, count, beta=0.1)
    assert same(got, [-0.05, 0.025, 1.0 - 0.1, -0.2, NAN, -3.0 + 0.1])
    with pytest.raises(ValueError, match="reply 1 has no scored token"):
        token_rewards(torch.zeros(2), kl[:1], torch.tensor([1, 0]), beta=0.1)


def test_kl_in_the_reward_has_no_gradient_and_sums_to_the_replys() -> None:
    count, reply = torch.tensor([3, 2]), torch.tensor([0, 0, 0, 1, 1])
    kl = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    reward = torch.tensor([1.0, -2.0], dtype=torch.float64)
    per_token = token_rewards(reward, kl, count, beta=0.3)
    per_reply = reply_rewards(reward, kl, reply, beta=0.3)
    assert not per_token.requires_grad and not per_reply.requires_grad
    assert same(per_reply, [float(per_token[:3].sum()), float(per_token[3:].sum())])
    assert same(reply_rewards(torch.tensor([NAN, 0.0]), kl, reply, beta=0.0), [NAN, 0.0])
