"""Advantages as pure functions of rewards, groups, values and counts. No model, no mask, no configuration.

Axes: N scored tokens (reply after reply, as in engine/logprobs.py), R replies, P prompts, K objectives. `reply_N` names
the reply of a token, `count_R` its scored tokens, `group_R` the prompt of a reply. All of it runs on a whole step
before the step is cut into micro-batches, without gradient, in float64. Groups are never split over processes;
statistics of the step are, and take `total`, which adds a tensor up over the processes (engine/parallel.py; by default
the process is alone). The result is one number per reply; `adv_R[reply_N]` spreads it over the tokens.

A missing reward (NaN) is left out of its group's mean and spread as if the reply had not been drawn. The reply itself
gets advantage 0, as if it had turned out average: it pulls nowhere, and counts in the loss's denominators as before. A
group with fewer than two known rewards has nothing to compare, and a group whose rewards are all alike nothing to say:
advantages there are exactly 0, never rounding divided by rounding. `signal` counts all three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]


def alone(values: Tensor) -> Tensor:
    """The sum over the processes of a run that has one."""
    return values


# ------------------------------------------------------------------------------------------- groups of replies


def group_centred(reward_R: Tensor, group_R: Tensor, *, scale: bool = True, ddof: int = 1, eps: float = 1e-4) -> Tensor:
    """GRPO's advantage, [R]: (reward - group mean) / (group std + eps). Shao et al. 2024 (2402.03300), section 4.1.2.

    The paper says neither which std nor which eps; with ddof 1 (n - 1 in its denominator) and 1e-4 it is TRL's. With
    `scale` False the mean alone is taken off: Dr. GRPO (Liu et al. 2025, arXiv 2503.20783), since dividing by the std
    gives more weight to prompts that are nearly always or nearly never solved.
    """
    if ddof not in (0, 1) or not eps > 0:
        raise ValueError(f"ddof {ddof}, eps {eps}: ddof is 0 or 1, and eps above 0 keeps a tiny std from dividing")
    stats = _stats(reward_R, group_R)
    if not scale:
        return stats.centred_R
    square_P = torch.zeros_like(stats.count_P).index_add(0, group_R, stats.centred_R.square())
    std_P = (square_P / (stats.count_P - ddof).clamp_min(1)).sqrt()
    return stats.centred_R / (std_P + eps)[group_R]


def rloo(reward_R: Tensor, group_R: Tensor) -> Tensor:
    """REINFORCE leave-one-out, [R]: reward - mean of the others of its group. Ahmadian et al. 2024 (arXiv 2402.14740).

    With n known rewards this is n / (n - 1) times the distance from the mean of all.
    """
    stats = _stats(reward_R, group_R)
    return stats.centred_R * (stats.count_P / (stats.count_P - 1).clamp_min(1))[group_R]


def remax(reward_R: Tensor, greedy_P: Tensor, group_R: Tensor) -> Tensor:
    """ReMax, [R]: reward - reward of the prompt's greedy reply. Li et al. 2023 (arXiv 2310.10505), algorithm 1.

    `greedy_P` are rewards of replies decoded at temperature 0, which are not trained on. Missing on either side: 0.
    """
    lead_R = reward_R.double() - greedy_P.double()[group_R]
    return torch.where(lead_R.isnan(), 0.0, lead_R)


def best_of_group(reward_R: Tensor, group_R: Tensor, *, keep: int = 1) -> Tensor:
    """1 for the `keep` replies of highest reward in each group, else 0, [R]: expert iteration.

    Imitating one's own best replies is REINFORCE with this advantage (Anthony et al. 2017, arXiv 1705.08439; Gulcehre
    et al. 2023, arXiv 2308.08998). Of equal rewards the reply drawn first is taken; a group without signal gives 0.
    """
    moving_R = _stats(reward_R, group_R).centred_R != 0
    best_R = torch.zeros_like(reward_R, dtype=torch.float64)
    for group in sorted(set(group_R[moving_R].tolist())):
        members = (group_R == group).nonzero()[:, 0]
        value = torch.where(reward_R[members].isnan(), -torch.inf, reward_R[members])
        order = members[torch.sort(value, descending=True, stable=True).indices]
        best_R[order[:keep]] = 1.0
    return torch.where(reward_R.isnan(), 0.0, best_R)


def gdpo(
    reward_RK: Tensor,
    weight_K: Tensor,
    group_R: Tensor,
    *,
    ddof: int = 1,
    eps: float = 1e-4,
    total: Total = alone,
) -> Tensor:
    """GDPO, [R]: each objective normalised within its group, then the weighted sum, then over the step.

    Liu et al. 2026 (arXiv 2601.05242). Objectives in different units, or of which one hardly varies, keep their say;
    the sum normalised as one loses which objective made the difference. A missing objective counts as average for its
    reply; a reply with none known stays out of the step's statistics and gets 0.
    """
    used = (weight_K != 0).nonzero()[:, 0].tolist()
    if reward_RK.ndim != 2 or reward_RK.shape[1] != len(weight_K) or not used:
        raise ValueError(
            f"{len(weight_K)} weights ({len(used)} of them not 0) for rewards of shape {tuple(reward_RK.shape)}: give "
            "one per objective, at least one not 0"
        )
    parts = [weight_K[k].double() * group_centred(reward_RK[:, k], group_R, ddof=ddof, eps=eps) for k in used]
    known_R = ~reward_RK[:, used].isnan().all(1)
    return whiten(torch.stack(parts).sum(0), known_R, ddof=ddof, eps=eps, total=total)


def lagrangian(reward_adv: Tensor, cost_adv: Tensor, *, multiplier: float) -> Tensor:
    """Safe RLHF's advantage, shape as given: (A_reward - lambda A_cost) / (1 + lambda). Dai et al. 2023 (2310.12773).

    Each side has its own value function or group; the division keeps the size of a step as lambda grows. Lambda itself
    follows `multipliers.ascended`.
    """
    if not multiplier >= 0:
        raise ValueError(f"multiplier is {multiplier}: a constraint's multiplier is never below 0")
    return (reward_adv - multiplier * cost_adv) / (1 + multiplier)


def nash_md(win_R: Tensor, log_ratio_R: Tensor, *, tau: float) -> Tensor:
    """Nash-MD-PG's advantage, [R]: P(y beats y') - 1/2 - tau log(pi(y) / mu(y)). Munos et al. 2023 (2312.00886), s. 7.

    y is the policy's reply, y' one drawn from the mixture (`losses_policy.nash_mixture`), `win_R` the comparer's
    probability that y is better, `log_ratio_R` the reply's log-ratio to the reference, nats. Missing: 0.
    """
    return torch.where(win_R.isnan(), 0.0, win_R.double() - 0.5 - tau * log_ratio_R.detach().double())


# --------------------------------------------------------------------------------------------- the whole step


def whiten(
    values_N: Tensor,
    keep_N: Tensor | None = None,
    *,
    keep_mean: bool = False,
    ddof: int = 1,
    eps: float = 1e-8,
    total: Total = alone,
) -> Tensor:
    """(values - mean) / (std + eps) over the kept values of the step, [N] or [R]; 0 where not kept.

    PPO's advantages over all tokens of a step, REINFORCE++'s, GDPO's over replies. `keep_mean` puts the mean back on,
    as Ziegler et al. 2019 do with rewards. A std below 1e-12 of the mean is rounding, and gives 0 (the mean, if kept).
    Raises ValueError where nothing is kept on any process.
    """
    if ddof not in (0, 1) or not eps > 0:
        raise ValueError(f"ddof {ddof}, eps {eps}: ddof is 0 or 1, and eps above 0 keeps a tiny std from dividing")
    keep_N = torch.ones_like(values_N, dtype=torch.bool) if keep_N is None else keep_N
    x_N = torch.where(keep_N, values_N.detach().double(), 0.0)
    count, summed = total(torch.stack([keep_N.sum().double(), x_N.sum()])).tolist()
    if not count:
        raise ValueError("nothing to whiten: no reply of this step has a known reward")
    mean = summed / count
    apart_N = torch.where(keep_N, x_N - mean, 0.0)
    square = float(total(apart_N.square().sum()))
    std = (square / max(count - ddof, 1.0)) ** 0.5
    scaled_N = apart_N / (std + eps) if std > 1e-12 * abs(mean) else torch.zeros_like(apart_N)
    return torch.where(keep_N, scaled_N + mean, 0.0) if keep_mean else scaled_N


def reinforce_pp(reward_N: Tensor, count_R: Tensor, *, total: Total = alone) -> Tensor:
    """REINFORCE++, [N]: the sum of rewards to come, normalised over all tokens of the step. No critic, no groups.

    Hu et al. 2025 (arXiv 2501.03262): A_t = r(y) - beta sum of KL from t on. `reward_N` comes from
    `shaping.token_rewards`.
    """
    return whiten(reward_to_go(reward_N, count_R), _known(reward_N, count_R), total=total)


def reinforce_pp_baseline(reward_R: Tensor, group_R: Tensor, reply_N: Tensor, *, total: Total = alone) -> Tensor:
    """REINFORCE++ with a baseline, [N]: off the group's mean, over the std of the whole step's tokens. Same paper.

    A group's own std depends on the reward it divides; the step's hardly does. Its KL term sits in the loss (k2).
    """
    centred_R = group_centred(reward_R, group_R, scale=False)
    return whiten(centred_R[reply_N], ~reward_R.isnan()[reply_N], total=total)


# ------------------------------------------------------------------------------------------- rewards over time


def gae(
    reward_N: Tensor,
    value_N: Tensor,
    count_R: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    after_R: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation and the value function's targets, [N] each: Schulman et al. 2015 (1506.02438).

        delta_t = r_t + gamma V_(t+1) - V_t        A_t = delta_t + gamma lam A_(t+1)        target = A_t + V_t

    Eq. 16 as a recursion. `value_N[t]` is the value before token t (`heads.score_values(at="before")`). `after_R` is
    the value behind a reply's last token, that is V_(t+1) there: 0 (the default) for a reply that ended, and for a cut
    one whose reward was given for it as it stands; the value head's reading at its end (`at="end"`) for a cut one that
    would have gone on. gamma counts scored tokens: what a tool said in between takes no time. A reply with a missing
    reward gets advantages of 0 and its values as targets; keep it out of `whiten` (`keep_N`), and give it no weight in
    the value loss.
    """
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma {gamma}, lam {lam}: both lie in [0, 1]")
    if not len(reward_N) == len(value_N) == int(count_R.sum()):
        raise ValueError(f"{len(reward_N)} rewards, {len(value_N)} values, {int(count_R.sum())} tokens: one of each")
    reward_N, value_N = reward_N.detach().double(), value_N.detach().double()
    adv_N = torch.zeros_like(reward_N)
    next_R = value_N.new_zeros(len(count_R)) if after_R is None else after_R.detach().double().clone()
    run_R = torch.zeros_like(next_R)
    first_R = count_R.cumsum(0) - count_R
    for t in range(int(count_R.max()) - 1 if len(count_R) else -1, -1, -1):  # from the last tokens back, all replies
        live_L = (count_R > t).nonzero()[:, 0]  # those that have a token t
        at_L = first_R[live_L] + t
        delta_L = reward_N[at_L] + gamma * next_R[live_L] - value_N[at_L]
        run_R[live_L] = adv_N[at_L] = delta_L + gamma * lam * run_R[live_L]
        next_R[live_L] = value_N[at_L]
    adv_N = torch.where(_known(reward_N, count_R), adv_N, 0.0)
    return adv_N, adv_N + value_N


def reward_to_go(reward_N: Tensor, count_R: Tensor, *, gamma: float = 1.0) -> Tensor:
    """The discounted sum of a token's reward and those after it in its reply, [N]; 0 where the reward is missing."""
    return gae(reward_N, torch.zeros_like(reward_N), count_R, gamma=gamma, lam=1.0)[0]


def _known(reward_N: Tensor, count_R: Tensor) -> Tensor:
    """Tokens of replies in which no reward is missing, [N]."""
    reply_N = torch.repeat_interleave(torch.arange(len(count_R), device=count_R.device), count_R)
    return (count_R.new_zeros(len(count_R)).index_add(0, reply_N, reward_N.isnan().to(count_R)) == 0)[reply_N]


# --------------------------------------------------------------------------------------- what there is to learn


@dataclass(frozen=True, slots=True)
class Signal:
    """What the rewards of a step can teach. `informative_P`: two known rewards that differ, at least.

    DAPO's dynamic sampling keeps these groups and draws others in the place of the rest (Yu et al. 2025, arXiv
    2503.14476, eq. 11, whose rewards are right and wrong).
    """

    informative_P: Tensor
    missing: int
    lonely: int
    flat: int


def signal(reward_R: Tensor, group_R: Tensor) -> Signal:
    """Missing rewards; groups with fewer than two known ones (lonely); groups whose rewards are all alike (flat)."""
    stats = _stats(reward_R, group_R)
    lonely_P = stats.count_P < 2
    flat_P = stats.flat_P & ~lonely_P
    return Signal(~(lonely_P | flat_P), int(reward_R.isnan().sum()), int(lonely_P.sum()), int(flat_P.sum()))


def idle_groups(adv_N: Tensor, reply_N: Tensor, group_R: Tensor, *, other_terms: bool) -> Tensor:
    """Groups whose forward pass may be skipped, [P] of bool: every advantage 0, and nothing else in the loss.

    With a KL, entropy or value term (`other_terms`) each token has a gradient, so none is skipped. Skipping changes no
    denominator: those count the whole step.
    """
    groups = int(group_R.max()) + 1 if len(group_R) else 0
    moving_P = group_R.new_zeros(groups).index_add(0, group_R[reply_N], (adv_N != 0).to(group_R))
    return torch.zeros_like(moving_P, dtype=torch.bool) if other_terms else moving_P == 0


@dataclass(frozen=True, slots=True)
class _Stats:
    """Known rewards of each group: how many, whether all are alike; and each one's distance from its group's mean."""

    count_P: Tensor
    flat_P: Tensor
    centred_R: Tensor


def _stats(reward_R: Tensor, group_R: Tensor) -> _Stats:
    if reward_R.shape != group_R.shape or reward_R.ndim != 1:
        raise ValueError(f"rewards {tuple(reward_R.shape)}, groups {tuple(group_R.shape)}: give each reply one of both")
    if bool(reward_R.isinf().any()):
        raise ValueError(f"reply {int(reward_R.isinf().nonzero()[0, 0])}: the reward is infinite")
    groups = int(group_R.max()) + 1 if len(group_R) else 0
    known_R = ~reward_R.isnan()
    x_R = torch.where(known_R, reward_R.detach().double(), 0.0)
    zero_P = torch.zeros(groups, dtype=torch.float64, device=reward_R.device)
    count_P = zero_P.index_add(0, group_R, known_R.double())
    mean_P = zero_P.index_add(0, group_R, x_R) / count_P.clamp_min(1)
    low_P = zero_P.scatter_reduce(0, group_R[known_R], x_R[known_R], "amin", include_self=False)
    high_P = zero_P.scatter_reduce(0, group_R[known_R], x_R[known_R], "amax", include_self=False)
    flat_P = low_P == high_P  # also with one known reward, or none
    return _Stats(count_P, flat_P, torch.where(known_R & ~flat_P[group_R], x_R - mean_P[group_R], 0.0))
