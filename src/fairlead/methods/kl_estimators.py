"""Estimates of KL(policy || reference) from the policy's own samples, and which gradient each one gives.

Axes: N scored tokens. `logp_N` and `ref_N` are log-probs in nats of the same drawn tokens under policy and reference,
both at the temperature the tokens were drawn at. With d = log pi - log pi_ref (Schulman 2020, "Approximating KL
divergence"):

    k1   d                      unbiased, often below 0 for one sample
    k2   d^2 / 2                biased: its mean is another divergence, the same to second order near pi = pi_ref
    k3   exp(-d) - 1 + d        unbiased, never below 0; wild where the policy gave up what the reference likes

Unbiased in value says nothing of the gradient: the derivative of a mean over samples also moves the samples. For one
draw y of the policy, and with no gradient through the samples (Tang and Munos 2025, arXiv 2506.09477; every line is
enumerated in tests/methods/test_kl_estimators.py):

    where the estimate stands                      k1                    k2                    k3
    in the reward (no gradient, score function)    grad KL(pi || ref)    wrong                 wrong (*)
    in the loss, differentiated                    0: noise alone        grad KL(pi || ref)    grad KL(ref || pi)
    in the loss, times pi / pi_old (`reweighted`)  grad KL(pi || ref)    wrong                 grad KL(pi || ref)

(*) grad KL(pi || ref) - grad KL(ref || pi), which is nearly nothing where the policy is still near its reference.

The first two lines are for samples of the policy as it is. The last holds for samples of any policy pi_old, and on the
policy's own with pi_old = pi; there the ratio is 1 in value and matters through its derivative alone. In the first two
lines, samples of pi_old need the ratio as a constant factor to mean the same.

A reply of several tokens is one draw: the table holds for a reply's sums (d of the reply is the sum of its tokens' d).
Token by token the estimates add up to the reply's KL in value, but in the loss each token's gradient is that of its own
step with everything before it held fixed: it never learns that a token leads to states where the policies differ more.
GRPO's k3 in the loss and k2 there are such partial gradients. In the reward, k1 of each token with the sum to come
(`advantages.reward_to_go`, gamma 1) is the whole gradient of the reply's KL.
"""

from __future__ import annotations

import torch
from torch import Tensor


def k1(logp_N: Tensor, ref_N: Tensor) -> Tensor:
    """log pi - log pi_ref per token, [N], nats. Belongs in the reward, or reweighted in the loss."""
    return logp_N - ref_N


def k2(logp_N: Tensor, ref_N: Tensor) -> Tensor:
    """(log pi - log pi_ref)^2 / 2 per token, [N], nats. Belongs in the loss, on the policy's own samples.

    What REINFORCE++ with a baseline puts there (Hu et al. 2025, arXiv 2501.03262).
    """
    return (logp_N - ref_N).square() / 2


def k3(logp_N: Tensor, ref_N: Tensor) -> Tensor:
    """pi_ref / pi - 1 - log(pi_ref / pi) per token, [N], nats: GRPO's term (Shao et al. 2024, arXiv 2402.03300, eq. 4).

    In the loss as GRPO has it, its gradient is that of the forward KL(ref || pi).
    """
    lead_N = ref_N - logp_N
    return torch.expm1(lead_N) - lead_N


def reweighted(kl_N: Tensor, log_ratio_N: Tensor) -> Tensor:
    """An estimate times pi / pi_old, [N], with the gradient through the ratio as well.

    `log_ratio_N` is log pi - log pi_old; for samples of the policy itself give `logp_N - logp_N.detach()`, which is 0
    and has a gradient. With k3 the unbiased KL term of DeepSeek-V3.2 (2025, arXiv 2512.02556).
    """
    return torch.exp(log_ratio_N) * kl_N
