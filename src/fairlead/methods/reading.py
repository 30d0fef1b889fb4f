"""What is read of a step's replies before the first update, without gradients; and what the log is told of it.

Axes: N scored tokens, R replies, K value heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fairlead.engine import parallel
from fairlead.engine.logprobs import reply_logprobs
from fairlead.methods import losses_policy
from fairlead.methods.config_policy import PolicyConfig
from fairlead.methods.experience import Experience, Piece, part_of
from fairlead.methods.learner import Learner
from fairlead.methods.policy_terms import Coefficients, kl_of_draw, own_R, signal_of
from fairlead.methods.rewards import Objective


def reference_logprobs(step: Experience, reference: torch.nn.Module, config: PolicyConfig) -> Experience:
    """`ref_N`: log-probs under the reference, at the temperature the tokens were drawn at."""
    read = parallel.score(reference, step.trees, config.tokens_per_batch, temperature=config.temperature)
    return step.with_more(ref_N=read.logp_N.double())


def policy_logprobs(step: Experience, policy: torch.nn.Module, config: PolicyConfig) -> Experience:
    """`old_N`: the same under the policy as it is now, outside of any update."""
    read = parallel.score(policy, step.trees, config.tokens_per_batch, temperature=config.temperature)
    return step.with_more(old_N=read.logp_N.double())


def closing_of(step: Experience) -> dict[str, float]:
    """The KL to the reference of replies that the policy drew last, in numbers."""
    kl_N = kl_of_draw(step)
    kl_R = step.sum_R(kl_N)
    error = float(kl_R.std()) / math.sqrt(len(kl_R)) if len(kl_R) > 1 else math.nan
    return {"kl": _mean(kl_R), "kl_error": error, "kl_token": _mean(kl_N), "replies": float(step.replies)}


def before_update(
    step: Experience, learner: Learner, plan: Sequence[Sequence[Piece]], config: PolicyConfig, *, recompute: bool
) -> Experience:
    """`old_N` under the policy, and `value_NK` where there is a critic.

    Read in the micro-batches that the first pass will update in, so that on the weights as they are now the same
    computation gives the same bits. Tokens outside the plan (groups with nothing to learn) keep the sampler's.
    """
    critic = learner.critic is not None
    if not recompute and not critic:
        return step
    old_N, seen_N = torch.zeros_like(step.sampler_N), torch.zeros_like(step.sampler_N)
    value_NK = torch.zeros(
        step.tokens, len(learner.critic.heads) if learner.critic is not None else 0, dtype=torch.float64
    )
    with torch.no_grad():
        for pieces in plan:
            for group, weight in parallel.deal([piece.tree for piece in pieces], config.tokens_per_batch):
                mine = [pieces[i] for i in group]
                trees = [piece.tree for piece in mine]
                at_N = part_of(step, mine).at_N
                logp = reply_logprobs(learner.policy, trees, temperature=config.temperature) if recompute else None
                values = learner.values(trees) if critic else None
                if weight:
                    seen_N[at_N] = 1.0
                    if logp is not None:
                        old_N[at_N] = logp.logp_N.double().cpu()
                    if values is not None:
                        value_NK[at_N] = values.double().cpu()
    # Each place was filled by one process and is 0 on the others, so the sum is that value to the bit.
    more: dict[str, Tensor] = {}
    if recompute:
        more["old_N"] = torch.where(parallel.total(seen_N) > 0, parallel.total(old_N), step.sampler_N)
    if critic:
        more["value_NK"] = parallel.total(value_NK)
    return step.with_more(**more)


def corrected(step: Experience, config: PolicyConfig, *, exact: bool) -> Experience:
    """How far the sampler's log-probs are from the trainer's; and weights that correct it, past the bound.

    An exact sampler needs none, unless its replies are of older weights than those that learn from them.
    """
    if "old_N" not in step.more:
        return step
    mine_N = own_R(step, config)[step.reply_N]
    apart = losses_policy.mismatch(step.more["old_N"][mine_N], step.sampler_N[mine_N], step.reply_N[mine_N])
    told = {"mismatch_mean": apart.mean, "mismatch_largest": apart.largest, "mismatch_kl": apart.kl}
    if (exact and not step.told["staleness"]) or config.importance_cap is None or apart.mean <= config.mismatch_bound:
        return step.with_more(told)
    weight_N = losses_policy.importance_weights(
        step.more["old_N"], step.sampler_N, step.reply_N, step.count_R, cap=config.importance_cap
    )
    told["importance_capped"] = float((weight_N >= config.importance_cap).double().mean())
    return step.with_more(told, importance_N=weight_N)


def told_of(
    step: Experience, objectives: Sequence[Objective], config: PolicyConfig, now: Coefficients
) -> dict[str, float]:
    """A step in numbers: rewards, what is missing, lengths, KL, groups without signal, coefficients."""
    own = own_R(step, config)
    reward_R = step.more["reward_R"][own]
    known_R = reward_R[~reward_R.isnan()]
    spread = float(known_R.std()) if len(known_R) > 1 else math.nan
    signal = signal_of(step, config)
    told = {
        "reward": _mean(known_R),
        "reward_std": spread,
        "reward_error": spread / math.sqrt(len(known_R)) if len(known_R) > 1 else 0.0,
        "replies": float(len(reward_R)),
        "missing": float(reward_R.isnan().sum()),
        "groups": float(len(step.trees)),
        "groups_flat": float(signal.flat),
        "groups_lonely": float(signal.lonely),
        "length": _mean(step.count_R[own].double()),
        "ended": _mean(step.ended_R[own].double()),
        "surprise": -_mean(step.sampler_N[own[step.reply_N]]),  # an estimate of the entropy per token, nats
    }
    for k, one in enumerate(objectives):
        if one.weight == 0:
            continue  # not asked in this step
        raw_R = step.raw_RK[own, k]
        told[f"{one.role}.{one.column}"] = _mean(raw_R[~raw_R.isnan()])
        told[f"missing.{one.column}"] = float(raw_R.isnan().sum())
    if "ref_N" in step.more:
        kl_N = kl_of_draw(step)
        told["kl"] = _mean(step.sum_R(kl_N)[own])
        told["kl_token"] = _mean(kl_N[own[step.reply_N]])
    if config.kl:
        told["kl_coefficient"] = now.kl
    if "cost_R" in step.more:
        cost_R = step.more["cost_R"][own]
        told |= {"cost": _mean(cost_R[~cost_R.isnan()]), "multiplier": now.multiplier}
    if "pair_B2" in step.more:
        told["pairs"] = float(len(step.more["pair_B2"]))
    return told


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if len(values) else math.nan
