"""What a run will ask of remote models: calls, tokens and cost, before the first call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fairlead.errors import InputError
from fairlead.exchange import Message, exchange, user
from fairlead.judges.critic import Critic
from fairlead.judges.prompting import ask_about
from fairlead.measures import Measure
from fairlead.measures.bank import Bank
from fairlead.measures.runner import cases_for, greedy
from fairlead.models import Budget
from fairlead.models.protocol import Model, Prompt, Sampling
from fairlead.models.remote import Estimate
from fairlead.stack.context import Built, Context
from fairlead.stack.lazy import opened
from fairlead.stack.measuring import Asking
from fairlead.stack.stages.prompt import PromptedModel, told

NOTHING = Estimate(0, 0, 0, 0.0)
REPLY = " ".join(["word"] * 150)  # taken for a reply that a critic has to read


def remote_models(ctx: Context) -> bool:
    """Whether anything in this run calls a remote model."""
    named = {getattr(layer, name, "") for layer in ctx.plan.layers for name in ("critic", "reader")}
    for layer in ctx.plan.layers:
        for part in ("data", "preferences"):
            inner = getattr(layer, part, None)
            revise = getattr(inner, "revise", None)
            named |= {getattr(inner, "critic", ""), getattr(revise, "critic", ""), getattr(revise, "audit", "")}
    named.add(ctx.plan.measure.audit)
    specs = {name for name in named if "/" in name}
    return ctx.source.kind == "remote" or any(ctx.locate(spec).kind == "remote" for spec in specs)


def estimate(ctx: Context, layers: Sequence[Built], measures: Sequence[Measure], bank: Bank) -> Estimate:
    """Of measuring these layers, what is cached left out. Revisions by a guard come on top: nobody knows how many."""
    total = NOTHING
    for built in layers:
        prompts = list(_unknown(built, measures, bank, ctx))
        if not prompts:
            continue
        total += _of_model(built.model, prompts, greedy(built.model, bank))
        for measure in measures:
            judge: Any = ctx.audit[measure.id]
            if isinstance(judge, Critic):
                total += of_critic(judge, list(_unknown(built, [measure], bank, ctx)))
    return total


def go_on(budget: Budget | None, confirm: Callable[[str], bool] | None) -> None:
    """Remote models are called only within a budget or with a person's yes; `confirm` is None where nobody is asked.

    Raises InputError where there is neither.
    """
    if budget is not None:
        return
    if confirm is None:
        raise InputError(
            "remote models are called, and there is no terminal to ask: set a limit with --budget "
            "('5 USD' or '2M tokens')"
        )
    if not confirm("Go on without a budget?"):
        raise InputError("not started; set a limit with --budget ('5 USD' or '2M tokens')")


def _unknown(built: Built, measures: Sequence[Measure], bank: Bank, ctx: Context) -> Iterator[Prompt]:
    """The prompts that are not answered in the cache, each once; a follow-up counts as another prompt."""
    asking = Asking(ctx, built, bank)
    seen: set[tuple[Message, ...]] = set()
    for measure in measures:
        cases = [
            c for c in cases_for(measure, bank, ctx.plan.measure.cases, ctx.seed) if not ctx.ledger.seen(c.messages)
        ]
        if asking.is_known(measure, cases, ctx.audit, greedy(built.model, bank)):
            continue
        for case in cases:
            follow = [(*case.messages, user(str(case.meta[key]))) for key in ("push", "again") if key in case.meta]
            for prompt in (case.messages, *follow):
                if prompt not in seen:
                    seen.add(prompt)
                    yield prompt


def _of_model(model: Any, prompts: Sequence[Prompt], sampling: Sampling) -> Estimate:
    """Through prompts and guards down to the model that is called."""
    if isinstance(model, PromptedModel):
        return _of_model(model.model, [told(prompt, model.text) for prompt in prompts], sampling)
    checks = getattr(model, "checks", None)
    if checks is not None:
        total = _of_model(model.model, prompts, sampling)
        for check in checks:
            judge = getattr(getattr(check, "check", None), "judge", None)
            if isinstance(judge, Critic):
                total += of_critic(judge, prompts)
        return total
    return called(model, prompts, sampling)


def of_critic(judge: Critic, prompts: Sequence[Prompt]) -> Estimate:
    asked = [ask_about(judge.model, "judge", principle=judge.text, exchange=exchange(p, REPLY)) for p in prompts]
    return of_questions(judge, asked)


def of_questions(judge: Critic, questions: Sequence[Prompt]) -> Estimate:
    """Two-way questions, as this critic asks them."""
    how = Sampling(n=answers_to_one(judge.model, judge.samples), max_tokens=judge.max_tokens)
    return called(judge.model, questions, how)


def answers_to_one(model: Model, samples: int) -> int:
    """Answers that a critic draws to one question (judges/twoway.py)."""
    return 1 if {"logprobs", "alternatives"} & set(model.capabilities) else samples


def called(model: Model, prompts: Sequence[Prompt], sampling: Sampling) -> Estimate:
    """Local models cost nothing; only remote ones can estimate."""
    estimates: Any = getattr(opened(model), "estimate", None)
    return NOTHING if estimates is None else estimates(prompts, sampling)
