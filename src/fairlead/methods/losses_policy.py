"""Policy-gradient losses as pure functions of log-probs, advantages and counts. No model, no mask, no configuration.

Axes: N scored tokens of a micro-batch (reply after reply, as in engine/logprobs.py), R replies, B pairs, V vocabulary.
`logp_N` has gradients. `old_N` are log-probs of the same tokens under the weights the replies were drawn with, `ref_N`
under the reference; all in nats, at the temperature the tokens were drawn at. Each loss is one number per token, to be
minimised. A step's loss is `weighted_sum(loss_N, weight_N)` over its micro-batches, where the weight is a token's share
of the step's mean (`token_shares`, `reply_shares`, `constant_shares`: counts of the whole step) times whatever else
weighs it (`importance_weights`, 0 for what is dropped). So an algorithm is an advantage, a loss and a share:

    PPO            gae, whiten             clipped(logp - old)                        token_shares     + value_loss
    GRPO           group_centred           clipped(logp - old)                        reply_shares     + beta k3
    Dr. GRPO       group_centred(no std)   clipped(logp - old)                        constant_shares
    DAPO           group_centred           clipped(logp - old, high above low)        token_shares
    GSPO           group_centred           clipped(reply_log_ratio)                   reply_shares
    CISPO          group_centred           cispo                                      token_shares
    RLOO           rloo (KL in reward)     reinforce_reply                            reply_sum_shares
    ReMax          remax (KL in reward)    reinforce                                  reply_sum_shares
    REINFORCE++    reinforce_pp (KL in it) clipped(logp - old)                        token_shares
      + baseline   reinforce_pp_baseline   clipped(logp - old)                        token_shares     + beta k2
    Nash-MD        nash_md                 reinforce                                  reply_sum_shares
    PPO-ptx        PPO, plus gamma times `losses.sft_nll` of pretraining rows (Ouyang et al. 2022, eq. 2)
    online DPO     `losses.soft(losses.sigmoid, first, second, P(first is better))` on two fresh replies; XPO adds
                   `xpo_bonus`

The first ratio. On the weights the replies were drawn with, `logp_N - old_N` is 0 to the bit if both come out of the
same computation, and every ratio below is then exactly 1. To put `logp_N.detach()` in the place of `old_N` gives 1 as
well, by identity, whatever is wrong with the log-probs: an economy where a batch is used once, and useless as a check.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fairlead.methods.kl_estimators import k3

# ------------------------------------------------------------------------------------------- ratios of policies


def reply_log_ratio(logp_N: Tensor, old_N: Tensor, reply_N: Tensor, count_R: Tensor) -> Tensor:
    """log of GSPO's ratio, [N], the same for all tokens of a reply: the mean of its tokens' log-ratios.

    Zheng et al. 2025 (arXiv 2507.18071), eq. 7: s = (pi(y) / pi_old(y))^(1/|y|).
    """
    lead_N = logp_N - old_N
    sum_R = lead_N.new_zeros(len(count_R)).index_add(0, reply_N, lead_N)
    return (sum_R / count_R.clamp_min(1))[reply_N]


def reply_log_ratio_token(logp_N: Tensor, old_N: Tensor, reply_N: Tensor, count_R: Tensor) -> Tensor:
    """The same value, [N], with the gradient of each token's own log-prob: GSPO-token, for advantages per token.

    Same paper, section 4.3: sg(s) pi(y_t) / sg(pi(y_t)). `logp - logp.detach()` is 0 and stands there for its gradient.
    """
    return reply_log_ratio(logp_N, old_N, reply_N, count_R).detach() + (logp_N - logp_N.detach())


def clipped(
    log_ratio_N: Tensor, adv_N: Tensor, *, low: float = 0.2, high: float = 0.2, ceiling: float | None = None
) -> Tensor:
    """PPO's clipped surrogate, [N]: -min(r A, clip(r, 1 - low, 1 + high) A). Schulman et al. 2017 (1707.06347), eq. 7.

    r = exp(log_ratio). A token whose ratio left the range in the direction its advantage asks for has no gradient.
    `high` above `low` is clip-higher, which lets unlikely tokens rise further: DAPO (Yu et al. 2025, arXiv 2503.14476),
    eq. 10. `ceiling`, above 1 + high, also bounds r where A < 0 and the minimum has no bound: dual-clip PPO (Ye et al.
    2019, arXiv 1912.09729). A ratio that overflows makes the loss infinite; training stops there.
    """
    if not (0 < low < 1 and high > 0 and (ceiling is None or ceiling > 1 + high)):
        raise ValueError(f"low {low}, high {high}, ceiling {ceiling}: 0 < low < 1, high > 0, ceiling above 1 + high")
    adv_N = adv_N.to(log_ratio_N)
    ratio_N = torch.exp(log_ratio_N)
    near_N = ratio_N.clamp(1 - low, 1 + high)
    if ceiling is not None:
        ratio_N = ratio_N.clamp(max=ceiling)
    return -torch.minimum(ratio_N * adv_N, near_N * adv_N)


def clipped_away(log_ratio_N: Tensor, adv_N: Tensor, *, low: float = 0.2, high: float = 0.2) -> Tensor:
    """Tokens that `clipped` gives no gradient, [N] of bool: the clip fraction is their share."""
    ratio_N = torch.exp(log_ratio_N.detach())
    return ((ratio_N > 1 + high) & (adv_N > 0)) | ((ratio_N < 1 - low) & (adv_N < 0))


def cispo(log_ratio_N: Tensor, logp_N: Tensor, adv_N: Tensor, *, ceiling: float, floor: float = 0.0) -> Tensor:
    """CISPO, [N]: -sg(clip(r, floor, ceiling)) A log pi. MiniMax 2025 (arXiv 2506.13585), eq. 4 and 5.

    The importance weight is clipped and has no gradient, so every token keeps one. The paper's 1 + eps_high is
    `ceiling`; it puts no floor.
    """
    if not 0 <= floor < 1 < ceiling:
        raise ValueError(f"floor {floor}, ceiling {ceiling}: a ratio of 1 lies between them")
    ratio_N = torch.exp(log_ratio_N.detach()).clamp(floor, ceiling)
    return -ratio_N * adv_N.to(logp_N) * logp_N


def reinforce(logp_N: Tensor, adv_N: Tensor) -> Tensor:
    """REINFORCE, [N]: -A log pi. Williams 1992. For replies of the policy as it is; the value means nothing.

    -A exp(logp - logp.detach()) has the same gradient and the value -A, whatever the log-probs.
    """
    return -adv_N.to(logp_N) * logp_N


def reinforce_reply(logp_N: Tensor, old_N: Tensor, adv_N: Tensor, reply_N: Tensor, count_R: Tensor) -> Tensor:
    """REINFORCE with the reply as one action and its importance ratio, [N]: -sg(pi(y) / pi_old(y)) A log pi.

    RLOO's action is the whole reply (Ahmadian et al. 2024, arXiv 2402.14740, section 3). On fresh replies the ratio is
    1 and this is `reinforce`.
    """
    lead_N = (logp_N - old_N).detach()
    ratio_R = torch.exp(lead_N.new_zeros(len(count_R)).index_add(0, reply_N, lead_N))
    return reinforce(logp_N, ratio_R[reply_N] * adv_N.to(logp_N))


# ----------------------------------------------------------------------------- shares of a step, and their sum


def token_shares(reply_N: Tensor, *, tokens: int) -> Tensor:
    """Weight of each token in a mean over all tokens of the step, [N]: DAPO (2503.14476), eq. 12.

    Long replies count for more. `tokens` counts the scored tokens of the whole step, over all processes.
    """
    return torch.full(reply_N.shape, 1 / _counted(tokens, "tokens"), dtype=torch.float64, device=reply_N.device)


def reply_shares(reply_N: Tensor, count_R: Tensor, *, replies: int) -> Tensor:
    """Weight of each token in a mean over replies of their means over tokens, [N]: GRPO (2402.03300), eq. 3.

    `replies` counts those of the whole step. A long wrong reply is punished less per token than a short one: Liu et al.
    2025 (2503.20783).
    """
    return (1 / (_counted(replies, "replies") * count_R.double()))[reply_N]


def reply_sum_shares(reply_N: Tensor, *, replies: int) -> Tensor:
    """Weight of each token in a mean over replies of their sums, [N]: the policy gradient as it is derived."""
    return token_shares(reply_N, tokens=_counted(replies, "replies"))


def constant_shares(reply_N: Tensor, *, replies: int, length: int) -> Tensor:
    """The same over a constant, [N]: Dr. GRPO, Liu et al. 2025 (2503.20783). `length` is the longest a reply may be."""
    return token_shares(reply_N, tokens=_counted(replies, "replies") * _counted(length, "length"))


def weighted_sum(loss_N: Tensor, weight_N: Tensor) -> Tensor:
    """This micro-batch's part of the step's loss, a scalar. Parts of any split add up to the same step.

    A loss that is no number stays one even where its weight is 0: nothing is hidden from the loop.
    """
    return (weight_N.to(loss_N) * loss_N).sum()


def _counted(count: int, what: str) -> int:
    if count < 1:
        raise ValueError(f"{what} is {count}: a step without {what} has no loss")
    return count


# ------------------------------------------------------------------------- rollouts from an engine of their own


def importance_weights(
    trainer_N: Tensor,
    sampler_N: Tensor,
    reply_N: Tensor,
    count_R: Tensor,
    *,
    cap: float = 2.0,
    floor: float = 0.0,
    level: Literal["token", "reply"] = "token",
    outside: Literal["truncate", "drop"] = "truncate",
) -> Tensor:
    """Weights that correct for replies drawn by another engine than the one that trains, [N], no gradient.

    pi_trainer / pi_sampler of a token, or of its whole reply. `trainer_N` are the log-probs recomputed by the trainer
    before the first update (`old_N`), `sampler_N` the engine's own, of the draw it made. Truncated at `cap` (Ionides
    2008; Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"), or dropped outside
    [floor, cap] (IcePop's and masked importance sampling). A token's weight has little variance and leaves the bias of
    everything before it; a reply's is unbiased up to the cap and falls to nothing for long replies. With top-k or top-p
    the sampler's log-prob is of the cut distribution and the trainer's is not: the ratio is then off by the kept mass.
    Raises ValueError where the sampler's log-prob of a token is not a number, naming its reply.
    """
    if not 0 <= floor < 1 < cap:
        raise ValueError(f"floor {floor}, cap {cap}: a ratio of 1 lies between them")
    _finite(sampler_N, reply_N)
    lead_N = trainer_N.detach().double() - sampler_N.detach().double()
    if level == "reply":
        lead_N = lead_N.new_zeros(len(count_R)).index_add(0, reply_N, lead_N)[reply_N]
    ratio_N = torch.exp(lead_N)
    if outside == "drop":
        return torch.where((ratio_N < floor) | (ratio_N > cap), 0.0, ratio_N)
    return ratio_N.clamp(floor, cap)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """How far two engines' log-probs of the same tokens are apart, nats: |difference|, mean and largest; and the KL.

    `kl` estimates KL(sampler || trainer) per token, by k3.
    """

    tokens: int
    mean: float
    largest: float
    kl: float


def mismatch(trainer_N: Tensor, sampler_N: Tensor, reply_N: Tensor) -> Mismatch:
    """What is measured every step where replies come from an engine of their own. At least one token."""
    _counted(len(trainer_N), "tokens")
    _finite(sampler_N, reply_N)
    ours_N, theirs_N = trainer_N.detach().double(), sampler_N.detach().double()
    apart_N = (ours_N - theirs_N).abs()
    return Mismatch(len(apart_N), float(apart_N.mean()), float(apart_N.max()), float(k3(theirs_N, ours_N).mean()))


def _finite(sampler_N: Tensor, reply_N: Tensor) -> None:
    bad = (~sampler_N.isfinite()).nonzero()[:, 0]
    if len(bad):
        raise ValueError(
            f"reply {int(reply_N[bad[0]])}: the sampler gives no log-prob for {len(bad)} of {len(sampler_N)} tokens; "
            "ask it for the log-prob of every token it draws"
        )


# ------------------------------------------------------------------------------------ other terms of the loss


def value_loss(value_N: Tensor, old_N: Tensor, target_N: Tensor, *, clip: float | None = 0.2) -> Tensor:
    """The critic's loss, [N]: max((V - target)^2, (clip(V, old - clip, old + clip) - target)^2) / 2.

    PPO's squared error (1707.06347, eq. 9) with the clipping of its authors' code, which the paper does not mention
    (Engstrom et al. 2020, arXiv 2005.12729). `old_N` are the values that `gae` read, `target_N` its targets.
    `clip` None: the squared error.
    """
    if clip is not None and not clip > 0:
        raise ValueError(f"clip is {clip}: a value that may not move learns nothing; give more than 0, or None")
    target_N = target_N.to(value_N)
    error_N = (value_N - target_N).square()
    if clip is not None:
        old_N = old_N.to(value_N)
        near_N = old_N + (value_N - old_N).clamp(-clip, clip)
        error_N = torch.maximum(error_N, (near_N - target_N).square())
    return error_N / 2


def entropy_bonus(entropy_N: Tensor, *, coef: float) -> Tensor:
    """-coef times the entropy of the distribution each token was drawn from, [N], nats: 1707.06347, eq. 9.

    Each step's entropy with what came before held fixed, as for the KL terms (see `kl_estimators`).
    """
    return -coef * entropy_N


def xpo_bonus(explored_B: Tensor, *, alpha: float) -> Tensor:
    """XPO's exploration term, [B], added to the DPO loss: alpha log pi(y~). Xie et al. 2024 (2405.21046), algorithm 1.

    y~ is drawn from the reference: to lower its log-prob is to look where the reference does not. `explored_B` are
    summed log-probs under the policy, with gradient.
    """
    return alpha * explored_B


def nash_mixture(logp_NV: Tensor, ref_NV: Tensor, *, mix: float) -> Tensor:
    """Log-probs of Nash-MD's opponent, [N, V]: the geometric mixture pi^(1 - mix) ref^mix, normalised token by token.

    Munos et al. 2023 (arXiv 2312.00886): what the second reply of a pair is drawn from.
    """
    if not 0 <= mix <= 1:
        raise ValueError(f"mix is {mix}: 0 is the policy, 1 the reference")
    return torch.log_softmax((1 - mix) * logp_NV + mix * ref_NV, dim=-1)
