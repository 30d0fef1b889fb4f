"""Coefficients that move with training: the adaptive KL coefficient and the multiplier of safe RLHF. Numbers alone.

Both are called once per step, on statistics of the whole step (over all processes), and both act from the next step on.
"""

from __future__ import annotations

import math


def adapted_kl(beta: float, kl: float, *, target: float, gain: float = 0.1, most: float = 0.2) -> float:
    """The next KL coefficient: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2.

        e = clip((kl - target) / target, -0.2, 0.2)        beta <- beta (1 + 0.1 e)

    `kl` is the step's mean KL per reply (summed over its tokens) and `target` what it should be, in nats. Called once
    per step of the paper's size; `gain` is its K_beta. Raises ValueError where the KL is not a number.
    """
    if not (beta > 0 and target > 0 and gain > 0 and most > 0 and gain * most < 1):
        raise ValueError(f"beta {beta}, target {target}, gain {gain}, most {most}: all above 0, gain x most below 1")
    if not math.isfinite(kl):
        raise ValueError(f"the KL of this step is {kl}: the coefficient cannot follow it")
    return beta * (1 + gain * min(most, max(-most, (kl - target) / target)))


def ascended(
    log_lambda: float, cost: float, *, budget: float, rate: float, low: float = 1e-4, high: float = 1e4
) -> float:
    """The next log of safe RLHF's multiplier: Dai et al. 2023 (arXiv 2310.12773), eq. 31.

        log lambda <- log lambda + rate lambda (cost - budget)

    Gradient ascent on lambda (cost - budget) in log lambda, so lambda stays above 0 and grows while the step's mean
    cost exceeds the budget. The step in log lambda is proportional to lambda, so it is held inside [low, high]: a
    lambda that sank too far could not come back, and one that ran away would drown the reward for good. The paper
    smooths `cost` over steps; so may the caller.
    """
    if not (rate > 0 and 0 < low < high):
        raise ValueError(f"rate {rate}, low {low}, high {high}: all above 0, and low below high")
    if not math.isfinite(cost):
        raise ValueError(f"the mean cost of this step is {cost}: the multiplier cannot follow it")
    moved = log_lambda + rate * math.exp(log_lambda) * (cost - budget)
    return min(math.log(high), max(math.log(low), moved))
