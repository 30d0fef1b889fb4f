"""Losses as pure functions of log-probs, labels and counts. No model, no mask, no configuration.

Axes: B pairs of a micro-batch, N reply tokens of a packed batch. Log-probs are in nats. Whatever is a mean over a step
takes its count from outside: a micro-batch knows only its own rows, and a mean over those makes the gradient depend on
how the step was split. Losses of single replies with a thumb up or down are in `losses_unpaired.py`.

A pairwise loss is a function of two scores per pair, `chosen_B` and `rejected_B`. What the score is (a log-ratio to the
reference, its mean per token, a policy log-prob, ...) says each loss; `pairs.py` computes it. A label below 1 means the
same for all of them: with probability p the chosen reply is the better one, so the loss is the expectation
p f(chosen, rejected) + (1 - p) f(rejected, chosen), see `soft`. A tie (p = 1/2) then pulls the two together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]

# ------------------------------------------------------------------------------------------------ likelihood


def sft_nll(logp_N: Tensor, *, tokens: int) -> Tensor:
    """Completion-only negative log-likelihood per token, a scalar.

    `logp_N` are the log-probs of the reply tokens in this micro-batch, shape [N]; `tokens` is the number of reply
    tokens in the whole optimisation step. Summed over the micro-batches this is the step's mean over tokens.
    """
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}: a step without reply tokens has no loss")
    return -logp_N.sum() / tokens


def chosen_nll(policy_chosen_B: Tensor, tokens_B: Tensor) -> Tensor:
    """Negative log-likelihood of the chosen reply per token, [B]: what keeps its log-prob from falling under DPO.

    The NLL term of Pang et al. 2024 (arXiv 2404.19733), eq. 1: -log pi(y_w | x) / |y_w|, added to a pairwise loss with
    a weight. `tokens_B` counts the chosen reply's tokens, end of turn included. TRL's `sft` term, and the NLL of its
    CPO and ORPO, is the mean over the tokens of the whole step instead, so that long replies count for more:
    `sft_nll` of the chosen tokens (`nll_mean: tokens` in the configuration).
    """
    return -policy_chosen_B / tokens_B


# --------------------------------------------------------------------------------------- scores of one reply


def divergence_score(ratio_B: Tensor, divergence: Divergence, *, alpha: float = 0.5) -> Tensor:
    """Score of a reply under f-divergence DPO, [B]: f'(u) with u = pi(y|x) / pi_ref(y|x), from ratio_B = log u.

    Wang et al. 2023 (arXiv 2309.16240); additive constants cancel in the difference of two replies and are left out
    (TRL keeps some of them):

        reverse_kl   log u                    plain DPO
        forward_kl   -1 / u
        js           log(u / (1 + u))
        alpha        (1 - u^-alpha) / alpha   alpha in (0, 1): near 0 reverse KL, at 1 forward KL

    TRL's `f_alpha_divergence_coef` is 1 - alpha. Its exponent is bounded at 80 to stay representable; so is ours.
    """
    if divergence == "reverse_kl":
        return ratio_B
    if divergence == "js":
        return logsigmoid(ratio_B)
    power = 1.0 if divergence == "forward_kl" else alpha
    if not 0 < power <= 1:
        raise ValueError(
            f"alpha is {alpha}: an alpha-divergence lies strictly between reverse KL (0) and forward KL (1)"
        )
    return -torch.exp((-power * ratio_B).clamp(max=80.0)) / power


def shaped_score(mean_logp_B: Tensor, *, alpha: float) -> Tensor:
    """Score of a reply under AlphaPO, [B]: (1 - p^-alpha) / alpha, with p = exp(mean_logp_B), at alpha 0 log p.

    Gupta et al. 2025 (arXiv 2501.03884): SimPO's reward with another shape; p is the policy's probability of the reply,
    per token (the length-th root). Its slope in log p is p^-alpha: above 0 an unlikely reply is moved more than a
    likely one, below 0 less. Computed through expm1, so that a small alpha loses no digits (TRL subtracts from 1).
    """
    if alpha == 0:
        return mean_logp_B
    return -torch.expm1(-alpha * mean_logp_B) / alpha


# -------------------------------------------------------------------------------------------- pairwise losses


def soft(loss: Callable[[Tensor, Tensor], Tensor], chosen_B: Tensor, rejected_B: Tensor, label_B: Tensor) -> Tensor:
    """The expectation of a pairwise loss under label_B = P(chosen is the better one), [B]; see the head of the file.

    For the sigmoid loss and label 1 - eps this is conservative DPO (Mitchell 2023, "A note on DPO with noisy
    preferences & relationship to IPO").
    """
    if bool((label_B == 1).all()):
        return loss(chosen_B, rejected_B)
    return label_B * loss(chosen_B, rejected_B) + (1 - label_B) * loss(rejected_B, chosen_B)


def sigmoid(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """-log sigma(beta (chosen - rejected)), [B]: the Bradley-Terry likelihood of the label.

    On log-ratios to the reference DPO; on mean log-ratios length-normalised DPO (Lambert et al. 2024, arXiv 2411.15124,
    section 5); on log-ratios whose tail counts less LD-DPO (Liu et al. 2024, arXiv 2409.06411); on policy log-probs
    reference-free DPO, and CPO.
    """
    return -logsigmoid(beta * (chosen_B - rejected_B))


def dpo(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    ref_chosen_B: Tensor,
    ref_rejected_B: Tensor,
    *,
    beta: float,
    label_B: Tensor | float = 1.0,
    margin_B: Tensor | float = 0.0,
) -> Tensor:
    """Direct preference optimisation, Rafailov et al. 2023 (arXiv 2305.18290), eq. 7, with soft labels and a margin.

    Inputs are summed reply log-probs in nats, shape [B]; label_B in [0.5, 1] is the probability that `chosen` is the
    better one (1 = certain; 1 - eps gives conservative DPO). `margin_B`, in units of reward (beta x nats), is by how
    much chosen should lead: DPO with an offset, Amini et al. 2024 (arXiv 2402.10571). Returns the loss per pair, [B].
    """
    margin_B = beta * ((policy_chosen_B - ref_chosen_B) - (policy_rejected_B - ref_rejected_B)) - margin_B
    return -(label_B * logsigmoid(margin_B) + (1 - label_B) * logsigmoid(-margin_B))


def hinge(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """max(0, 1 - beta (chosen - rejected)), [B].

    SLiC-HF's calibration loss (Zhao et al. 2023, arXiv 2305.10425, with its margin delta = 1 / beta) on log-ratios to
    the reference, the `hinge-norm` that Liu et al. 2023 (arXiv 2309.06657) put beside DPO. SLiC's own score is the
    policy's log-prob (`reference_free`), and its regulariser is the NLL term.
    """
    return torch.relu(1 - beta * (chosen_B - rejected_B))


def ipo(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """Identity preference optimisation, Azar et al. 2023 (arXiv 2310.12036), eq. 17.

    (chosen - rejected - 1 / (2 beta))^2, [B]; scores are log-ratios to the reference, beta is the paper's tau. The
    equation as printed has the log-ratio of the whole reply, and so have we by default (`length: sum`): the fixed point
    then is a reward margin of 1/2 whatever the replies' lengths. TRL divides each log-ratio by its reply's tokens, on
    the word of the paper's authors that their experiments did (`length: mean`); its square is in nats per token, so the
    same beta pulls much harder.
    """
    return (chosen_B - rejected_B - 1 / (2 * beta)) ** 2


def robust(chosen_B: Tensor, rejected_B: Tensor, *, beta: float, noise: float) -> Tensor:
    """Robust DPO, Chowdhury et al. 2024 (arXiv 2403.00409): the unbiased loss where labels flip at rate `noise`.

    ((1 - noise) l(chosen, rejected) - noise l(rejected, chosen)) / (1 - 2 noise), l the sigmoid loss; it has no lower
    bound. Raises ValueError for a rate outside [0, 0.5): at 0.5 labels say nothing, above it they say the opposite.
    """
    if not 0 <= noise < 0.5:
        raise ValueError(f"noise is {noise}: a rate of wrong labels lies in [0, 0.5)")
    right_B, wrong_B = sigmoid(chosen_B, rejected_B, beta=beta), sigmoid(rejected_B, chosen_B, beta=beta)
    return ((1 - noise) * right_B - noise * wrong_B) / (1 - 2 * noise)


def exo(chosen_B: Tensor, rejected_B: Tensor, *, beta: float, label_B: Tensor | float) -> Tensor:
    """EXO for pairs, Ji et al. 2024 (arXiv 2402.00856), eq. 16: KL(q || p), q = softmax(beta scores), p = the label.

    Scores are log-ratios to the reference, [B]; label_B = P(chosen is better), strictly inside (0, 1): the reverse KL
    to a certain label is infinite. The paper smooths labels by 1e-3.
    """
    label_B = torch.as_tensor(label_B, dtype=chosen_B.dtype, device=chosen_B.device)
    if bool(((label_B <= 0) | (label_B >= 1)).any()):
        raise ValueError("a label of 0 or 1 makes EXO's loss infinite: smooth the labels (the paper: by 1e-3)")
    log_q_B, log_not_q_B = -sigmoid(chosen_B, rejected_B, beta=beta), -sigmoid(rejected_B, chosen_B, beta=beta)
    return log_q_B.exp() * (log_q_B - label_B.log()) + log_not_q_B.exp() * (log_not_q_B - torch.log1p(-label_B))


def discopop(chosen_B: Tensor, rejected_B: Tensor, *, beta: float, tau: float = 0.05) -> Tensor:
    """DiscoPOP (log-ratio modulated loss), Lu et al. 2024 (arXiv 2406.08414), eq. 5: found by a language model.

    With z = beta (chosen - rejected) and s = sigma(z / tau): (1 - s) (-log sigma(z)) + s exp(-z), [B]. Logistic for
    pairs ranked wrongly, exponential for those ranked rightly. Not convex: with the published tau it slopes the wrong
    way at z = 0, where an untrained policy stands, into a hollow just below. exp(-z) is multiplied out as
    exp(log s - z), which stays finite for very negative z where s is 0.
    """
    z_B = beta * (chosen_B - rejected_B)
    return torch.sigmoid(-z_B / tau) * -logsigmoid(z_B) + torch.exp(logsigmoid(z_B / tau) - z_B)


def nca(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """NCA for pairs, Chen et al. 2024 (arXiv 2402.05369), K = 2, [B]; scores are log-ratios to the reference.

    Unlike DPO it looks at each reply's reward itself, so the chosen one's log-prob is kept from falling.
    """
    up_B, down_B = beta * chosen_B, beta * rejected_B
    return -logsigmoid(up_B) - 0.5 * logsigmoid(-up_B) - 0.5 * logsigmoid(-down_B)


def bco_pair(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """The binary cross-entropy of both replies' rewards, [B]: BCO on pairs, without its reward shift.

    Jung et al. 2024 (arXiv 2404.04656), theorem 1: an upper bound of the DPO loss. With the shift:
    `losses_unpaired.bco`.
    """
    return -logsigmoid(beta * chosen_B) - logsigmoid(-beta * rejected_B)


def sppo(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """SPPO with hard win probabilities, Wu et al. 2024 (arXiv 2405.00675), eq. 4.7, [B]: eta = 1 / beta, P 0 or 1."""
    return (chosen_B - 0.5 / beta) ** 2 + (rejected_B + 0.5 / beta) ** 2


def apo_zero(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """APO-zero, D'Oosterlinck et al. 2024 (arXiv 2408.06266), eq. 7, [B]: chosen up, rejected down.

    For chosen replies better than what the model says by itself. Scores are log-ratios to the reference.
    """
    return 1 - torch.sigmoid(beta * chosen_B) + torch.sigmoid(beta * rejected_B)


def apo_down(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """APO-down, same paper, eq. 8, [B]: both down, rejected further. For chosen replies worse than the model's own."""
    return torch.sigmoid(beta * chosen_B) + 1 - torch.sigmoid(beta * (chosen_B - rejected_B))


def simpo(chosen_B: Tensor, rejected_B: Tensor, *, beta: float, gamma: float) -> Tensor:
    """SimPO, Meng et al. 2024 (arXiv 2405.14734), eq. 6: -log sigma(beta (chosen - rejected) - gamma), [B].

    Scores are log-probs per token under the policy; there is no reference. gamma is a reward margin, in units of
    beta x nats per token. With soft labels each side is asked to lead by gamma where it is the better one, so a tie
    settles at 0; TRL's label smoothing flips only the sign after the margin, and there a tie settles at gamma.
    """
    return -logsigmoid(beta * (chosen_B - rejected_B) - gamma)


def cpo(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """CPO's preference term, Xu et al. 2024 (arXiv 2401.08417), eq. 3, [B]: DPO with a uniform reference.

    Scores are summed log-probs under the policy. The whole loss adds the NLL of the chosen reply.
    """
    return sigmoid(chosen_B, rejected_B, beta=beta)


def tpo(chosen_B: Tensor, rejected_B: Tensor, *, beta: float, gamma: float) -> Tensor:
    """TPO's preference term, Saeidi et al. 2024 (arXiv 2405.16681): -log sigma(beta (chosen - rejected) - gamma), [B].

    Scores are the policy's log-probs of the whole replies (TPO, gamma 0) or per token (TPO-L, with a margin gamma in
    units of reward); there is no reference. The whole loss adds the NLL of a third, gold reply to the same prompt.
    """
    return simpo(chosen_B, rejected_B, beta=beta, gamma=gamma)


def log_odds(mean_logp_B: Tensor) -> Tensor:
    """log(p / (1 - p)), [B], p = exp(mean log-prob per token): ORPO's odds of a reply (arXiv 2403.07691, eq. 3 and 4).

    log(1 - p) is computed as log(-expm1(logp)) near p = 1 and log1p(-exp(logp)) elsewhere, so neither end cancels.
    Where p rounds to 1 the odds are those of the largest number below it.
    """
    least = -torch.finfo(mean_logp_B.dtype).tiny
    logp_B = mean_logp_B.clamp(max=least)
    near_B = logp_B > -math.log(2)
    # both branches are fed values at which they and their slopes are finite: `where` would let a NaN through backward
    log_not_p_B = torch.where(
        near_B,
        torch.log(-torch.expm1(torch.where(near_B, logp_B, -math.log(2)))),
        torch.log1p(-torch.exp(torch.where(near_B, -math.log(2), logp_B))),
    )
    return logp_B - log_not_p_B


def orpo(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """ORPO's odds-ratio term, Hong et al. 2024 (arXiv 2403.07691), eq. 7.

    -log sigma(log odds(chosen) - log odds(rejected)), [B]; scores are log-probs per token under the policy, there is no
    reference. The whole loss (eq. 6) is the NLL of the chosen reply plus this times lambda. The NLL is of the reply
    alone, eq. 2; TRL's ORPO takes it over prompt and reply, which teaches the model to write prompts.
    """
    return -logsigmoid(log_odds(chosen_B) - log_odds(rejected_B))


def aot(chosen_S: Tensor, rejected_S: Tensor, *, beta: float) -> Tensor:
    """AOT's transport term, Melnyk et al. 2024 (arXiv 2406.05882): sorted rewards compared place by place.

    Both are sorted over the S pairs of a whole step and the k-th smallest of the one is asked to exceed the k-th
    smallest of the other; returns [S], in the order of rank. Unpaired AOT gives the log-ratios of the chosen and of the
    rejected replies; AOT gives the policy's log-prob differences and the reference's. It couples all rows of a step, so
    a micro-batch cannot compute it: see `coupled.py`.
    """
    return -logsigmoid(beta * (chosen_S.sort().values - rejected_S.sort().values))
