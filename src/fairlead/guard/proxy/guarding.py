"""The guard of one request, between a format and a model's server: what is asked is checked, what comes is released,
and what left is written into the audit log.

It calls the release (release.py) and the checks of prompts, and knows nothing of bytes or sockets.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from fairlead.exchange import Exchange as Talk
from fairlead.guard import prompt_side
from fairlead.guard.audit.entry import Entry, dumped
from fairlead.guard.decision import SEVERITY, Decision
from fairlead.guard.follow import release_for
from fairlead.guard.ledger import Ledger
from fairlead.guard.plan import WIRE, Plan
from fairlead.guard.pool import NoAnswer
from fairlead.guard.proxy.upstream import Broken
from fairlead.guard.released import Broken as CheckFailed
from fairlead.guard.released import Noted, Out, Stop
from fairlead.guard.tally import Tally
from fairlead.guard.wire.asked import Asked, callable_tools, with_messages
from fairlead.guard.wire.beside import beside, with_beside
from fairlead.guard.wire.events import About, Channel, Close, Delta, End, Event, Finish, Open, Told, Unknown, with_ends

if TYPE_CHECKING:
    from fairlead.guard.audit import AuditLog
    from fairlead.guard.improve import Best
    from fairlead.guard.proxy.exchange import Exchange
    from fairlead.guard.release import Release

Item: TypeAlias = Event | Noted | Stop

LONG = 1 << 16  # bytes of a request from which on code reads it in threads, with a deadline that holds
SLICE = 1 << 14  # characters of a reply after which others are served, and late checks are seen

NO_CHECK = "a check of this guard is broken, and its principle lets nothing pass without it ({})"

# What is withheld and counted, and does not end the reply: no text of it, but something beside it.
_ASIDE = ("field of", "finish_reason", "stop_reason", "incomplete_details", "log-probs")


@dataclass(frozen=True, slots=True)
class Instead:
    """What is asked is answered by the guard itself."""

    items: tuple[Item, ...]


class Guarding:
    """Made when a request was read; `close` ends it, whatever happened."""

    def __init__(self, one: Exchange) -> None:
        self.one, self.book = one, one.account.book
        self.ledger, self.tally = Ledger(one.log is not None and one.settings.audit.store_text), Tally()
        self.release: Release | Best | None = None  # once it is known what the model is asked
        self.told: Told | None = None
        self.tolds: list[tuple[int, Told]] = []
        self.usage: dict[str, int] = {}
        self.written = self.coming = 0  # bytes of text that were sent, and that are about to be
        self.number: int | None = None  # of the entry in the audit log
        self.whole = 0  # alternatives that the server has ended
        self.ended = ""  # how it ended, where not as it should
        self.status = 0  # of the answer that follows where nothing was sent
        self.escalated: Talk | None = None
        self._began = time.time()

    @property
    def decision(self) -> str:
        return self.told.decision if self.told is not None else "allow"

    @property
    def done(self) -> bool:
        """Nothing more of the server's answer is needed: it has ended, or the guard has ended it."""
        return self.release is None or self.release.ended

    # ------------------------------------------------------------------------------------ what is asked

    async def ask(self) -> Asked | Instead:
        """Checks what is asked: the request to send on, perhaps with texts painted over, or an answer in its place."""
        one, book = self.one, self.book
        asked = one.asked
        for what in asked.dropped:
            self.tally.withheld[f"of the request: {what}"] += 1
            one.metrics.counts["dropped", what] += 1
        self.tally.passed.update(asked.policy.passed)
        escalate = self._escalate if one.log is not None else None
        left = book.plan.dear
        if book.prompts:
            more = beside(asked)
            said = await prompt_side.ask(
                book.prompts, (*asked.messages, *more.messages), book.policies, ledger=self.ledger, tally=self.tally,
                pool=book.pool, deadlines=book.deadlines, on_error=book.on_error, dear=left,
                long=len(one.raw) > LONG, escalate=escalate,
            )  # fmt: skip
            left = said.dear
            if said.told.decision != "allow":
                self.told = said.told
            if said.check:
                raise self._broken(said.told)
            if not said.goes_on:
                return self._instead(said.say, said.told)
            if said.told.decision == "redact":
                own = len(asked.messages)
                try:
                    asked = with_messages(with_beside(asked, more), said.messages)
                except ValueError:  # what cannot be painted over does not go on
                    self.told = replace(said.told, decision="refuse")
                    return self._instead(book.plan.policy(said.told.principle).say, self.told)
                asked = replace(asked, messages=asked.messages[:own])
        plan = book.plan if asked.stream else book.whole
        if plan.best is not None and asked.format not in ("chat", "completions"):
            plan = replace(plan, best=replace(plan.best, n=1))  # no format to ask for more in: it has to be good enough
        begin = partial(
            release_for, plan, asked.messages, n=asked.n, asker=book.asker, tenant=one.account.name, tally=self.tally,
            ledger=self.ledger, escalate=escalate, dear=left, tools=callable_tools(asked),
        )  # fmt: skip
        self.release = await self._aside(begin) if len(one.raw) > LONG else begin()
        if plan.best is not None and plan.best.n > 1:
            asked = replace(asked, upstream={**asked.upstream, "n": plan.best.n})
        return asked

    async def _aside(self, begin: Callable[[], Release | Best]) -> Release | Best:
        """Checks that read a long conversation before its reply do so in a thread, while others are served."""
        try:
            return await self.book.pool.submit("conversation", begin, self.book.deadlines[0])
        except NoAnswer as problem:
            self.tally.failed["conversation", "closed"] += 1
            verdict = self.ledger.verdict("conversation", "", "failed", str(problem))
            self.told = Told("failed", "", verdict)
            raise self._broken(self.told) from None

    def _instead(self, say: str, told: Told) -> Instead:
        items: list[Item] = [About(model=self.one.asked.model)]
        for choice in range(self.one.asked.n):
            channel = Channel(choice, 0)
            items += Open(channel, "reply"), Delta(channel, say), Close(channel)
            items += Noted(choice, told), Finish(choice, "content_filter")
            self.ledger.write(choice, 0, "guard", say, (told.verdict,))
        self.tally.replies[told.decision] += self.one.asked.n
        return Instead((*self._noted(items), End()))

    def _escalate(self, item: Talk, decision: Decision, verdict: str) -> None:
        self.escalated = item

    # ------------------------------------------------------------------------------------- what comes

    async def feed(self, events: Sequence[Event]) -> list[Item]:
        """What may leave now. Waits for models only where nothing more will come."""
        release, last = self.release, False
        assert release is not None
        out: list[Out] = []
        for event, ends in with_ends(events):
            if isinstance(event, Delta) and len(event.text) > SLICE and not event.logprobs:
                *ahead, end = range(0, len(event.text), SLICE)
                for start in ahead:
                    out += release.feed(Delta(event.channel, event.text[start : start + SLICE]))
                    await asyncio.sleep(0)
                out += release.feed(Delta(event.channel, event.text[end:]), ends)
                continue
            if isinstance(event, End):
                last = True
            elif isinstance(event, Unknown) and event.what.startswith(_ASIDE):
                self.tally.withheld[event.what] += 1
                continue
            elif isinstance(event, Finish):
                self.whole += 1
            out += release.feed(event, ends)
        if release.over:
            last = self._enough(out) or last
        if last and release.pending:
            self.one.watch.now("checks")
            while release.pending:
                out += await release.settle()
            self.one.watch.now("stream")
        return self._noted(out)

    async def settled(self) -> list[Item]:
        """What may leave once the next model has answered."""
        assert self.release is not None
        out = await self.release.settle()
        if self.release.over and self._enough(out):
            while self.release.pending:
                out += await self.release.settle()
        return self._noted(out)

    def _enough(self, out: list[Out]) -> bool:
        """Ends a reply of which nothing more can leave before the server has ended it; whether it did. One that is
        whole is read to its end, where the usage stands."""
        release = self.release
        assert release is not None
        if release.ended or self.whole >= release.n:
            return False
        out += release.feed(End())
        return True

    @property
    def pending(self) -> bool:
        return self.release is not None and self.release.pending > 0

    def _noted(self, out: Sequence[Out | Item]) -> list[Item]:
        """Keeps what is told of alternatives and counted; what is broken is raised."""
        left: list[Item] = []
        for item in out:
            if isinstance(item, Delta):
                text = item.text
                self.coming += len(text) if text.isascii() else len(text.encode())
            elif isinstance(item, Open):
                self.coming += len(item.name.encode()) if item.place == "tool_call" else 0
            elif isinstance(item, Noted | Stop):
                self.tolds.append((item.choice, item.told))
                if self.told is None or SEVERITY[item.told.decision] > SEVERITY[self.told.decision]:  # type: ignore[index]
                    self.told = item.told
            elif isinstance(item, Finish):
                self.coming += len(item.stop.encode()) if item.stop else 0
            elif isinstance(item, About):
                self.usage.update({k: v for k, v in item.numbers.items() if type(v) is int})
            elif isinstance(item, CheckFailed):
                self.told = item.told
                raise self._broken(item.told, "" if item.check else item.why)
            left.append(item)
        return left

    def _broken(self, told: Told, why: str = "") -> Broken:
        if why:  # no check: something the server said
            return Broken(502, f"{why} ({told.verdict})", again=False)
        why = NO_CHECK.format(f"{told.principle or 'no principle'}, {told.verdict}")
        return Broken(503, why, again=False, kind="check_failed")

    # ------------------------------------------------------------------------------------- what is kept

    def sent(self) -> None:
        """What was let go so far is about to be sent."""
        self.written += self.coming
        self.coming = 0
        self.ledger.sent()

    async def settle(self) -> None:
        """Writes the entry of a request whose reply is about to leave, or to end; with a strict log, waits for it."""
        self.sent()
        log = self.one.log
        if log is None:
            return
        self.number = self._record(log, 200)
        if log.options.strict:
            await log.settled(self.number)

    def close(self) -> None:
        """The request is over."""
        one, release, log = self.one, self.release, self.one.log
        if release is not None and not release.ended:
            if release.over:
                release.feed(End())
            else:
                release.close()
        self.release = None  # it knows us (`_escalate`): nothing of a request has to wait for the collector
        self.ledger.forget()  # something broke in between: what was let go stays here
        merge(one.tally, self.tally)
        for kind, n in self.usage.items():
            one.metrics.counts["tokens", one.account.name, kind] += n
        if log is None:
            return
        if self.number is None:
            self._record(log, one.out.status or self.status)
        elif self.ended:
            log.unsent(self.number, self.ended)

    def _used(self) -> dict[str, int]:
        """Tokens by the model's own count, and how often each model among the checks was asked, or was not because
        that would have cost more than it may."""
        kinds = ("asked", "refused by a cap")
        asked = {f"{what} {check}": n for (check, what), n in self.tally.cost.items() if what in kinds}
        return {**self.usage, **asked} if asked else self.usage

    def _record(self, log: AuditLog, status: int) -> int:
        one, ledger, book, told, tally = self.one, self.ledger, self.book, self.told, self.tally
        entry = Entry(
            self._began, one.id, one.asked.route, self.decision, book.sha256, book.classifier, one.account.digest,
            one.asked.stream, told.principle if told else "", told.verdict if told else "",
            hashlib.sha256(one.raw).hexdigest(), tuple(ledger.verdicts), ledger.ranges, self.written,
            _some(tally.withheld), _some(tally.passed), tuple(ledger.shadow), self._used(),
            status=status, ended=self.ended, policy=book.policy,
        )  # fmt: skip
        # the release's verdicts and ranges have the fields that the log wants
        said: tuple[tuple[str, str], ...] = ()  # the reply as it left, never as it came
        keep = None if one.account.retention_days is None else one.account.retention_days * 86_400
        if one.settings.audit.store_text:
            said = (("asked", one.raw.decode("utf-8", "replace")),)
            if released := ledger.said:
                said += (("released", dumped(released).decode()),)
        return log.record(entry, said, keep, self.escalated)


def _some(counter: Mapping[str, int]) -> dict[str, int]:
    return {what: n for what, n in counter.items() if n}


def whole(items: Sequence[Item]) -> list[Event]:
    """What a reply in one body is written from: notes stand beside it, and a stop is how its alternative finished."""
    out: list[Event] = []
    for item in items:
        if isinstance(item, Stop):
            out.append(Finish(item.choice, item.reason))
        elif not isinstance(item, Noted):
            out.append(item)
    return out


def merge(all_: Tally, one: Tally) -> None:
    """Adds the counts of a request to those of the worker."""
    for name in ("replies", "decisions", "failed", "withheld", "passed", "cost", "shadow"):
        counts = getattr(one, name)
        if counts:  # a loop, since `Counter.update` asks what it was given at every call
            total = getattr(all_, name)
            for what, n in counts.items():
                total[what] += n


def everything_waits(plan: Plan) -> Plan:
    """The same plan for replies that are not streamed: nothing leaves before an alternative is whole, so that all of
    it can still be redacted or refused."""
    return replace(plan, buffered=frozenset().union(*WIRE.values()))
