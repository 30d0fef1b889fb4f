"""Underlying distribution matching: how much likelier a prompt is among good replies than among bad ones.

Jung et al. 2024 (arXiv 2404.04656): where thumbs up and thumbs down come from different prompts, a classifier learns
the prompts, not the replies. Bad replies are weighed by p(good | prompt) / p(bad | prompt), from a logistic regression
on the prompts' embeddings: here the mean of the reference's last hidden states. Axes: P rows, T packed tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fairlead.engine.forward import evaluating, hidden_states
from fairlead.engine.layout import Tree, pack
from fairlead.engine.logprobs import batch_of
from fairlead.methods.rows import Rows, Trainable

RIDGE = 1.0  # prior precision of standardised weights, in rows


def density_ratios(
    model: Trainable, rows: Rows, good_P: Tensor, limits: tuple[float, float], tokens_per_batch: int
) -> Tensor:
    """p(good | prompt) / p(bad | prompt) of every row, [P], kept within `limits`."""
    return fitted_ratios(prompt_means(model, rows, tokens_per_batch), good_P, limits)


def prompt_means(model: Trainable, rows: Rows, tokens_per_batch: int) -> Tensor:
    """The mean last hidden state of each row's prompt, [P, D], on the CPU; no gradients."""
    trees = [Tree(tree.prompt, ((0,),)) for tree in rows.trees]  # a reply of one token, which is never fed
    means: list[Tensor] = [torch.empty(0)] * len(trees)
    budget = max(tokens_per_batch, *(tree.tokens for tree in trees))
    with torch.no_grad(), evaluating(model.module):
        for group in pack(trees, budget):
            batch = batch_of(model.module, [trees[row] for row in group])
            hidden_TD = hidden_states(model.module, batch)
            for row, end in zip(group, batch.last_R.tolist(), strict=True):
                means[row] = hidden_TD[end + 1 - len(trees[row].prompt) : end + 1].mean(0).cpu()
    return torch.stack(means)


def fitted_ratios(features_PD: Tensor, good_P: Tensor, limits: tuple[float, float]) -> Tensor:
    """The odds that a ridge logistic regression gives `good`, [P], kept within `limits`.

    Features are standardised; the intercept has no prior, so with features that tell nothing the odds are those of the
    data. Deterministic: full-batch L-BFGS on a strictly convex loss, in float64.
    """
    x_PD = features_PD.double()
    x_PD = (x_PD - x_PD.mean(0)) / x_PD.std(0, correction=0).clamp_min(1e-12)
    y_P = good_P.double()
    weight_D = torch.zeros(x_PD.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight_D, bias], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def loss() -> Tensor:
        solver.zero_grad()
        value = binary_cross_entropy_with_logits(x_PD @ weight_D + bias, y_P, reduction="sum")
        value = (value + 0.5 * RIDGE * weight_D.square().sum()) / len(y_P)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    return (x_PD @ weight_D + bias).detach().exp().clamp(*limits)
