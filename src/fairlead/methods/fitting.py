"""Whether the parts of a run of reinforcement learning belong together: settings, objectives, and what draws."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fairlead.errors import InputError
from fairlead.exchange import Exchange
from fairlead.methods.config_policy import PolicyConfig
from fairlead.methods.rewards import Objective
from fairlead.methods.rollouts import LocalSampler, Sampler

log = logging.getLogger(__name__)


def require_still(sampler: Sampler, config: PolicyConfig) -> None:
    """What draws ahead must not draw from the weights that move meanwhile. Adapters are merged into a copy."""
    inner: Sampler = sampler
    while hasattr(inner, "sampler"):  # one that plays several turns asks another
        inner = inner.sampler
    if config.asynchronous and config.lora is None and isinstance(inner, LocalSampler) and not inner.copy:
        raise InputError(
            "asynchronous: this sampler draws from the very weights that are learnt meanwhile; make it with "
            "LocalSampler(tokenizer, copy=True), or give none"
        )


def recomputes(config: PolicyConfig, sampler: Sampler) -> bool:
    """Whether old log-probs are read by a pass of their own."""
    if config.old_logprobs == "update" and not sampler.exact:
        raise InputError(
            f"old_logprobs: update, but {sampler.name} is not the trainer: give recompute, or leave it to auto"
        )
    if config.old_logprobs == "auto":
        return config.updates > 1 or not sampler.exact or config.asynchronous
    return config.old_logprobs == "recompute"


def require_fitting(objectives: Sequence[Objective], config: PolicyConfig, pretraining: Sequence[Exchange]) -> None:
    """Settings and objectives must belong together."""
    if not config.needs_reference:
        log.warning(
            "nobody measures the KL (kl: 0, watch_kl: false), so kl_burst: %g stops nothing: the policy may leave its "
            "start unseen", config.kl_burst
        )  # fmt: skip
    costs = [one.column for one in objectives if one.role == "cost"]
    if not any(one.role == "reward" for one in objectives):
        raise InputError("no objective is a reward: there is nothing to raise")
    if (config.cost_budget is not None) != bool(costs):
        raise InputError(
            "cost_budget is given but no objective has role cost" if not costs
            else f"objective {costs[0]!r} is a cost: give the budget it is held under (cost_budget)"
        )  # fmt: skip
    if bool(config.ptx) != bool(pretraining):
        raise InputError(
            "ptx is given without pretraining rows to imitate" if config.ptx
            else "pretraining rows are given, but ptx (their weight) is 0"
        )  # fmt: skip
