"""What remote critics of training stages will be asked, at most, before the first call.

Their replies are not written yet, so each is taken to be of a usual length, and every reply to be found broken: the
critic judges it, writes a critique and a revision, and judges again, every round. What the cache holds is not left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.exchange import exchange
from fairlead.judges.critic import Critic, critic
from fairlead.judges.prompting import ask_about
from fairlead.measures import Measure
from fairlead.measures.bank import Bank
from fairlead.measures.runner import cases_for
from fairlead.models.protocol import Model, Prompt, Sampling
from fairlead.models.remote import Estimate
from fairlead.stack.context import Context
from fairlead.stack.estimate import NOTHING, REPLY, answers_to_one, called, of_critic
from fairlead.stack.plan import DPOLayer, Preferences, Revise, RewardLayer, SFTLayer
from fairlead.stack.plan_rl import PolicyLayer
from fairlead.stack.stages.asked import tasks_of
from fairlead.stack.stages.judged import principles_of, reads

SAMPLE = 40  # prompts that stand for the others


@dataclass(frozen=True, slots=True)
class Work:
    """What one remote model is asked: `times` each of `kinds` for each of the run's prompts."""

    spec: str
    judged: float = 0.0  # single replies, by one principle
    compared: float = 0.0  # two replies in one order, by one principle
    written: tuple[tuple[str, int], ...] = ()  # template and most tokens, once per prompt each
    prompts: int | None = None  # where it is not once for each of the run's prompts
    samples: int = 5  # answers to one question, of a critic without log-probs


def of_training(ctx: Context, measures: Sequence[Measure], bank: Bank) -> Estimate:
    """Of all remote critics, readers and auditors of training stages, and of measuring what these make. Opens each: a
    key that is missing is told now."""
    total = NOTHING
    made = len(ctx.plan.columns) - 1 if any(layer.trains for layer in ctx.plan.layers) else 0
    for measure in measures if made else ():
        judge: Any = ctx.audit[measure.id]
        if isinstance(judge, Critic):
            cases = cases_for(measure, bank, ctx.plan.measure.cases, ctx.seed)
            total += _times(of_critic(judge, [case.messages for case in cases]), made)
    for work in _all(ctx):
        _, model = ctx.critic(work.spec, ctx.base())
        total += _of(work, model, ctx)
    return total


def _all(ctx: Context) -> Iterator[Work]:
    principles = len(ctx.constitution.principles)
    for layer in ctx.plan.layers:
        found: list[Work] = []
        if isinstance(layer, SFTLayer) and layer.data.revise is not None:
            found += _revising(layer.data.revise, principles)
        if isinstance(layer, DPOLayer | RewardLayer) and layer.preferences.from_ == "ai":
            found.append(_comparing(layer.preferences, principles))
        if isinstance(layer, PolicyLayer):
            asked = sum(len(principles_of(term, ctx)) for term in layer.judges if reads(term))
            replies = _replies(layer, ctx) if asked else 0
            found.append(Work(layer.reader, judged=float(asked), prompts=replies))
        yield from (one for one in found if "/" in one.spec and ctx.locate(one.spec).kind == "remote")


def _replies(layer: PolicyLayer, ctx: Context) -> int:
    """That a layer's judges read, at most: every round of dynamic sampling used, greedy replies among them."""
    train, asked = layer.train, layer.prompts
    prompts = len(ctx.prompts.cases) if asked.general else 0
    prompts += len(tasks_of(asked, layer.name, ctx)[0]) if asked.tasks else 0
    each = train.prompts_per_step
    steps = train.steps or math.ceil((train.epochs or 1.0) * prompts / each)
    return steps * each * (train.replies * (1 + train.resample) + (train.advantage == "remax"))


def _revising(config: Revise, principles: int) -> list[Work]:
    seen = float(principles * (1 + config.rounds))
    written = (("critique", config.critique_tokens), ("revise", config.max_tokens)) * config.rounds
    return [Work(config.critic, judged=seen, written=written), Work(config.audit, judged=seen)]


def _comparing(config: Preferences, principles: int) -> Work:
    if config.draw == "whole" or config.compare == "pointwise":
        by = principles if config.draw == "whole" else config.principles
        return Work(config.critic, judged=2.0 * by * config.pairs_per_prompt, samples=config.samples)
    orders = 2 if config.both_orders else 1
    reasons = config.reason_tokens if config.compare == "reasoned" else 0
    each = config.pairs_per_prompt * config.principles * orders
    thoughts = (("reason", reasons),) * each if reasons else ()
    return Work(config.critic, compared=float(each), written=thoughts, samples=config.samples)


def _of(work: Work, model: Model, ctx: Context) -> Estimate:
    prompts: Sequence[Prompt] = [case.messages for case in ctx.prompts.cases]
    sample = list(prompts[:: max(1, len(prompts) // SAMPLE)])[:SAMPLE]
    if not sample:
        return NOTHING
    factor = (len(prompts) if work.prompts is None else work.prompts) / len(sample)
    first = ctx.constitution.principles[0]
    longest = max(ctx.constitution.principles, key=lambda p: len(p.text))
    total = NOTHING
    if work.judged:
        total += _times(of_critic(critic(longest, model, samples=work.samples), sample), factor * work.judged)
    if work.compared:  # two replies to read in the place of one
        both = f"{REPLY} {REPLY}"
        asked = [ask_about(model, "judge", principle=longest.text, exchange=exchange(p, both)) for p in sample]
        how = Sampling(n=answers_to_one(model, work.samples), max_tokens=16)
        total += _times(called(model, asked, how), factor * work.compared)
    for template, most in work.written:
        name = "critique" if template == "reason" else template
        more = {"critique": REPLY} if name == "revise" else {}
        asked = [ask_about(model, name, principle=first.text, exchange=exchange(p, REPLY), **more) for p in sample]
        total += _times(called(model, asked, Sampling(max_tokens=most)), factor)
    return total


def _times(one: Estimate, factor: float) -> Estimate:
    calls, asked, written = (round(n * factor) for n in (one.calls, one.prompt_tokens, one.completion_tokens))
    return Estimate(calls, asked, written, None if one.usd is None else one.usd * factor)
