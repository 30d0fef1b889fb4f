"""What an algorithm is made of, chosen by the settings: rewards, advantages, and the loss of one micro-batch.

The loop in policy.py knows none. It asks here three times: `rewards_of_step` (judges' scores to one number per reply),
`advantages_of_step` (one number per token), and `policy_loss` (a scalar, this micro-batch's part of the step's).

Axes: P prompts, R replies, N scored tokens, K objectives or value heads, B pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fairlead.engine.logprobs import ReplyLogprobs
from fairlead.methods import advantages as adv
from fairlead.methods import kl_estimators, losses, shaping
from fairlead.methods import losses_policy as loss_of
from fairlead.methods.config_policy import PolicyConfig
from fairlead.methods.experience import Experience, Part
from fairlead.methods.rewards import Objective, weights_of

# ------------------------------------------------------------------------------------------------- rewards


def rewards_of_step(step: Experience, objectives: Sequence[Objective], config: PolicyConfig) -> Experience:
    """`reward_R` (and `cost_R`, where there is a budget) from the judges' scores, shaped as the settings say."""
    raw_RK = step.raw_RK
    reward_R = shaping.combine(raw_RK, weights_of(objectives, "reward"))
    reward_R = shaping.scale_rewards(reward_R, std=config.reward_std)
    told: dict[str, float] = {}
    if config.reward_clip is not None:
        reward_R, clipped = shaping.clip_rewards(reward_R, low=config.reward_clip[0], high=config.reward_clip[1])
        told["rewards_clipped"] = float(clipped)
    if config.unfinished is not None:
        reward_R = shaping.unfinished(reward_R, step.ended_R, score=config.unfinished)
    if config.cushion is not None:
        penalty_R = shaping.overlong(step.count_R, limit=config.max_tokens, cushion=config.cushion)
        reward_R, told["overlong"] = reward_R + penalty_R, float((penalty_R < 0).sum())
    more = {"reward_R": reward_R}
    if config.cost_budget is not None:
        more["cost_R"] = shaping.combine(raw_RK, weights_of(objectives, "cost"))
    return step.with_more(told, **more)


# ---------------------------------------------------------------------------------------------- advantages


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Numbers that move with training. kl: the KL's coefficient. multiplier: of the cost, safe RLHF's lambda."""

    kl: float
    multiplier: float = 0.0


def kl_of_draw(step: Experience) -> Tensor:
    """log pi - log pi_ref of each drawn token, [N], nats, whose mean estimates a KL: of the policy that drew.

    Where that is the one that learns, under the trainer if it read them. Replies drawn by older weights say in the mean
    how far those are from the reference: the newer policy's log-probs of them would estimate KL(old || ref) less
    KL(old || new), which may fall below 0 while both grow.
    """
    if step.told.get("staleness"):
        return kl_estimators.k1(step.sampler_N, step.more["ref_N"])
    return kl_of_policy(step)


def kl_of_policy(step: Experience) -> Tensor:
    """The same of the policy that learns, [N]: what a reward is charged, whoever drew.

    Of replies of older weights it is no estimate; the loss weighs each token by `importance_N`, which makes its
    gradient that of KL(pi || ref) as far as it makes the reward's right (a token's ratio, up to the cap).
    """
    return kl_estimators.k1(step.more.get("old_N", step.sampler_N), step.more["ref_N"])


def advantages_of_step(
    step: Experience, objectives: Sequence[Objective], config: PolicyConfig, now: Coefficients
) -> Experience:
    """`adv_N`, and for a critic `target_NK`. Reads reward_R, and ref_N and value_NK where the settings need them."""
    if config.advantage == "pair":
        return step
    reward_R, group_R, reply_N = step.more["reward_R"], step.group_R, step.reply_N
    if config.advantage == "gae":
        return _gae(step, config, now)
    in_reward = config.kl > 0 and config.kl_in == "reward"
    if config.advantage == "reinforce_pp":
        kl_N = kl_of_policy(step) if in_reward else torch.zeros_like(step.sampler_N)
        token_N = shaping.token_rewards(reward_R, kl_N, step.count_R, beta=now.kl)
        return step.with_more(adv_N=adv.reinforce_pp(token_N, step.count_R))
    if config.advantage == "reinforce_pp_baseline":
        return step.with_more(adv_N=adv.reinforce_pp_baseline(reward_R, group_R, reply_N))
    if in_reward:
        reward_R = shaping.reply_rewards(reward_R, kl_of_policy(step), reply_N, beta=now.kl)
    if config.advantage == "group":
        adv_R = adv.group_centred(reward_R, group_R, scale=config.scale)
    elif config.advantage == "rloo":
        adv_R = adv.rloo(reward_R, group_R)
    elif config.advantage == "remax":
        adv_R = adv.remax(reward_R, step.more["greedy_P"], group_R)
    elif config.advantage == "gdpo":
        adv_R = adv.gdpo(step.raw_RK, weights_of(objectives, "reward"), group_R)
    elif config.advantage == "best":
        adv_R = adv.best_of_group(reward_R, group_R, keep=config.keep)
    else:
        adv_R = _nash(step, config)
    if config.cost_budget is not None:
        centre = adv.rloo if config.advantage == "rloo" else partial(adv.group_centred, scale=config.scale)
        adv_R = adv.lagrangian(adv_R, centre(step.more["cost_R"], group_R), multiplier=now.multiplier)
    return step.with_more(adv_N=adv_R[reply_N])


def _gae(step: Experience, config: PolicyConfig, now: Coefficients) -> Experience:
    """The critic's first column is the reward's value, the second the cost's."""
    in_reward = config.kl > 0 and config.kl_in == "reward"
    kl_N = kl_of_policy(step) if in_reward else torch.zeros_like(step.sampler_N)
    token_N = shaping.token_rewards(step.more["reward_R"], kl_N, step.count_R, beta=now.kl)
    estimate = partial(adv.gae, count_R=step.count_R, gamma=config.gamma, lam=config.lam)
    value_NK = step.more["value_NK"]
    adv_N, target_N = estimate(token_N, value_NK[:, 0])
    targets, known_R = [target_N], ~step.more["reward_R"].isnan()
    if config.cost_budget is not None:
        plain_N = shaping.token_rewards(step.more["cost_R"], torch.zeros_like(kl_N), step.count_R, beta=0.0)
        cost_N, target_N = estimate(plain_N, value_NK[:, 1])
        targets.append(target_N)
        known_R = known_R & ~step.more["cost_R"].isnan()
        adv_N = adv.lagrangian(adv_N, cost_N, multiplier=now.multiplier)
    known_N = known_R[step.reply_N]
    adv_N = adv.whiten(adv_N, known_N) if config.whiten else torch.where(known_N, adv_N, 0.0)
    return step.with_more(adv_N=adv_N, target_NK=torch.stack(targets, 1), known_N=known_N)


def _nash(step: Experience, config: PolicyConfig) -> Tensor:
    """The first reply of each pair is the policy's, the second the mixture's: it is compared with, not learnt from."""
    log_ratio_R = step.sum_R(kl_of_policy(step))
    adv_R = torch.zeros(step.replies, dtype=torch.float64)
    adv_R[::2] = adv.nash_md(step.more["win_P"], log_ratio_R[::2], tau=config.nash_tau)
    return adv_R


def own_R(step: Experience, config: PolicyConfig) -> Tensor:
    """Replies that the policy itself drew, [R] of bool: the second of a pair may be another's."""
    mine_R = torch.ones(step.replies, dtype=torch.bool)
    if config.advantage == "nash" or config.explore:
        mine_R[1::2] = False
    return mine_R


def learnt_R(step: Experience, config: PolicyConfig) -> Tensor:
    """Replies that the loss's mean runs over, [R] of bool. A reply without a reward is among them (advantages.py)."""
    every_R = torch.ones(step.replies, dtype=torch.bool)
    if config.advantage == "nash":
        every_R[1::2] = False
    if config.advantage == "best":
        every_R = step.sum_R(step.more["adv_N"].abs()) > 0
    return every_R


def signal_of(step: Experience, config: PolicyConfig) -> adv.Signal:
    """What the step's rewards can teach, group by group."""
    return adv.signal(step.more["reward_R"], step.group_R)


# ------------------------------------------------------------------------------------- a micro-batch's loss


@dataclass(frozen=True, slots=True)
class Counts:
    """Of the whole minibatch, over all processes: what means are divided by."""

    tokens: int
    replies: int
    pairs: int = 0


def policy_loss(
    logp: ReplyLogprobs,
    part: Part,
    step: Experience,
    config: PolicyConfig,
    counts: Counts,
    now: Coefficients,
    value_NK: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """This micro-batch's part of the step's loss, and sums for the record. Gradients flow through `logp`, `value_NK`.

    Where the step holds no old log-probs these are the first and only update's own, and stand for them.
    """
    logp_N = logp.logp_N
    known = step.more.get("old_N")
    old_N = logp_N.detach() if known is None else part.tokens(known, logp_N).to(logp_N)
    own_N = part.replies(own_R(step, config), logp_N)[logp.reply_N]
    far_N = (old_N.double() - part.tokens(step.sampler_N, logp_N)).abs()[own_N]
    lead_N = logp_N.detach() - old_N
    sums = {
        "scored": float(len(far_N)),
        "mismatch": float(far_N.sum()),
        "moved": float(kl_estimators.k3(old_N, logp_N.detach()).double()[own_N].sum()),  # KL(old || new)
    }
    if config.advantage == "pair":
        loss, more = _pair_loss(logp, part, step, config, counts)
        return loss, sums | more
    share_N = _shares(logp, part, step, config, counts)
    adv_N = part.tokens(step.more["adv_N"], logp_N)
    weight_N = share_N
    if "importance_N" in step.more:
        weight_N = share_N * part.tokens(step.more["importance_N"], logp_N)
    loss = loss_of.weighted_sum(_surrogate(logp, old_N, adv_N, config), weight_N)
    clip = partial(loss_of.clipped_away, low=config.clip_low, high=config.clip_high)
    sums["clipped"] = float(clip(lead_N, adv_N.to(lead_N)).sum()) if config.loss == "clipped" else 0.0
    if config.kl and config.kl_in == "loss":
        ref_N = part.tokens(step.more["ref_N"], logp_N).to(logp_N)
        kl_N = getattr(kl_estimators, config.kl_estimator)(logp_N, ref_N)
        if config.kl_reweighted:
            kl_N = kl_estimators.reweighted(kl_N, logp_N - old_N)
        loss = loss + loss_of.weighted_sum(now.kl * kl_N, weight_N)  # an estimate is of who drew: weighed like the rest
    if config.entropy:
        assert logp.entropy_N is not None
        loss = loss + loss_of.weighted_sum(loss_of.entropy_bonus(logp.entropy_N, coef=config.entropy), share_N)
    if logp.entropy_N is not None:
        sums["entropy"] = float(logp.entropy_N.detach().sum())
    if value_NK is not None:
        value, sums["value_loss"] = _value_loss(value_NK, part, step, config, counts)
        loss = loss + value
    return loss, sums


def _surrogate(logp: ReplyLogprobs, old_N: Tensor, adv_N: Tensor, config: PolicyConfig) -> Tensor:
    """The policy's own term, one number per token: the third column of the table in losses_policy.py."""
    logp_N = logp.logp_N
    clipped = partial(loss_of.clipped, low=config.clip_low, high=config.clip_high, ceiling=config.clip_ceiling)
    if config.loss == "clipped":
        return clipped(logp_N - old_N, adv_N)
    if config.loss == "clipped_reply":
        return clipped(loss_of.reply_log_ratio(logp_N, old_N, logp.reply_N, logp.count_R), adv_N)
    if config.loss == "clipped_reply_token":
        return clipped(loss_of.reply_log_ratio_token(logp_N, old_N, logp.reply_N, logp.count_R), adv_N)
    if config.loss == "cispo":
        assert config.clip_ceiling is not None
        return loss_of.cispo(logp_N - old_N, logp_N, adv_N, ceiling=config.clip_ceiling)
    if config.loss == "reinforce":
        return loss_of.reinforce(logp_N, adv_N)
    return loss_of.reinforce_reply(logp_N, old_N, adv_N, logp.reply_N, logp.count_R)


def _shares(logp: ReplyLogprobs, part: Part, step: Experience, config: PolicyConfig, counts: Counts) -> Tensor:
    """Each token's share of the step's mean, 0 for replies that it does not run over."""
    if config.share == "tokens":
        share_N = loss_of.token_shares(logp.reply_N, tokens=counts.tokens)
    elif config.share == "replies":
        share_N = loss_of.reply_shares(logp.reply_N, logp.count_R, replies=counts.replies)
    elif config.share == "reply_sums":
        share_N = loss_of.reply_sum_shares(logp.reply_N, replies=counts.replies)
    else:
        share_N = loss_of.constant_shares(logp.reply_N, replies=counts.replies, length=config.max_tokens)
    learnt = part.replies(learnt_R(step, config), logp.logp_N)
    return torch.where(learnt[logp.reply_N], share_N, 0.0)


def _value_loss(
    value_NK: Tensor, part: Part, step: Experience, config: PolicyConfig, counts: Counts
) -> tuple[Tensor, float]:
    """The critic's loss, a mean over the minibatch's tokens; none where a reward is missing."""
    keep_N = part.tokens(step.more["known_N"], value_NK).to(value_NK)
    total = value_NK.new_zeros(())
    for k in range(value_NK.shape[1]):
        old_N, target_N = (
            part.tokens(step.more[name][:, k], value_NK).to(value_NK) for name in ("value_NK", "target_NK")
        )
        each_N = loss_of.value_loss(value_NK[:, k], old_N, target_N, clip=config.value_clip)
        total = total + (each_N * keep_N).sum()
    return total / counts.tokens, float(total.detach())


# -------------------------------------------------------------------------------------------- fresh pairs


def pairs_of(reward_R: Tensor, group_R: Tensor) -> Tensor:
    """The best and the worst reply of each group whose rewards are not all alike, [B, 2]; missing ones take no part."""
    found = []
    for group in range(int(group_R.max()) + 1 if len(group_R) else 0):
        members = ((group_R == group) & ~reward_R.isnan()).nonzero()[:, 0]
        if len(members) < 2:
            continue
        best, worst = members[reward_R[members].argmax()], members[reward_R[members].argmin()]
        if reward_R[best] > reward_R[worst]:
            found.append([int(best), int(worst)])
    return torch.tensor(found, dtype=torch.long).view(-1, 2)


def _pair_loss(
    logp: ReplyLogprobs, part: Part, step: Experience, config: PolicyConfig, counts: Counts
) -> tuple[Tensor, dict[str, float]]:
    """Online DPO on the pairs whose replies lie in this micro-batch, and XPO's bonus on the reference's replies."""
    sum_R = logp.sum_R()
    ref_R = part.replies(step.sum_R(step.more["ref_N"]), sum_R).to(sum_R)
    place = {reply: i for i, reply in enumerate(part.at_R.tolist())}
    pairs = [(place[a], place[b], a, b) for a, b in step.more["pair_B2"].tolist() if a in place]
    sums = {"pairs": float(len(pairs)), "margin": 0.0}
    loss = 0.0 * sum_R.sum()
    if pairs:
        first, second = torch.tensor([p[:2] for p in pairs], device=sum_R.device).T
        reward_R = step.more["reward_R"]
        gap_B = torch.stack([reward_R[a] - reward_R[b] for _, _, a, b in pairs]).to(sum_R)
        label_B = torch.sigmoid(gap_B) if config.pair_soft else torch.ones_like(gap_B)
        lead_R = sum_R - ref_R
        each_B = losses.soft(partial(losses.sigmoid, beta=config.pair_beta), lead_R[first], lead_R[second], label_B)
        loss = loss + each_B.sum() / max(counts.pairs, 1)
        sums["margin"] = config.pair_beta * float((lead_R[first] - lead_R[second]).detach().sum())
    if config.explore:
        explored_R = part.at_R.to(sum_R.device) % 2 == 1  # the second of each group is the reference's
        bonus_B = loss_of.xpo_bonus(sum_R[explored_R], alpha=config.explore)
        loss = loss + bonus_B.sum() / max(counts.replies // 2, 1)
    return loss, sums


def counts_of(step: Experience, prompts: Sequence[int], config: PolicyConfig) -> Counts:
    """What a minibatch's means are divided by: its replies and tokens, skipped groups among them."""
    among_R = torch.isin(step.group_R, torch.tensor(list(prompts)))
    learnt = among_R if config.advantage == "pair" else among_R & learnt_R(step, config)
    pairs = step.more.get("pair_B2")
    mine = 0 if pairs is None else int(among_R[pairs[:, 0]].sum()) if len(pairs) else 0
    return Counts(max(int(step.count_R[learnt].sum()), 1), max(int(learnt.sum()), 1), mine)
