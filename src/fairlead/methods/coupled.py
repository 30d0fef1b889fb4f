"""Losses that couple all pairs of a step (AOT), whatever micro-batches the step is cut into.

Axes: S pairs of a step, B pairs of a micro-batch, R replies of a pair (2: chosen, rejected).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fairlead.engine.logprobs import score
from fairlead.methods.config import DPOConfig
from fairlead.methods.loop import Batch
from fairlead.methods.losses import aot, soft
from fairlead.methods.pairs import Pairs, reply_sums, tail_weight
from fairlead.methods.rows import Rows


@dataclass(frozen=True, slots=True)
class Slopes:
    """A step's loss and its slope in each reply's log-prob: all that a micro-batch must know of the other pairs."""

    step: int
    loss: float
    by_row: dict[int, Tensor]

    def share(self, batch: Batch, pairs: Pairs) -> Tensor:
        """A scalar whose value is this micro-batch's share of the step's loss, and whose gradient is its part of it."""
        logp_BR = torch.stack([pairs.chosen_B, pairs.rejected_B], dim=1)
        slope_BR = torch.stack([self.by_row[row] for row in batch.rows]).to(logp_BR)
        return (slope_BR * (logp_BR - logp_BR.detach())).sum() + self.loss * len(batch.rows) / batch.step_rows


def slopes_of_step(
    policy: torch.nn.Module, rows: Rows, members: Sequence[int], step: int, reference_SR: Tensor, config: DPOConfig
) -> Slopes:
    """Log-probs of the whole step without gradient, the coupled loss of those, and its slopes.

    By the chain rule the gradient in the weights is the sum over replies of slope times the log-prob's gradient, and
    that sum can be taken in any pieces. Costs one forward pass more than a loss that couples nothing.
    """
    scored = score(policy, [rows.trees[row] for row in members], config.tokens_per_batch)
    logp_SR = reply_sums(scored, tail_weight(config)).view(-1, 2)
    logp_SR = logp_SR.detach().requires_grad_()
    loss_S = coupled_loss(logp_SR, reference_SR.to(logp_SR), config)
    loss = loss_S.sum() / len(members)
    (slope_SR,) = torch.autograd.grad(loss, logp_SR)
    # A row that the step holds twice, at the seam of two epochs, has one log-prob and so the mean of its slopes.
    places: dict[int, list[int]] = {}
    for place, row in enumerate(members):
        places.setdefault(row, []).append(place)
    return Slopes(step, float(loss.detach()), {row: slope_SR[at].mean(0) for row, at in places.items()})


def coupled_loss(logp_SR: Tensor, reference_SR: Tensor, config: DPOConfig) -> Tensor:
    """The weighted sum of the coupled losses over the pairs of a step, [S], each in its own order of rank.

    AOT compares the log-prob differences of policy and reference, unpaired AOT the log-ratios of the two sides. A
    share `label_smoothing` of labels is wrong.
    """
    differences = (logp_SR[:, 0] - logp_SR[:, 1], reference_SR[:, 0] - reference_SR[:, 1])
    ratio_SR = logp_SR - reference_SR
    compared = {"aot": differences, "aot_unpaired": (ratio_SR[:, 0], ratio_SR[:, 1])}
    loss_S = torch.zeros_like(logp_SR[:, 0])
    right_S = torch.full_like(loss_S, 1 - config.label_smoothing)
    for name, weight in config.mixture.items():
        if name in compared:
            first_S, second_S = compared[name]
            loss_S = loss_S + weight * soft(partial(aot, beta=config.beta), first_S, second_S, right_S)
    return loss_S
