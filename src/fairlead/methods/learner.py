"""What reinforcement learning trains, as one module: the policy, and where asked a critic.

Axes: N scored tokens, K value heads (the reward's, then the cost's).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fairlead.engine.forward import hidden_states
from fairlead.engine.heads import new_head
from fairlead.engine.layout import Tree
from fairlead.engine.logprobs import batch_of
from fairlead.engine.parallel import is_split
from fairlead.judges.lineage import Lineage
from fairlead.judges.reward_model import RewardModel
from fairlead.methods.adapters import trainable_copy
from fairlead.methods.config_policy import PolicyConfig
from fairlead.methods.reward import Scorer, finished, new_scorer
from fairlead.methods.rows import Trainable


class Critic(nn.Module):
    """A value function: a language model under one scalar head per thing that is predicted."""

    def __init__(self, model: nn.Module, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.model, self.heads = model, nn.ModuleList(heads)


class Learner(nn.Module):
    """Policy and critic: what the optimiser and the checkpoint take."""

    def __init__(self, policy: nn.Module, critic: Critic | None) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic

    def values(self, trees: Sequence[Tree]) -> Tensor:
        """The value before each scored token, [N, K], in the order in which the trees give log-probs."""
        assert self.critic is not None
        batch = batch_of(self.critic.model, trees)
        hidden_ND = hidden_states(self.critic.model, batch, rows=batch.source_N)
        return torch.stack([head(hidden_ND) for head in self.critic.heads], 1)


def new_learner(model: Trainable, config: PolicyConfig, start: RewardModel | None) -> Learner:
    """A copy of the model to train, and a critic where the advantage asks for one.

    The critic's body starts as `start`'s (the reward model, as in Ouyang et al. 2022, appendix C.4) or as the policy's;
    its heads start fresh, the reward's own from `start`.
    """
    policy = trainable_copy(model.module, config)
    if config.advantage != "gae":
        return Learner(policy, None)
    source: Any = model if start is None else start.model
    scorer = new_scorer(source, config, seed=config.seed, bias=True)
    if start is not None:
        with torch.no_grad():
            scorer.head.weight_D.copy_(start.head.weight_D)
            if scorer.head.bias is not None and start.head.bias is not None:  # a value function's own
                scorer.head.bias.copy_(start.head.bias)
    heads = [scorer.head]
    if config.cost_budget is not None:
        heads.append(new_head(scorer.model, bias=True, seed=config.seed + 1))
    return Learner(policy, Critic(scorer.model, heads))


def value_function(
    learner: Learner, model: Trainable, start: RewardModel | None, trained_on: Lineage
) -> RewardModel | None:
    """What the critic has become, to start another from (`new_learner`): the reward's head alone, not the cost's.

    It is kept as a reward model is, since it is read alike; but it tells what is to come, and judges no reply.
    """
    if learner.critic is None:
        return None
    source: Any = model if start is None else start.model
    head: Any = learner.critic.heads[0]
    found = finished(Scorer(learner.critic.model, head), source, name="critic", trained_on=trained_on)
    return found if start is None else replace(found, base=start.base, trained_on=trained_on | start.trained_on)


def whole_policy(learner: Learner, like: nn.Module, into: nn.Module | None) -> nn.Module:
    """The policy with all its weights on this process: itself, or a copy where they are split over processes.

    like   a module of the same shape with whole weights; into: the copy made before, to be filled again
    """
    policy = learner.policy
    if not any(is_split(p) for p in policy.parameters()):
        return policy
    into = into if into is not None else copy.deepcopy(like)
    target = dict(into.named_parameters())
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            value: Any = parameter.detach()
            target[name].copy_(value.full_tensor() if is_split(parameter) else value)
    return into
