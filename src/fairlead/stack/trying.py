"""One prompt against a constitution: which principles, checks and refusal texts apply to it, and why.

What code can tell is told without a model: the nearest example by its words, the secrets that a reply gives away, the
rules a principle names as its auditors. Whether a reply keeps a principle is for a critic to say; without one the row
says that it could not be told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairlead.constitution.alike import Likeness
from fairlead.constitution.prompts_bank import Kind, bank
from fairlead.constitution.schema import Constitution, Principle
from fairlead.exchange import Exchange, Message, Verdict, assistant, system, user
from fairlead.guard.checks.secrets import SecretsCheck, values_of
from fairlead.guard.compile import checks_from, policies_from
from fairlead.guard.critic import CriticCheck
from fairlead.guard.decision import ALLOW, Check, Decision, most_severe
from fairlead.guard.guard import Policy
from fairlead.guard.pieces import redact
from fairlead.guard.vendors import refuse_others, vendors
from fairlead.judges.conflicts import READ_ANY_REPLY
from fairlead.judges.critic import critic
from fairlead.models.access import vendor
from fairlead.models.protocol import Model, Sampling

NEAR = 0.35  # below it an example has little more in common with the prompt than its small words
REPLY_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Near:
    """The prompt of a principle, an example's or its pack's, that is nearest by words alone: likeness in [0, 1]."""

    likeness: float
    user: str
    good: bool


@dataclass(frozen=True, slots=True)
class Row:
    """What one principle has to do with the prompt and the reply.

    near         None where it has no example
    closest      no prompt of any principle is near, and this one's is the least far
    check        the name of its check in the guard, "" where code has none for it and no critic was given
    secrets      how many secrets this conversation gives it to keep
    rules        (name, score, reason) of the rules it names as auditors, on the reply
    kept         the critic's P(the reply keeps it), None without one
    decision     what its check in the guard says of the reply; None where there is no reply or no check
    on_violation what the guard does when it is broken, "" where it is not guarded
    say          what the user then reads in place of the reply
    before       ids of the principles that give way to this one
    untold       why something could not be told, "" where all could
    """

    principle: Principle
    near: Near | None
    secrets: int
    rules: tuple[tuple[str, float, str], ...] = ()
    kept: float | None = None
    decision: Decision | None = None
    on_violation: str = ""
    say: str = ""
    before: tuple[str, ...] = ()
    untold: str = ""
    closest: bool = False
    check: str = ""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why this principle bears on the prompt, or the reply breaks it, each in a few words; () where neither."""
        found = []
        if self.near is not None and self.near.likeness >= NEAR:
            found.append(f"like its example {self.near.user!r} ({self.near.likeness:.2f})")
        elif self.near is not None and self.closest:
            found.append(f"closest by its words, and not close: {self.near.user!r} ({self.near.likeness:.2f})")
        if self.secrets:
            found.append(f"{self.secrets} told to keep")
        found += [f"rule {name}: {reason or 'broken'}" for name, score, reason in self.rules if score < 0.5]
        if self.decision is not None and self.decision.outcome != "allow" and self.kept is None:
            found.append(self.decision.evidence)
        if self.kept is not None and self.kept < 0.5:
            found.append("the critic finds it broken")
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Tried:
    """Every principle's row, the heavier first, and what the guard as a whole would do with the reply.

    reads   what the user reads: the reply, what stands of it, or what is said instead; "" where there is no reply
    """

    messages: tuple[Message, ...]
    reply: str | None
    rows: tuple[Row, ...]
    outcome: Decision = field(default=ALLOW)
    reads: str = ""

    @property
    def untold(self) -> tuple[str, ...]:
        """The ids of the principles of which something could not be told."""
        return tuple(row.principle.id for row in self.rows if row.untold)


def refuse_vendors(constitution: Constitution, model: Model | None, critic_model: Model | None) -> None:
    """Raises InputError for a critic at a vendor that neither serves `model` nor is among the constitution's."""
    hosts = vendors(checks_from(constitution, critic_model), critic_model)
    refuse_others(hosts, constitution, constitution.name, vendor(model))


def try_prompt(
    constitution: Constitution,
    prompt: str,
    *,
    told: str = "",
    reply: str | None = None,
    model: Model | None = None,
    critic_model: Model | None = None,
) -> Tried:
    """What the constitution has to say about `prompt`, and about the reply to it.

    told          the system prompt of the conversation, from which secrets are read
    reply         a reply as given; `model` writes one where there is none
    critic_model  reads every principle against the reply; without one, only code tells

    Raises InputError for a critic at a vendor that neither serves `model` nor is among the constitution's `vendors`.
    """
    messages = ((system(told),) if told else ()) + (user(prompt),)
    checked = checks_from(constitution, critic_model)
    refuse_vendors(constitution, model, critic_model)
    checks = {check.principle: check for check in checked}
    if reply is None and model is not None:
        reply = written_by(model, messages)
    exchange = None if reply is None else Exchange(messages, (assistant(reply),))
    policies = policies_from(constitution)
    near = nearest(constitution, prompt)
    rows = [
        _row(p, constitution, near.get(p.id), checks.get(p.id), policies[p.id], messages, exchange, critic_model)
        for p in sorted(constitution.principles, key=lambda p: -p.severity)
    ]
    likely = max(rows, key=lambda row: row.near.likeness if row.near is not None else 0.0)
    if likely.near is not None and 0.0 < likely.near.likeness < NEAR:
        rows[rows.index(likely)] = dataclasses.replace(likely, closest=True)
    decisions = [row.decision for row in rows if row.decision is not None]
    worst = most_severe(decisions)
    return Tried(messages, reply, tuple(rows), worst, _reads(worst, decisions, policies, exchange))


def written_by(model: Model, messages: Sequence[Message]) -> str | None:
    """The model's reply, greedy where it can be; None where there was no answer."""
    asked = {"max_tokens": REPLY_TOKENS, "temperature": 0.0}
    sampling = Sampling(**{k: v for k, v in asked.items() if k in model.capabilities})  # type: ignore[arg-type]
    ((answer,),) = model.generate([tuple(messages)], sampling)
    return None if answer.finish in ("error", "filter") else answer.text


@dataclass(frozen=True)
class _Known:
    """A judge that has said already what it says: a check built on it asks nobody twice."""

    name: str
    lineage: Any
    verdict: Verdict

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [self.verdict] * len(exchanges)


def _row(
    p: Principle,
    constitution: Constitution,
    near: Near | None,
    check: Check | None,
    policy: Policy,
    messages: tuple[Message, ...],
    exchange: Exchange | None,
    critic_model: Model | None,
) -> Row:
    secrets = 0
    if isinstance(check, SecretsCheck):
        secrets = sum(len(values_of(secret, Exchange(messages, ()))) for secret in check.secrets)
    kept, untold, decision = None, "", None
    if exchange is not None and critic_model is not None:
        (verdict,) = critic(p, critic_model).judge([exchange])
        kept, untold = (
            verdict.score,
            "" if verdict.score is not None else f"the critic gave no verdict: {verdict.reason}",
        )
        if isinstance(check, CriticCheck):
            known = _Known(check.check.name, check.lineage, verdict)
            check = dataclasses.replace(check, check=dataclasses.replace(check.check, judge=known))
    elif exchange is not None and not isinstance(check, SecretsCheck):
        untold = "whether the reply keeps it: no critic reads it"
    elif exchange is None:
        untold = "whether a reply keeps it: there is none"
    if exchange is not None and check is not None:
        (decision,) = check.decide([exchange])
        if decision.outcome == "failed":
            decision = dataclasses.replace(decision, outcome="refuse" if policy.on_error == "refuse" else "allow")
    rules = []
    for name in p.judges.audit:
        if exchange is not None and name in READ_ANY_REPLY:
            (verdict,) = READ_ANY_REPLY[name]().judge([exchange])
            rules.append((name, verdict.score or 0.0, verdict.reason))
    return Row(
        p,
        near,
        secrets,
        tuple(rules),
        kept,
        decision,
        p.guard.on_violation if p.guard else "",
        policy.say if p.guard else "",
        tuple(other.id for other in constitution.principles if constitution.goes_first(p.id, other.id)),
        untold,
        check="" if check is None else check.name,
    )


def nearest(constitution: Constitution, prompt: str) -> dict[str, Near]:
    """Of each principle that has examples, or prompts to train on in its pack, the one nearest to the prompt."""
    known = [
        (p.id, e.user, good)
        for p in constitution.principles
        for good, examples in ((True, p.good), (False, p.bad))
        for e in examples
    ]
    kinds: tuple[tuple[Kind, bool], ...] = (("tempting", False), ("twin", True))
    for kind, good in kinds:
        known += [(case.principle, case.messages[-1].text, good) for case in bank(constitution, "train", kind)]
    found: dict[str, Near] = {}
    for (id, asked, good), likeness in zip(known, Likeness([text for _, text, _ in known])(prompt), strict=True):
        if id not in found or likeness > found[id].likeness:
            found[id] = Near(likeness, asked, good)
    return found


def _reads(
    worst: Decision, decisions: Sequence[Decision], policies: Mapping[str, Policy], exchange: Exchange | None
) -> str:
    if exchange is None:
        return ""
    if worst.outcome == "allow":
        return exchange.reply_text
    if worst.outcome == "redact":
        spans = [span for d in decisions if d.outcome == "redact" for span in d.spans]
        return Exchange((), redact(exchange.reply, spans)).reply_text
    if worst.outcome == "revise":
        return "(a revision of the reply)"
    return policies[worst.principle].say if worst.principle in policies else Policy().say
