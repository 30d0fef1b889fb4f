"""From judges' scores to rewards: what is missing, clipped, scaled, combined, docked for length, charged for KL.

Axes: R replies, K objectives, N scored tokens (reply after reply, as in engine/logprobs.py). Rewards are float64, in
the judge's own units (`Verdict.raw`). A missing reward is NaN from here on. It is never a zero: whatever is computed
from it is missing too, and `advantages.py` says what becomes of the others in its group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def rewards_of(values: Sequence[float | None]) -> Tensor:
    """Rewards as a tensor, [R]; None and NaN are missing. Raises ValueError for an infinite one, naming the reply."""
    for reply, value in enumerate(values):
        if value is not None and math.isinf(value):
            raise ValueError(f"reply {reply}: the reward is {value}; a judge that cannot tell gives None")
    return torch.tensor([math.nan if value is None else float(value) for value in values], dtype=torch.float64)


def clip_rewards(reward_R: Tensor, *, low: float, high: float) -> tuple[Tensor, int]:
    """Rewards held inside [low, high], and how many were outside."""
    if not low < high:
        raise ValueError(f"rewards clipped to [{low}, {high}] would all be one number: give low below high")
    outside_R = (reward_R < low) | (reward_R > high)
    return reward_R.clamp(low, high), int(outside_R.sum())


def scale_rewards(reward_R: Tensor, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """(reward - mean) / std, [R], with numbers fixed before training.

    Reward models are shifted so that reference replies score 0 on average (Stiennon et al. 2020, arXiv 2009.01325;
    Ouyang et al. 2022), or shifted and scaled to the reference policy's mean 0 and variance 1 (Ziegler et al. 2019,
    arXiv 1909.08593, section 2.1).
    """
    if not 0 < std < math.inf:
        raise ValueError(f"std is {std}: rewards are divided by it, so it must be above 0")
    return (reward_R - mean) / std


def unfinished(reward_R: Tensor, ended_R: Tensor, *, score: float = -1.0) -> Tensor:
    """The reward of replies that never ended becomes `score`, [R]: a reward model has not seen cut replies.

    The EOS trick of Huang et al. 2024 (arXiv 2403.17031). `ended_R` is True where the end token was drawn. The rule
    needs no judge, so an unfinished reply has this reward even where its judge had none.
    """
    return torch.where(ended_R, reward_R, reward_R.new_tensor(score))


def overlong(length_R: Tensor, *, limit: int, cushion: int) -> Tensor:
    """DAPO's soft overlong punishment, [R] in [-1, 0], added to the reward: Yu et al. 2025 (arXiv 2503.14476), eq. 13.

        0                                     length <= limit - cushion
        (limit - cushion - length) / cushion  up to limit
        -1                                    above it

    `limit` is the paper's L_max, `cushion` its L_cache, in tokens (20,480 and 4,096 there, a fifth).
    """
    if not 0 < cushion <= limit:
        raise ValueError(f"cushion is {cushion} of a limit of {limit} tokens: it must lie in (0, limit]")
    return ((limit - cushion - length_R.double()) / cushion).clamp(-1.0, 0.0)


def combine(reward_RK: Tensor, weight_K: Tensor) -> Tensor:
    """The weighted sum of K objectives, [R]; missing where an objective with a weight is missing.

    A sum over those that are there would count the missing one as 0, a reward like any other. Objectives in different
    units: `advantages.gdpo`.
    """
    if reward_RK.ndim != 2 or reward_RK.shape[1] != len(weight_K):
        raise ValueError(f"{len(weight_K)} weights, rewards {tuple(reward_RK.shape)}: give one weight per objective")
    used_K = weight_K != 0
    if not bool(used_K.any()):
        raise ValueError("every objective has weight 0: there is nothing to optimise")
    return (reward_RK[:, used_K] * weight_K[used_K].to(reward_RK)).sum(1)


def token_rewards(reward_R: Tensor, kl_N: Tensor, count_R: Tensor, *, beta: float) -> Tensor:
    """A reward per token, [N], no gradient: -beta KL on each, and the reply's reward on its last scored token.

    r(x, y) - beta log(pi / pi_ref), spread over the tokens: Ouyang et al. 2022 (arXiv 2203.02155), eq. 2. `kl_N` is
    `kl_estimators.k1` of the policy that drew the reply (k2 and k3 give a wrong gradient here). The last scored token
    is the end token of a reply that ended; for one that was cut the last it has. A missing reward is NaN there; see
    `advantages.gae`. Raises ValueError for a reply without scored tokens.
    """
    empty = (count_R < 1).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(f"reply {empty[0]} has no scored token: nothing can carry its reward")
    out_N = -beta * kl_N.detach().double()
    out_N[count_R.cumsum(0) - 1] += reward_R.to(out_N)
    return out_N


def reply_rewards(reward_R: Tensor, kl_N: Tensor, reply_N: Tensor, *, beta: float) -> Tensor:
    """reward - beta times the reply's summed KL, [R], no gradient: RLOO's reward (Ahmadian et al. 2024, 2402.14740)."""
    return reward_R - beta * torch.zeros_like(reward_R).index_add(0, reply_N, kl_N.detach().to(reward_R))
