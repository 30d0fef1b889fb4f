"""Losses of single replies with a thumb up or down, as pure functions. KTO, BCO, APO-zero.

Axes: B replies of a micro-batch, S of a whole step, M mismatched prompt/reply pairs of a step. `ratio_B` is the summed
log-ratio of a reply to the reference, log pi(y|x) - log pi_ref(y|x), in nats; `good_B` is True for a thumb up. What is
a statistic of the step (`reference_point`, `reward_shift`) is computed on the whole step before it is cut into
micro-batches, without gradient, and handed in.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def reference_point(mismatched_M: Tensor) -> float:
    """KTO's reference point z_0, Ethayarajh et al. 2024 (arXiv 2402.01306): max(0, mean log-ratio of mismatched pairs).

    `mismatched_M` are log-ratios of replies under prompts they do not belong to: a biased but cheap estimate of
    KL(pi || pi_ref). No gradient flows through it. Raises ValueError where there is none.
    """
    if mismatched_M.numel() == 0:
        raise ValueError("no mismatched pairs: KTO's reference point is a mean over at least one")
    return max(0.0, float(mismatched_M.mean()))


def kto(ratio_B: Tensor, good_B: Tensor, *, beta: float, z: float, good: float = 1.0, bad: float = 1.0) -> Tensor:
    """Kahneman-Tversky optimisation, same paper, eq. 7, per reply, [B].

        good   lambda_D (1 - sigma(beta (ratio - z)))
        bad    lambda_U (1 - sigma(beta (z - ratio)))

    `z` is the step's `reference_point`; `good` and `bad` are lambda_D and lambda_U. The paper asks for
    lambda_D n_D / (lambda_U n_U) in [1, 4/3] (eq. 8). The paper's constant lambda_y is included, so the loss lies in
    [0, lambda]. This is TRL's; the mean over the step divides by its replies, not by the weights.
    """
    sign_B, weight_B = _by_thumb(good_B, ratio_B, 1.0, -1.0), _by_thumb(good_B, ratio_B, good, bad)
    return weight_B * torch.sigmoid(-beta * sign_B * (ratio_B - z))


def apo_zero_unpaired(ratio_B: Tensor, good_B: Tensor, *, beta: float, good: float = 1.0, bad: float = 1.0) -> Tensor:
    """APO-zero for single replies, [B]: D'Oosterlinck et al. 2024 (arXiv 2408.06266), eq. 7, one side at a time.

    KTO with the reference point at 0: good replies up, bad ones down.
    """
    return kto(ratio_B, good_B, beta=beta, z=0.0, good=good, bad=bad)


def reward_shift(good_mean: float, bad_mean: float) -> float:
    """BCO's delta, Jung et al. 2024 (arXiv 2404.04656): halfway between the mean rewards of good and bad replies.

    Rewards are beta x log-ratio; both means run over all steps so far. TRL's former BCO took one mean over all replies,
    which is the same where as many are good as bad; with few bad ones it hides them behind the good.
    """
    return (good_mean + bad_mean) / 2


def bco(
    ratio_B: Tensor,
    good_B: Tensor,
    *,
    beta: float,
    shift: float,
    good: float = 1.0,
    bad: float = 1.0,
    density_B: Tensor | None = None,
) -> Tensor:
    """Binary classifier optimisation, same paper: the cross-entropy of reward - delta against the thumb, [B].

        good   -log sigma(beta ratio - delta)
        bad    -density log sigma(-(beta ratio - delta))

    `density_B`, where given, is p(good | prompt) / p(bad | prompt), by which bad replies are weighted so that both
    classes cover the same prompts (section 4, underlying distribution matching).
    """
    sign_B, weight_B = _by_thumb(good_B, ratio_B, 1.0, -1.0), _by_thumb(good_B, ratio_B, good, bad)
    if density_B is not None:
        weight_B = torch.where(good_B, weight_B, weight_B * density_B)
    return -weight_B * logsigmoid(sign_B * (beta * ratio_B - shift))


def _by_thumb(good_B: Tensor, like_B: Tensor, up: float, down: float) -> Tensor:
    return torch.where(good_B, like_B.new_tensor(up), like_B.new_tensor(down))
