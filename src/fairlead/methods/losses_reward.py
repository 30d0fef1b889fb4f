"""Losses of reward models, as pure functions of rewards, labels and counts. No model, no mask, no configuration.

Axes: B pairs, R replies, P prompts, N labelled steps. Rewards are unbounded; a difference of 1 is a log-odds of 1. As
in `losses.py`, what is a mean over an optimiser step takes its count from outside.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid


def bradley_terry(
    chosen_B: Tensor, rejected_B: Tensor, *, label_B: Tensor | float = 1.0, margin_B: Tensor | float = 0.0
) -> Tensor:
    """-log P(chosen is better) under Bradley and Terry 1952, per pair, [B].

    One pair of InstructGPT's loss (Ouyang et al. 2022, arXiv 2203.02155, eq. 1), with Llama 2's margin (Touvron et al.
    2023, arXiv 2307.09288, eq. 2): -log sigmoid(r_w - r_l - m).

    label_B    P(chosen is better) in [0.5, 1]; 0.5 is a tie, at its lowest where the two rewards are equal
    margin_B   what the better reply's reward must lead by, 0 or more. A soft label asks the same lead of either side,
               so (p, pair) and (1 - p, swapped pair) say the same thing, and a tie's margin favours neither
    """
    lead_B = chosen_B - rejected_B
    return -(label_B * logsigmoid(lead_B - margin_B) + (1 - label_B) * logsigmoid(-lead_B - margin_B))


def centring(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """(r_w + r_l)^2 per pair, [B]: rewards are known up to a constant for each prompt, and this makes it 0.

    The auxiliary loss of Eisenstein et al. 2023 (arXiv 2312.09244), added with a small weight (there and in TRL 0.01).
    """
    return (chosen_B + rejected_B).square()


def length_correlation(reward_R: Tensor, length_R: Tensor, prompt_R: Tensor) -> Tensor:
    """The correlation of reward and reply length within prompts, a scalar in [-1, 1]; 0 where either does not vary.

    The square of this is the penalty of ODIN (Chen et al. 2024, arXiv 2402.07319): its quality head is trained on the
    pairs and kept uncorrelated with length over the batch. Its second head, which soaks up the length and is thrown
    away afterwards, is left out, and so is what differs between prompts: a pair's loss sees differences within its
    prompt alone, so we correlate those (for pairs: of r_w - r_l with their difference in length). `prompt_R` holds the
    prompt of each reply. It is a statistic of the whole optimiser step: see `length_pull` for how to split it.
    """
    reward_R = _within(reward_R, prompt_R)
    length_R = _within(length_R.to(reward_R.dtype), prompt_R)
    spread = (reward_R.square().sum() * length_R.square().sum()).sqrt()
    if not float(spread.detach()) > 0:
        return reward_R.sum() * 0.0
    return (reward_R * length_R).sum() / spread


def length_pull(reward_R: Tensor, length_R: Tensor, prompt_R: Tensor) -> tuple[float, Tensor]:
    """The squared `length_correlation` of a whole step, and its derivative by each reward, [R].

    The sum of derivative times reward over any micro-batch has the gradient that the whole step's penalty has there, so
    the step may be cut in any way.
    """
    with torch.enable_grad():
        free_R = reward_R.detach().requires_grad_()
        penalty = length_correlation(free_R, length_R, prompt_R).square()
        (pull_R,) = torch.autograd.grad(penalty, free_R)
    return float(penalty.detach()), pull_R


def step_bce(logit_N: Tensor, label_N: Tensor, *, steps: int) -> Tensor:
    """Binary cross-entropy per labelled step, a scalar: process supervision (Lightman et al. 2023, arXiv 2305.20050).

    `label_N` in [0, 1] is P(the step is right); `steps` counts the labelled steps of the whole optimisation step.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}: an optimisation step without labelled steps has no loss")
    return binary_cross_entropy_with_logits(logit_N, label_N, reduction="sum") / steps


def _within(x_R: Tensor, prompt_R: Tensor) -> Tensor:
    """Differences from the mean of the own prompt."""
    count_P = x_R.new_zeros(int(prompt_R.max()) + 1).index_add(0, prompt_R, torch.ones_like(x_R))
    sum_P = torch.zeros_like(count_P).index_add(0, prompt_R, x_R)
    return x_R - (sum_P / count_P.clamp_min(1))[prompt_R]
