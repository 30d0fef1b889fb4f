"""The settings of reinforcement learning, free of torch, and the algorithms by name.

An algorithm is an advantage, a loss and a share (the table at the head of losses_policy.py); a name stands for some
settings under which it is known, and any of them may be overridden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fairlead.methods.config import NotNegative, Positive, Training
from fairlead.methods.config_reference import Pace

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Discount = Annotated[float, Field(ge=0, le=1)]


class PolicyConfig(Training):
    """Reinforcement learning from judges; see `Training` for the other fields. A step is one set of fresh replies.

    Give `steps` (sets of fresh replies), or `epochs` (passes over the prompts).

    steps              sets of fresh replies, in place of epochs
    epochs             passes over the prompts; a fraction will do
    too_long           what becomes of prompts that leave no room for a whole reply; skip is counted, cut is refused
    prompts_per_step   prompts of a step
    replies            replies drawn to each of them: the group
    max_tokens         longest reply
    temperature        they are drawn at; all log-probs are taken at it
    top_p, top_k       cut the distribution they are drawn from. Log-probs stay those of the whole, so ratios, the KL
                       and the gradient are then off by the kept mass (a warning says so)
    stop               texts at which a reply ends
    passes             times a step's replies are learnt from
    minibatches        optimiser steps of each such pass
    old_logprobs       of the weights that drew the replies. recompute: a pass of the trainer's own before the first
                       update. update: where a reply is used once, the update's own pass stands for it, and a KL in
                       the reward reads the sampler's log-probs. auto: update where it can be and the sampler is exact

    advantage          group, rloo, remax, gae (a critic), reinforce_pp, reinforce_pp_baseline, gdpo, best (the group's
                       highest reward: expert iteration), pair (best against worst: online DPO), nash
    scale              of group: divide by the group's std
    keep               of best: how many of a group are kept
    loss               clipped, clipped_reply (GSPO), clipped_reply_token, cispo, reinforce, reinforce_reply
    share              what the mean runs over: tokens, replies (their means), reply_sums, constant (max_tokens)
    clip_low           how far below 1 a ratio of policies may be
    clip_high          how far above 1 it may be
    clip_ceiling       bound of the ratio where the advantage is negative; CISPO's bound

    kl                 coefficient of the KL to the reference; 0 for none
    kl_in              loss, or reward (k1 then)
    kl_estimator       of kl_in: loss (kl_estimators.py says which gradient each one has)
    kl_reweighted      of kl_in: loss: times the policy's ratio
    kl_target          nats per reply that an adaptive coefficient steers to; None for a fixed one
    watch_kl           measure the KL every step also where nothing needs it (a pass of the reference)
    entropy            weight of an entropy bonus
    reference          start: the model as it comes in, for good. reset: the policy anew, every so many steps. ema: it
                       is drawn after the policy
    reference_every    of reference: reset: steps between two resets
    reference_rate     of reference: ema: how far it moves to the policy at each step

    gamma              of gae: the discount of what comes later
    lam                of gae: how far to trust rewards over the value function
    whiten             of gae: advantages to mean 0 and variance 1 over the step's tokens
    value_rate         the critic's learning rate over the policy's
    value_clip         range of a value around its old one; None for none
    ptx                weight of the pretraining rows' NLL (PPO-ptx)
    ptx_rows           pretraining rows of each optimiser step

    unfinished         reward of replies that never ended (the EOS trick); None leaves the judge's
    overlong           DAPO's cushion: the last share of max_tokens, over which a penalty grows to -1; None for none
    reward_clip        bounds of the reward; None for none
    reward_std         rewards are divided by this number
    resample           DAPO's dynamic sampling: rounds of other prompts in the place of groups with nothing to say
    importance_cap     correct for a sampler that is no exact copy of the trainer, and for replies of older weights
                       (asynchronous): truncated importance weights up to this ratio, on the policy's term and on a KL
                       in the loss. None for none
    mismatch_bound     mean |difference| of log-probs, nats, above which that correction is made; 0 for always

    pair_beta          of pair: DPO's beta
    pair_soft          of pair: label by the sigmoid of the rewards' difference, in the place of 1
    explore            of pair: XPO's alpha. The second reply is then the reference's
    nash_mix           of nash: the opponent's share of the reference
    nash_tau           of nash: weight of the KL

    cost_budget        safe RLHF: mean cost that the multiplier holds (objectives with role cost); None for none
    cost_rate          of the multiplier: how fast it follows the cost
    cost_start         where the multiplier starts
    cost_highest       the highest that it may be

    asynchronous       the next step's replies are drawn while this one is learnt from, by weights one step older; what
                       is told of them, KL and reward, is of those, and the gradient corrected (importance_cap)
    spike              as in `Training`, but None: a group with nothing to say has no gradient, so that none is usual
    loss_spike         None: a policy's loss is around 0 however well it does. These two say how it does:
    kl_burst           stop where the KL exceeds this many nats per drawn token (mean of the step)
    reward_cliff       stop where the mean reward falls more than this many standard deviations of the last 16 steps'
                       means below their mean, for 3 steps; None for never
    """

    loss_is_progress: ClassVar[bool] = False

    prompts_per_step: Count = 8
    replies: Count = 8
    max_tokens: Count = 128
    temperature: Positive = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Count | None = None
    stop: tuple[str, ...] = ()
    passes: Count = 1
    minibatches: Count = 1
    old_logprobs: Literal["auto", "recompute", "update"] = "auto"

    advantage: Literal[
        "group", "rloo", "remax", "gae", "reinforce_pp", "reinforce_pp_baseline", "gdpo", "best", "pair", "nash"
    ] = "group"
    scale: bool = True
    keep: Count = 1
    loss: Literal["clipped", "clipped_reply", "clipped_reply_token", "cispo", "reinforce", "reinforce_reply"] = (
        "clipped"
    )
    share: Literal["tokens", "replies", "reply_sums", "constant"] = "replies"
    clip_low: Share = 0.2
    clip_high: Positive = 0.2
    clip_ceiling: Positive | None = None

    kl: NotNegative = 0.0
    kl_in: Literal["loss", "reward"] = "loss"
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_reweighted: bool = False
    kl_target: Positive | None = None
    watch_kl: bool = True
    entropy: NotNegative = 0.0
    reference: Literal["start", "reset", "ema"] = "start"
    reference_every: Count = 100
    reference_rate: Share = 0.01

    gamma: Discount = 1.0
    lam: Discount = 0.95
    whiten: bool = True
    value_rate: Positive = 1.0
    value_clip: Positive | None = 0.2
    ptx: NotNegative = 0.0
    ptx_rows: Count = 32

    unfinished: float | None = None
    overlong: Annotated[float, Field(gt=0, le=1)] | None = None
    reward_clip: tuple[float, float] | None = None
    reward_std: Positive = 1.0
    resample: Annotated[int, Field(ge=0)] = 0
    importance_cap: Annotated[float, Field(gt=1)] | None = 2.0
    mismatch_bound: NotNegative = 1e-3

    pair_beta: Positive = 0.1
    pair_soft: bool = False
    explore: NotNegative = 0.0
    nash_mix: Discount = 0.125
    nash_tau: NotNegative = 0.1

    cost_budget: Annotated[float, Field(allow_inf_nan=False)] | None = None
    cost_rate: Positive = 0.1
    cost_start: Positive = 1.0
    cost_highest: Positive = 10.0

    asynchronous: bool = False
    kl_burst: Positive = 1.0
    reward_cliff: Positive | None = 6.0

    lr: Positive = 1e-6
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    schedule: Literal["linear", "cosine", "constant"] = "constant"
    spike: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    loss_spike: None = None

    @property
    def updates(self) -> int:
        """Optimiser steps of a step."""
        return self.passes * self.minibatches

    @property
    def cushion(self) -> int | None:
        """Tokens before `max_tokens` that `overlong` is about."""
        return None if self.overlong is None else max(1, round(self.overlong * self.max_tokens))

    @property
    def reference_pace(self) -> Pace | None:
        if self.reference == "start":
            return None
        return Pace(self.reference_every) if self.reference == "reset" else Pace(1, self.reference_rate)

    @property
    def needs_reference(self) -> bool:
        return bool(self.kl or self.watch_kl or self.kl_target or self.advantage in ("pair", "nash") or self.explore)

    @property
    def other_terms(self) -> bool:
        """Whether a reply of advantage 0 still has a gradient."""
        return bool((self.kl and self.kl_in == "loss") or self.entropy or self.advantage in ("gae", "pair"))

    @model_validator(mode="after")
    def _can_learn(self) -> Self:
        for problem in _problems(self):
            raise ValueError(problem)
        return self


def _problems(c: PolicyConfig) -> list[str]:
    """What is wrong with these settings, each as a sentence that says what to do."""
    given = c.model_fields_set
    comparing = c.advantage in ("group", "rloo", "reinforce_pp_baseline", "gdpo", "best", "pair")
    reward_kl = ("rloo", "remax", "gae", "reinforce_pp")
    found = [
        ("rows_per_step" in given or "tokens_per_step" in given)
        and "a step's size is prompts_per_step x replies; rows_per_step and tokens_per_step belong to fixed data",
        c.too_long == "cut" and "too_long: cut: a prompt is never cut; refuse, or skip (counted)",
        comparing and c.replies < 2
        and f"advantage: {c.advantage} compares the replies of a prompt; replies is {c.replies}, give at least 2",
        c.advantage == "best" and c.keep >= c.replies
        and f"keep is {c.keep} of {c.replies} replies: nothing is left out",
        c.minibatches > c.prompts_per_step
        and f"{c.minibatches} minibatches of {c.prompts_per_step} prompts: a group is never split over them",
        c.old_logprobs == "update" and c.updates > 1
        and "old_logprobs: update needs passes and minibatches of 1: later updates are on other weights",
        c.old_logprobs == "update" and c.asynchronous
        and "old_logprobs: update, but asynchronous replies are of older weights: give recompute, or leave it to auto",
        c.kl_in == "reward" and c.kl > 0 and c.advantage not in reward_kl
        and f"kl_in: reward belongs to advantage: {', '.join(reward_kl)}; with {c.advantage} put it in the loss",
        c.kl_in == "reward" and "kl_estimator" in given and c.kl_estimator != "k1"
        and f"kl_estimator {c.kl_estimator} in the reward gives a wrong gradient; only k1 belongs there",
        c.kl_target is not None and not c.kl and "kl_target steers the coefficient kl: give it a start above 0",
        c.clip_ceiling is not None and c.clip_ceiling <= 1 + c.clip_high
        and f"clip_ceiling is {c.clip_ceiling}: it must lie above 1 + clip_high",
        c.loss == "cispo" and c.clip_ceiling is None and "loss: cispo needs clip_ceiling (the paper's 1 + eps_high)",
        c.reward_clip is not None and not c.reward_clip[0] < c.reward_clip[1]
        and f"reward_clip {c.reward_clip}: the lower bound comes first",
        c.resample and not comparing and f"resample replaces groups without signal; advantage: {c.advantage} has none",
        c.explore and c.advantage != "pair" and "explore (XPO) belongs to advantage: pair",
        c.explore and c.replies != 2 and "explore (XPO) pairs one reply with one of the reference's: replies is 2",
        c.advantage == "nash" and c.replies != 2
        and "advantage: nash pairs a reply with one of the mixture: replies is 2",
        c.advantage == "pair" and c.updates > 1 and c.kl_in == "reward" and "kl_in: reward has no place beside pairs",
        c.advantage == "gdpo" and (c.unfinished is not None or c.overlong is not None or c.reward_clip is not None)
        and "advantage: gdpo normalises each objective by itself: unfinished, overlong and reward_clip shape their sum",
        c.asynchronous and (c.advantage == "nash" or c.explore)
        and "asynchronous: the opponent's weights would move while it draws; nash and explore draw on the spot",
        c.asynchronous and c.resample and "resample draws again on the spot: it has no place beside asynchronous",
        c.lora is not None and c.reference == "ema"
        and "reference: ema under lora would mix the adapters' factors, and that is no mix of weights: take reset",
        c.shard and c.reference != "start" and "shard leaves the reference whole: only reference: start goes with it",
        c.shard and c.lora is not None and "shard splits weights that train, and lora trains few: take one of the two",
        c.cost_start > c.cost_highest and f"cost_start {c.cost_start} lies above cost_highest {c.cost_highest}",
        c.cost_budget is not None and c.advantage not in ("group", "rloo", "gae")
        and f"cost_budget belongs to advantage: group, rloo or gae, not {c.advantage}",
    ]  # fmt: skip
    return [problem for problem in found if problem]


@dataclass(frozen=True, slots=True)
class Algorithm:
    """An algorithm by name: one line on it, and the settings under which it is known."""

    summary: str
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, given: Mapping[str, Any]) -> PolicyConfig:
        """The configuration. Raises pydantic's `ValidationError` for settings that cannot work."""
        return PolicyConfig(**{**self.defaults, **given})


_SUMS: dict[str, Any] = {"share": "reply_sums", "kl": 0.05, "kl_in": "reward"}
_PPO: dict[str, Any] = {
    "advantage": "gae", "share": "tokens", "kl": 0.05, "kl_in": "reward", "replies": 1, "prompts_per_step": 64,
    "passes": 4, "minibatches": 1,
}  # fmt: skip

ALGORITHMS: Mapping[str, Algorithm] = {
    "ppo": Algorithm("proximal policy optimisation, with a critic", _PPO),
    "grpo": Algorithm("group-relative policy optimisation", {"kl": 0.04}),
    "dr-grpo": Algorithm("GRPO without its two biases", {"scale": False, "share": "constant"}),
    "dapo": Algorithm(
        "clip-higher, dynamic sampling, overlong shaping",
        {"share": "tokens", "clip_high": 0.28, "resample": 3, "overlong": 0.2},
    ),
    "gspo": Algorithm("ratios of whole replies", {"loss": "clipped_reply", "clip_low": 3e-4, "clip_high": 4e-4}),
    "cispo": Algorithm("clipped importance weights", {"loss": "cispo", "share": "tokens", "clip_ceiling": 5.0}),
    "rloo": Algorithm("REINFORCE, leave one out", {"advantage": "rloo", "loss": "reinforce_reply", **_SUMS}),
    "remax": Algorithm(
        "REINFORCE against the greedy reply", {"advantage": "remax", "loss": "reinforce", "replies": 1, **_SUMS}
    ),
    "reinforce++": Algorithm(
        "REINFORCE normalised over the step",
        {"advantage": "reinforce_pp", "share": "tokens", "kl": 0.01, "kl_in": "reward", "replies": 1,
         "prompts_per_step": 64},
    ),
    "reinforce++-baseline": Algorithm(
        "the same, off the group's mean",
        {"advantage": "reinforce_pp_baseline", "share": "tokens", "kl": 0.01, "kl_estimator": "k2"},
    ),
    "expert": Algorithm(
        "imitate the best of each group (rejection sampling)",
        {"advantage": "best", "loss": "reinforce", "share": "tokens"},
    ),
    "online-dpo": Algorithm("DPO on fresh pairs", {"advantage": "pair", "replies": 2}),
    "xpo": Algorithm("online DPO that explores", {"advantage": "pair", "replies": 2, "explore": 1e-3}),
    "nash-md": Algorithm(
        "against a mixture of policy and reference",
        {"advantage": "nash", "loss": "reinforce", "share": "reply_sums", "replies": 2},
    ),
    "safe-ppo": Algorithm("PPO under a cost budget (safe RLHF)", {**_PPO, "cost_budget": 0.0}),
    "safe-grpo": Algorithm("GRPO under a cost budget", {"kl": 0.04, "cost_budget": 0.0}),
}  # fmt: skip
