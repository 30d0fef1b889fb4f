"""A model behind checks: itself a model, so that it is measured like any other layer.

Every reply is looked at by every check, cheap ones first; the most severe decision counts. A changed reply (redacted,
revised, a call taken out) is looked at again before it leaves, and refused where it still does not pass. A check that
raises, answers nothing or asks for more of a finished reply has failed, and so has a revision that comes to nothing:
what then happens is the constitution's `on_error`, and it is counted. Errors that a user can mend (`FairleadError`) are
none of a check's and are raised. All exchanges of a batch are checked together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fairlead.exchange import Exchange, Message, Part, ToolCall, assistant
from fairlead.guard.asking import answers, failure
from fairlead.guard.decision import SEVERITY, Check, Decision, most_severe
from fairlead.guard.log import GuardLog, Record, Released
from fairlead.guard.pieces import drop_calls, pieces, redact, unreadable, without_unreadable
from fairlead.guard.policy import ROUNDS, SAY, Policy
from fairlead.guard.revise import Reviser
from fairlead.guard.wire.ids import of_place
from fairlead.judges.lineage import Lineage
from fairlead.models.protocol import CapabilityError, Model, Prompt, Reply, Sampling

DEFAULT = Sampling()
__all__ = ["ROUNDS", "SAY", "GuardedModel", "Policy"]
_TIRED = "still not in keeping after {} changes"


@dataclass(slots=True)
class _Item:
    """One reply on its way through the checks."""

    prompt: int
    number: int
    messages: tuple[Message, ...]
    reply: Reply
    done: Released | None = None
    changed: Released | None = None
    rounds: int = 0
    decisions: list[Decision] = field(default_factory=list)
    waived: set[str] = field(default_factory=set)  # checks whose revisions are given up, as their on_error allows
    withheld: tuple[str, ...] = ()
    failed: list[tuple[str, str, str]] = field(default_factory=list)  # as in `Record`

    @property
    def exchange(self) -> Exchange:
        return Exchange(self.messages, self.reply.messages)

    def change(self, messages: tuple[Message, ...], how: Released) -> None:
        self.reply = dataclasses.replace(self.reply, messages=messages, tokens=None, logprobs=None)
        self.changed = how
        self.rounds += 1

    def record(self, call: int) -> Record:
        assert self.done is not None
        return Record(
            call, self.prompt, self.number, self.done, tuple(self.decisions), self.rounds, self.withheld,
            tuple(self.failed),
        )  # fmt: skip

    def close(self, say: str, how: Released) -> None:
        reply = Reply((assistant(say),), "stop", usage=self.reply.usage)  # an answer, not a missing one
        self.reply, self.done = reply, how


@dataclass
class GuardedModel:
    """`model` behind `checks`. `policies` by principle id; `revise` is needed by principles that revise.

    `rounds` bounds how often one reply is changed and looked at again. Not safe for use from several threads at once.
    """

    model: Model
    checks: tuple[Check, ...]
    policies: Mapping[str, Policy] = field(default_factory=dict)
    revise: Reviser | None = None
    rounds: int = ROUNDS
    log: GuardLog = field(default_factory=GuardLog)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}: a changed reply must be looked at again at least once")
        self.checks = tuple(sorted(self.checks, key=lambda check: check.cost))

    @property
    def name(self) -> str:
        return f"{self.model.name} + guard"

    @property
    def lineage(self) -> str:
        """That of the model inside: behind a guard it is no other witness. What the checks are, `lineages` says."""
        return self.model.lineage

    @property
    def capabilities(self) -> frozenset[str]:
        # A guarded model has no weights to train and no log-probs that belong to what it releases.
        return self.model.capabilities - {"logprobs", "weights", "stream", "tokens"}

    @property
    def context(self) -> int | None:
        return self.model.context

    @property
    def url(self) -> str | None:
        """Of the server of the model inside, None where it is in this process."""
        return getattr(self.model, "url", None)

    @property
    def lineages(self) -> tuple[tuple[str, Lineage], ...]:
        """Name and lineage of every judge in here: a guard check stands on the train side of the run."""
        return tuple((check.name, check.lineage) for check in self.checks)

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        raise CapabilityError(f"model {self.name} cannot do 'logprobs': what it releases is not what the model drew")

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling = DEFAULT) -> list[tuple[Reply, ...]]:
        """`sampling.n` replies for each prompt, each of them checked. An answer that is missing stays missing."""
        drawn = self.model.generate(prompts, sampling)
        items = [
            _Item(p, n, tuple(prompts[p]), reply) for p, replies in enumerate(drawn) for n, reply in enumerate(replies)
        ]
        for item in items:
            self._open(item)
        # Ends: in every round each open reply is decided, changed (at most `rounds` times) or waived (once per check).
        while open_ := [item for item in items if item.done is None]:
            self._round(open_)
        for item in items:
            self.log.add(item.record(self.log.calls))
        self.log.calls += 1
        by_prompt: list[list[Reply]] = [[] for _ in prompts]
        for item in items:
            named = _named(item.reply.messages, len(item.messages))
            by_prompt[item.prompt].append(dataclasses.replace(item.reply, messages=named))
        return [tuple(replies) for replies in by_prompt]

    # ------------------------------------------------------------------------------------------- rounds

    def _open(self, item: _Item) -> None:
        if item.reply.finish == "error":
            item.reply = dataclasses.replace(item.reply, messages=(), tokens=None, logprobs=None)  # never unscanned
            item.done = "missing"
            return
        item.withheld = tuple(unreadable(item.reply.messages))
        if item.withheld:
            kept = without_unreadable(item.reply.messages)
            item.reply = dataclasses.replace(item.reply, messages=kept, tokens=None, logprobs=None)

    def _round(self, items: list[_Item]) -> None:
        """All checks over all open replies, then one act on each reply."""
        if not items:
            return
        decisions = self._decide(items)
        to_revise: list[tuple[_Item, Decision]] = []
        for item, answered in zip(items, decisions, strict=True):
            said = [d for d in answered if d.outcome != "revise" or d.check not in item.waived]
            item.decisions += [d for d in said if d.outcome != "allow" or d.evidence]
            if item.rounds >= self.rounds:
                said = self._without_lenient(item, said)
            worst = most_severe(said)
            if worst.outcome == "allow":
                item.done = item.changed or "allowed"
            elif worst.outcome == "refuse":
                self._refuse(item, worst)
            elif worst.outcome == "escalate":
                item.close(self._policy(worst).say, "escalated")
            elif item.rounds >= self.rounds:
                self._refuse(item, worst, _TIRED.format(item.rounds))
            elif worst.outcome == "revise":
                to_revise.append((item, worst))
            else:
                self._mend(item, said, worst)
        self._revise(to_revise)

    def _decide(self, items: Sequence[_Item]) -> list[list[Decision]]:
        """What each check says of each reply. Dear checks are not asked where a cheap one already refuses."""
        said: list[list[Decision]] = [[] for _ in items]
        for check in self.checks:
            open_ = [n for n, so_far in enumerate(said) if SEVERITY[most_severe(so_far).outcome] < SEVERITY["escalate"]]
            for n, decision in zip(open_, answers(check, [items[n].exchange for n in open_]), strict=True):
                said[n].append(self._resolved(check, decision, items[n]))
        return said

    def _resolved(self, check: Check, decision: Decision, item: _Item) -> Decision:
        """A failed check becomes what the constitution says of its errors, and is counted."""
        if decision.outcome == "hold":
            decision = failure(check, "asked to hold a reply of which no more is coming")
        if decision.outcome != "failed":
            return decision
        closed = self._policy(decision).on_error == "refuse"
        item.failed.append((check.name, "closed" if closed else "open", decision.evidence))
        told = f"the check failed ({decision.evidence}); {'refused' if closed else 'let through'}, as on_error says"
        return Decision("refuse" if closed else "allow", check.principle, told, (), check.name)

    # --------------------------------------------------------------------------------------------- acts

    def _policy(self, decision: Decision) -> Policy:
        return self.policies.get(decision.principle, Policy())

    def _refuse(self, item: _Item, decision: Decision, why: str = "") -> None:
        if why:
            told = f"{decision.evidence}; {why}"
            item.decisions.append(Decision("refuse", decision.principle, told, (), decision.check))
        item.close(self._policy(decision).say, "refused")

    def _without_lenient(self, item: _Item, said: Sequence[Decision]) -> list[Decision]:
        """The decisions without those revisions that, having come to nothing, `on_error: allow` lets go."""
        for decision in said:
            if decision.outcome == "revise" and self._policy(decision).on_error == "allow":
                self._give_up(item, decision, _TIRED.format(item.rounds))
        return [d for d in said if d.outcome != "revise" or d.check not in item.waived]

    def _give_up(self, item: _Item, decision: Decision, why: str) -> None:
        """A revision that came to nothing is an error of the guard: `on_error` says what follows."""
        if self._policy(decision).on_error == "refuse":
            self._refuse(item, decision, why)
            return
        item.failed.append((decision.check, "open", why))
        item.waived.add(decision.check)
        told = f"{decision.evidence}; {why}; let through, as on_error says"
        item.decisions.append(Decision("allow", decision.principle, told, (), decision.check))

    def _mend(self, item: _Item, said: Sequence[Decision], worst: Decision) -> None:
        """Paint over every span that any check named; calls among them are taken out whole."""
        mending = [d for d in said if d.outcome in ("redact", "block_tool_call")]
        places = {piece.at: piece.place for piece in pieces(item.reply.messages)}
        spans = [span for decision in mending for span in decision.spans]
        calls = {span.at for span in spans if places.get(span.at) == "tool_call"}
        if any(span.at not in places for span in spans) or not spans:
            self._refuse(item, worst, "it does not say which part to take out")
            return
        mended = redact(item.reply.messages, [span for span in spans if span.at not in calls])
        mended = drop_calls(mended, calls, self._policy(worst).say)
        item.change(mended, "call blocked" if calls else "redacted")

    def _revise(self, broken: Sequence[tuple[_Item, Decision]]) -> None:
        if not broken:
            return
        if self.revise is None:
            for item, decision in broken:
                self._give_up(item, decision, "there is no model to revise it")
            return
        asked = [(self._policy(decision).text or decision.evidence, item.exchange) for item, decision in broken]
        for (item, decision), messages in zip(broken, self.revise(asked), strict=True):
            if messages is None:
                self._give_up(item, decision, "no revision came back")
            else:
                item.change(messages, "revised")
                item.reply = dataclasses.replace(item.reply, finish="stop")


def _named(messages: tuple[Message, ...], before: int) -> tuple[Message, ...]:
    """The messages with ids of their own for calls, by their place in the conversation: an id is text that no check has
    read, and a model may choose it. A call without an id stays without."""

    def part(m: int, p: int, one: Part) -> Part:
        if not isinstance(one, ToolCall) or not one.id:
            return one
        return dataclasses.replace(one, id=of_place(one.id, one.name, f"{before + m}.{p}"))

    return tuple(
        dataclasses.replace(message, parts=tuple(part(m, p, one) for p, one in enumerate(message.parts)))
        if message.role == "assistant" and any(isinstance(one, ToolCall) for one in message.parts)
        else message
        for m, message in enumerate(messages)
    )
