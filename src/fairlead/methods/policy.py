"""Reinforcement learning from judges, read top to bottom in `train_policy`: one loop for every algorithm.

    replies       drawn to the step's prompts by a sampler                  rollouts.py
    scores        of every reply, by named objectives                       rewards.py
    experience    both together, with what is read before the update        experience.py, reading.py
    advantages    a number per token                                        policy_terms.py, advantages.py
    updates       `passes` x `minibatches` of `policy_loss`                 policy_terms.py, losses_policy.py

An algorithm is a set of settings (config_policy.ALGORITHMS). A step's experience is on disk before its first update:
a run that was killed goes on with the same replies and scores, never asks for them twice, and with the engine's own
decoder ends at the same bits. Under torchrun prompts are shared out for drawing and judging, trees for learning.

Axes: P prompts, R replies, N scored tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fairlead.engine import parallel
from fairlead.engine.adapters import Adapter
from fairlead.engine.logprobs import reply_logprobs
from fairlead.errors import InputError
from fairlead.exchange import Exchange
from fairlead.judges.reward_model import RewardModel
from fairlead.methods import advantages, reading
from fairlead.methods.adapters import adapter_of, merged, starting_point
from fairlead.methods.collapse import health
from fairlead.methods.config_policy import PolicyConfig
from fairlead.methods.experience import Experience, Piece, part_of, pieces_of
from fairlead.methods.fitting import recomputes, require_fitting, require_still
from fairlead.methods.gather import Source, place_of, prompts_as_read
from fairlead.methods.journal import Journal
from fairlead.methods.learner import Learner, new_learner, value_function
from fairlead.methods.loop import Batch, Run, StepRecord, Updates
from fairlead.methods.losses import sft_nll
from fairlead.methods.multipliers import adapted_kl, ascended
from fairlead.methods.policy_terms import (
    Coefficients,
    advantages_of_step,
    counts_of,
    pairs_of,
    policy_loss,
    rewards_of_step,
)
from fairlead.methods.reference import Reference
from fairlead.methods.resume import resumable
from fairlead.methods.rewards import Objective, at_step, checked, lineage_of, switch
from fairlead.methods.rollouts import LocalSampler, Sampler
from fairlead.methods.rows import Rows, Trainable, exchange_rows, folder_key, scored_tokens


@dataclass(frozen=True, slots=True)
class Reinforced:
    """A model trained on judges' scores, and what each optimiser step did.

    stopped   why it ended early, with the weights of the last step that nothing was wrong with; "" where it did not
    missing   scores that were missing, by objective
    closing   of the weights as they are at the end, on replies that they drew and nobody judged: `kl` per reply with
              its standard error `kl_error`, `kl_token` per token, nats; `replies`. Empty where no KL is measured
    critic    the value function as it was at the end, to start another run's from; None for algorithms without one
    """

    model: Trainable
    records: tuple[StepRecord, ...]
    prompts: int
    stopped: str
    missing: dict[str, int]
    adapter: Adapter | None = None
    closing: Mapping[str, float] = field(default_factory=dict)
    critic: RewardModel | None = None

    @property
    def steps(self) -> list[StepRecord]:
        """The first record of every set of replies: it carries what was said of them."""
        return [record for record in self.records if record.told]

    def metrics(self) -> dict[str, float]:
        """Means over the last tenth of the steps, of everything that was told of each; nothing before the first."""
        if not self.steps:
            return {}
        last = self.steps[-max(1, len(self.steps) // 10) :]
        told = {
            name: [r.told[name] for r in last if math.isfinite(r.told.get(name, math.nan))] for name in last[-1].told
        }
        return {name: sum(values) / len(values) if values else math.nan for name, values in told.items()}


def train_policy(
    model: Trainable,
    prompts: Sequence[Exchange],
    objectives: Sequence[Objective],
    config: PolicyConfig,
    run: Run | None = None,
    *,
    sampler: Sampler | None = None,
    critic: RewardModel | None = None,
    pretraining: Sequence[Exchange] = (),
    places: Sequence[str] | None = None,
) -> Reinforced:
    """Train a copy of the model to raise the objectives' raw scores on replies of its own; the input stays as it was.

    prompts       exchanges whose reply is not looked at: their messages are asked, their meta is what judges read
    sampler       draws the replies; the engine's decoder by default
    critic        what the value function starts from (InstructGPT: the reward model); by default the policy's own body
    pretraining   exchanges whose replies are imitated beside (`config.ptx`)

    Raises InputError for prompts that do not fit, naming them, and `TrainingStopped` where the loss is no number. A run
    that collapses ends early: see `Reinforced.stopped` and collapse.py.
    """
    run = run or Run()
    objectives = checked(objectives)
    require_fitting(objectives, config, pretraining)
    if sampler is not None:
        require_still(sampler, config)
    if critic is not None and config.advantage != "gae":
        raise InputError(f"a critic is given, but advantage: {config.advantage} reads no values; leave it out")
    model = starting_point(model, config)
    asked = prompts_as_read(model, prompts, config, places)
    ptx = exchange_rows(model, pretraining, too_long=config.too_long) if config.ptx else None
    sampler = sampler or LocalSampler(model.tokenizer, copy=config.asynchronous)
    recompute = recomputes(config, sampler)
    learner = new_learner(model, config, critic)
    reference = Reference(model, config) if config.needs_reference else None
    updates = Updates(learner, asked, config, run, parts={"critic.": config.value_rate})
    key = folder_key("policy", model.lineage, asked.digest, _names(objectives), config.model_dump_json(),
                     ptx.digest if ptx else "", critic.weights if critic else "",
                     getattr(sampler, "identity", ""))  # fmt: skip
    steps = config.steps or math.ceil((config.epochs or 1.0) * len(asked.trees) / config.prompts_per_step - 1e-9)
    stopped = ""
    with resumable(updates, key) as done:
        if reference is not None:
            reference.carry(updates)
        loop = Loop(learner, reference, updates, objectives, config, steps, ptx, recompute, sampler.exact)
        journal = Journal(run, key, config.updates)
        with Source(sampler, learner, reference, model, prompts, asked, objectives, config, updates, steps) as source:
            for step in range(done // config.updates, steps):
                experience = journal.find(step)
                if experience is None:
                    experience = loop.prepared(source.take(step), step)
                    journal.put(step, experience)
                updates.extra["taken"] = float(experience.taken)
                if not updates.done % config.updates and (stopped := loop.unhealthy(experience)):
                    break
                if config.asynchronous and step + 1 < steps and not journal.holds(step + 1):
                    source.ahead(step + 1)
                loop.learn(experience, step)
            # No step is left to tell what the last one's updates made of the weights, nor of those that were put back.
            closing = loop.closing(source)
            if not stopped and (stopped := loop.unhealthy_at_last(closing)):
                closing = loop.closing(source)
    missing = {
        one.column: int(sum(r.told.get(f"missing.{one.column}", 0.0) for r in updates.records)) for one in objectives
    }
    return Reinforced(
        model=model.with_weights(merged(learner.policy)),
        records=tuple(updates.records),
        prompts=len(asked.trees),
        stopped=stopped,
        missing=missing,
        adapter=adapter_of(learner.policy, model),
        closing=closing,
        critic=value_function(learner, model, critic, lineage_of(objectives)),
    )


class Loop:
    """What a step does with its replies: `prepared` before the first update, then `learn`."""

    def __init__(
        self,
        learner: Learner,
        reference: Reference | None,
        updates: Updates,
        objectives: Sequence[Objective],
        config: PolicyConfig,
        steps: int,
        ptx: Rows | None,
        recompute: bool,
        exact: bool,
    ) -> None:
        self.learner, self.reference, self.updates = learner, reference, updates
        self.objectives, self.config, self.steps, self.ptx = objectives, config, steps, ptx
        self.recompute, self.exact = recompute, exact
        self.under_way: Experience | None = None
        updates.on_update = self._move

    @property
    def now(self) -> Coefficients:
        """The coefficients as training has moved them."""
        extra = self.updates.extra
        return Coefficients(
            kl=extra.get("kl", self.config.kl),
            multiplier=math.exp(extra.get("log_multiplier", math.log(self.config.cost_start))),
        )

    def prepared(self, step: Experience, number: int) -> Experience:
        """Rewards, the log-probs and values that are read before the update, advantages, and numbers for the log."""
        config, began = self.config, time.perf_counter()
        objectives = at_step(self.objectives, number, self.steps)
        step = rewards_of_step(step, objectives, config)
        if config.advantage == "pair":
            step = step.with_more(pair_B2=pairs_of(step.more["reward_R"], step.group_R))
        if self.reference is not None:
            step = reading.reference_logprobs(step, self.reference.module, config)
        if not self._late:
            step = advantages_of_step(step, objectives, config, self.now)
        plan = [pieces for _, pieces in self._plan(step, number, 0)]
        step = reading.before_update(step, self.learner, plan, config, recompute=self.recompute)
        if self._late:
            step = advantages_of_step(step, objectives, config, self.now)
        step = reading.corrected(step, config, exact=self.exact)
        return step.with_more(
            reading.told_of(step, objectives, config, self.now) | {"prepare_seconds": time.perf_counter() - began}
        )

    @property
    def _late(self) -> bool:
        """Whether advantages need what is read of the policy or the critic."""
        return self.config.advantage in ("gae", "nash") or (self.config.kl > 0 and self.config.kl_in == "reward")

    def unhealthy(self, step: Experience) -> str:
        """Why the run should stop here, its weights put back to the last good ones; "" where it should not."""
        config, updates = self.config, self.updates
        told = [record.told for record in updates.records if record.told] + [step.told]
        history = told[self._alike(len(told) - 1) :]
        found = health(
            [told["reward"] for told in history],
            [told["reward_error"] for told in history],
            step.told.get("kl_token"),
            kl_burst=config.kl_burst,
            cliff=config.reward_cliff,
        )
        if found.verdict:
            return self._gone_back(found.verdict)
        if found.good:
            self._keep(step)
        if config.asynchronous:  # the next step's replies are drawn with these, and tell only then how they do
            updates.hold()
            updates.extra["held"] = float(updates.done)
        return ""

    def _keep(self, step: Experience) -> None:
        """Keep the weights that drew these replies, to go back to: what the replies say is of them alone."""
        updates = self.updates
        if not step.told["staleness"]:
            updates.remember()
        elif updates.extra.get("held") == step.version:
            updates.vouch()
        else:  # a state of before they were held
            return
        updates.extra["good"] = float(step.version)

    def unhealthy_at_last(self, closing: Mapping[str, float]) -> str:
        """The same of what the last step left, by its KL alone: nobody has judged its replies."""
        found = health([], [], closing.get("kl_token"), kl_burst=self.config.kl_burst, cliff=None)
        return self._gone_back(f"{found.verdict}, after the last step") if found.verdict else ""

    def _gone_back(self, verdict: str) -> str:
        if not self.updates.put_back():
            return f"{verdict}. There are no good weights to go back to: these are as they were then"
        good = int(self.updates.extra.get("good", 0.0))
        return f"{verdict}. The weights are those after {good} optimiser steps, the last good ones"

    def closing(self, source: Source) -> dict[str, float]:
        """The KL of the weights as they are now, on replies of their own: an old policy's would not show it."""
        if self.reference is None:
            return {}
        step = reading.reference_logprobs(source.closing(), self.reference.module, self.config)
        if not self.exact:
            step = reading.policy_logprobs(step, self.learner.policy, self.config)
        return reading.closing_of(step)

    def _alike(self, number: int) -> int:
        """The first step whose reward is the sum of the same objectives as this one's: only those can be compared."""
        return max((at for one in self.objectives if (at := switch(one, self.steps)) <= number), default=0)

    def learn(self, step: Experience, number: int) -> None:
        """The optimiser steps of one experience, from wherever an earlier run left off."""
        config = self.config
        self.under_way = step
        for at in range(self.updates.done % config.updates, config.updates):
            prompts, pieces = self._plan(step, number, at // config.minibatches)[at % config.minibatches]
            if at == 0:
                self.updates.told = dict(step.told)
            self._update(step, prompts, pieces, number * config.updates + at)

    def _plan(self, step: Experience, number: int, passing: int) -> list[tuple[list[int], list[Piece]]]:
        """The minibatches of one pass: the prompts of each, and what of them goes through the model.

        Groups in which every advantage is 0 are left out where nothing else in the loss has a gradient; they count in
        the denominators (`counts_of` reads the prompts). Advantages that are known only after the policy's log-probs
        were read leave none out: what is read and what is updated are the same micro-batches.
        """
        config = self.config
        order = np.random.default_rng([config.seed % 2**63, number, passing]).permutation(len(step.trees))
        idle = torch.zeros(len(step.trees), dtype=torch.bool)
        if "adv_N" in step.more and not self._late:
            idle = advantages.idle_groups(
                step.more["adv_N"], step.reply_N, step.group_R, other_terms=config.other_terms
            )
        whole = config.advantage in ("pair", "nash")
        plan = []
        for members in np.array_split(order, config.minibatches):
            prompts = sorted(members.tolist())
            moving = [prompt for prompt in prompts if not idle[prompt]] or prompts[:1]  # something must run a pass
            plan.append((prompts, pieces_of(step, moving, config.tokens_per_batch, whole=whole)))
        return plan

    def _update(self, step: Experience, prompts: Sequence[int], pieces: Sequence[Piece], number: int) -> None:
        config, updates = self.config, self.updates
        counts = counts_of(step, prompts, config)
        trees = [piece.tree for piece in pieces]
        places = tuple(f"step {number // config.updates + 1}, prompt {step.rows[prompts[0]]} …" for _ in pieces)
        now = self.now
        for batch in self._ptx_batches(number):
            nll = sft_nll(reply_logprobs(self.learner.policy, batch.trees).logp_N, tokens=batch.step_tokens)
            sums = {"ptx_nll": float(nll.detach()) * counts.replies}
            updates.step(config.ptx * nll, batch, sums)
        updates.rows = Rows(tuple(trees), tuple(range(len(trees))), places)
        dealt = parallel.deal(trees, config.tokens_per_batch)
        for count, (group, weight) in enumerate(dealt, start=1):
            mine = [pieces[i] for i in group]
            logp = reply_logprobs(
                self.learner.policy, [p.tree for p in mine], temperature=config.temperature, entropy=config.entropy > 0
            )
            values = self.learner.values([p.tree for p in mine]) if "target_NK" in step.more else None
            loss, sums = policy_loss(logp, part_of(step, mine), step, config, counts, now, values)
            updates.step(
                loss,
                Batch(
                    step=number,
                    steps=self.steps * config.updates,
                    rows=tuple(group),
                    trees=tuple(p.tree for p in mine),
                    step_rows=counts.replies,
                    step_tokens=counts.tokens,
                    last=count == len(dealt),
                    weight=weight,
                    members=tuple(range(len(trees))),
                ),
                sums,
            )

    def _ptx_batches(self, number: int) -> Iterator[Batch]:
        """This optimiser step's pretraining rows, drawn by its number: shuffled epochs laid end to end."""
        if self.ptx is None or not self.config.ptx:
            return
        self.updates.rows = self.ptx
        rows = len(self.ptx.trees)
        size = min(self.config.ptx_rows, rows)
        members = [place_of(self.config.seed, rows, number * size + i) for i in range(size)]
        trees = [self.ptx.trees[row] for row in members]
        dealt = parallel.deal(trees, self.config.tokens_per_batch)
        for group, weight in dealt:
            yield Batch(
                step=number,
                steps=self.steps * self.config.updates,
                rows=tuple(members[i] for i in group),
                trees=tuple(trees[i] for i in group),
                step_rows=size,
                step_tokens=sum(map(scored_tokens, trees)),
                last=False,  # the policy's own micro-batches follow
                weight=weight,
                members=tuple(members),
            )

    def _move(self) -> None:
        """After a step's last update the KL coefficient, the multiplier and the reference follow, by its numbers."""
        config, extra, step = self.config, self.updates.extra, self.under_way
        if step is None or self.updates.done % config.updates:
            return
        if config.kl_target is not None:
            extra["kl"] = adapted_kl(self.now.kl, max(step.told["kl"], 0.0), target=config.kl_target)
        if config.cost_budget is not None and math.isfinite(step.told["cost"]):
            extra["log_multiplier"] = ascended(
                math.log(self.now.multiplier),
                step.told["cost"],
                budget=config.cost_budget,
                rate=config.cost_rate,
                high=config.cost_highest,
            )
        if self.reference is not None:
            self.reference.follow(self.learner.policy, self.updates.done // config.updates)


def _names(objectives: Sequence[Objective]) -> list[tuple[str, float, str, float, list[str]]]:
    return [(o.column, o.weight, o.role, o.since, sorted(map(repr, o.judge.lineage))) for o in objectives]
