"""Losses as pure functions of log-probs, labels and counts. No model, no mask, no configuration.

Axes: B pairs or rows, N reply tokens of a packed batch. Log-probs are in nats. Whatever is a mean over a step takes
its count from outside: a micro-batch knows only its own rows, and a mean over those makes the gradient depend on how
the step was split.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def sft_nll(logp_N: Tensor, *, tokens: int) -> Tensor:
    """Completion-only negative log-likelihood per token, a scalar.

    `logp_N` are the log-probs of the reply tokens in this micro-batch, shape [N]; `tokens` is the number of reply
    tokens in the whole optimisation step. Summed over the micro-batches this is the step's mean over tokens.
    """
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}: a step without reply tokens has no loss")
    return -logp_N.sum() / tokens


def dpo(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    ref_chosen_B: Tensor,
    ref_rejected_B: Tensor,
    *,
    beta: float,
    label_B: Tensor | float = 1.0,
) -> Tensor:
    """Direct preference optimisation, Rafailov et al. 2023 (arXiv 2305.18290), eq. 7, with soft labels.

    Inputs are summed reply log-probs in nats, shape [B]; label_B in [0.5, 1] is the probability that `chosen` is the
    better one (1 = certain; 1 - eps gives conservative DPO). Returns the loss per pair, [B].
    """
    margin_B = beta * ((policy_chosen_B - ref_chosen_B) - (policy_rejected_B - ref_rejected_B))
    return -(label_B * logsigmoid(margin_B) + (1 - label_B) * logsigmoid(-margin_B))


def chosen_nll(policy_chosen_B: Tensor, tokens_B: Tensor) -> Tensor:
    """Negative log-likelihood of the chosen reply per token, [B]: what keeps its log-prob from falling under DPO.

    The NLL term of Pang et al. 2024 (arXiv 2404.19733), eq. 1: -log pi(y_w | x) / |y_w|, added to `dpo` with a
    weight. `tokens_B` counts the chosen reply's tokens, end of turn included.
    """
    return -policy_chosen_B / tokens_B


def preference_metrics(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    ref_chosen_B: Tensor,
    ref_rejected_B: Tensor,
    *,
    beta: float,
    label_B: Tensor,
) -> dict[str, float]:
    """Sums over the pairs of a micro-batch: divide by the step's `pairs` (accuracy: by `decided`) after adding up.

    margin            implicit reward of chosen over rejected, beta x nats
    accurate          pairs whose margin has the label's sign; ties among the labels (0.5) are not `decided`
    chosen_logp, rejected_logp     summed reply log-prob under the policy, nats
    chosen_drift, rejected_drift   the same minus the reference's: negative where the policy moved away from it
    """
    chosen_B, rejected_B = policy_chosen_B.detach() - ref_chosen_B, policy_rejected_B.detach() - ref_rejected_B
    margin_B = beta * (chosen_B - rejected_B)
    decided_B = label_B != 0.5
    # A margin of exactly zero decides nothing: it counts half, so an untrained policy scores 0.5 and not 0.
    accurate_B = (margin_B > 0).to(margin_B.dtype) + 0.5 * (margin_B == 0).to(margin_B.dtype)
    sums: dict[str, Tensor] = {
        "decided": decided_B.sum(),
        "margin": margin_B.sum(),
        "accurate": (accurate_B * decided_B).sum(),
        "chosen_logp": policy_chosen_B.detach().sum(),
        "rejected_logp": policy_rejected_B.detach().sum(),
        "chosen_drift": chosen_B.sum(),
        "rejected_drift": rejected_B.sum(),
    }
    return {"pairs": float(margin_B.numel())} | {name: float(value) for name, value in sums.items()}
