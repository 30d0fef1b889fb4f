"""The guard of one request, between a format and a model's server: what is asked is checked, what comes is released,
and what left is written into the audit log.

It calls the release (release.py) and the checks of prompts, and knows nothing of bytes or sockets.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from fairlead.guard.audit.entry import Entry
from fairlead.guard.decision import SEVERITY, Decision
from fairlead.guard.pieces import redact
from fairlead.guard.plan import DEADLINES, WIRE, Plan
from fairlead.guard.pool import NoAnswer
from fairlead.guard.proxy.upstream import Broken
from fairlead.guard.release import Release
from fairlead.guard.released import Broken as CheckFailed
from fairlead.guard.released import Noted, Stop
from fairlead.guard.wire.asked import Asked, with_messages
from fairlead.guard.wire.events import About, Channel, Close, Delta, End, Event, Finish, Open, Told, Unknown

if TYPE_CHECKING:
    from fairlead.guard.proxy.exchange import Exchange
    from fairlead.guard.proxy.setup import Book
    from fairlead.guard.watch import PromptCheck
    from fairlead.guard.wire.format import Writer

Item: TypeAlias = Event | Noted | Stop

NO_CHECK = "a check of this guard is broken, and its principle lets nothing pass without it ({})"


# What is withheld and counted, and does not end the reply: no text of it, but something beside it.
_ASIDE = ("field of", "finish_reason", "stop_reason", "incomplete_details", "log-probs")


@dataclass(frozen=True, slots=True)
class Prompted:
    """What is asked is answered by the guard itself."""

    items: tuple[Item, ...]


class Guarding:
    """Made when a request was read; `close` ends it, whatever happened."""

    def __init__(self, one: Exchange) -> None:
        book, asked = one.account.book, one.asked
        self.one, self.book = one, book
        self.release = Release(
            book.plan if asked.stream else book.whole, asked.messages, asker=book.asker, tenant=one.account.name,
            tally=one.tally, n=asked.n,
        )  # fmt: skip
        self.told: Told | None = None
        self.tolds: list[tuple[int, Told]] = []
        self.usage: dict[str, int] = {}
        self.written = 0  # bytes of text that were handed on to be written
        self.number: int | None = None  # of the entry in the audit log
        self.writer: Writer | None = None  # of a stream that may have begun
        self.ended = ""  # how it ended, where not as it should
        self._began = time.time()

    @property
    def decision(self) -> str:
        return self.told.decision if self.told is not None else "allow"

    @property
    def done(self) -> bool:
        """Nothing more of the server's answer is needed."""
        return self.release.over or self.release.ended

    # ------------------------------------------------------------------------------------ what is asked

    async def ask(self) -> Asked | Prompted:
        """Checks what is asked: the request to send on, perhaps with texts painted over, or an answer in its place."""
        asked, release = self.one.asked, self.release
        for drop in asked.dropped:
            self.one.metrics.counts["dropped", drop] += 1
        for check in self.book.prompts:
            decision = await _answer(check, asked, self.book)
            policy = release.plan.policy(decision.principle)
            if decision.outcome in ("allow", "hold"):
                continue
            closed = decision.outcome != "failed" or policy.on_error == "refuse"
            verdict = release.ledger.verdict(
                check.name, decision.principle, decision.outcome, decision.evidence, shadow=policy.shadow
            )
            if decision.outcome == "failed":
                release.tally.failed[check.name, "closed" if closed else "open"] += 1
            if policy.shadow:
                release.tally.shadow[decision.principle or check.name, decision.outcome] += 1
                continue
            if not closed:
                continue
            release.tally.decisions[decision.principle or check.name, decision.outcome] += 1
            told = Told(decision.outcome, decision.principle, verdict)
            if self.told is None or SEVERITY[decision.outcome] > SEVERITY[self.told.decision]:  # type: ignore[index]
                self.told = told
            if decision.outcome == "failed":
                raise self._broken(told)
            if decision.outcome != "redact":
                return self._instead(policy.say, told)
            try:
                asked = with_messages(asked, redact(asked.messages, decision.spans))
            except ValueError:
                return self._instead(policy.say, told)
            self.release.messages = asked.messages
        return asked

    def _instead(self, say: str, told: Told) -> Prompted:
        items: list[Item] = [About(model=self.one.asked.model)]
        for choice in range(self.one.asked.n):
            channel = Channel(choice, 0)
            items += Open(channel, "reply"), Delta(channel, say), Close(channel)
            items += Noted(choice, told), Finish(choice, "content_filter")
            self.release.ledger.write(choice, 0, "guard", say, (told.verdict,))
        self.release.tally.replies["refuse"] += self.one.asked.n
        return Prompted((*self._noted(items), End()))

    # ------------------------------------------------------------------------------------- what comes

    async def feed(self, events: Sequence[Event]) -> list[Item]:
        """What may leave now. Waits for models only where nothing more will come."""
        release, out = self.release, []
        last = False
        for event in events:
            kind = type(event)
            if kind is End:
                last = True
            elif kind is Unknown and event.what.startswith(_ASIDE):
                release.tally.withheld[event.what] += 1
                continue
            out += release.feed(event)
        if last and release.pending:
            self.one.watch.now("checks")
            while release.pending:
                out += await release.settle()
            self.one.watch.now("stream")
        return self._noted(out)

    async def settled(self) -> list[Item]:
        """What may leave once the next model has answered."""
        return self._noted(await self.release.settle())

    @property
    def pending(self) -> bool:
        return self.release.pending > 0

    def _noted(self, out: Sequence[Any]) -> list[Item]:
        """Keeps what is told of alternatives and counted; what is broken is raised."""
        for item in out:
            kind = type(item)
            if kind is Delta:
                text = item.text
                self.written += len(text) if text.isascii() else len(text.encode())
            elif kind is Noted or kind is Stop:
                self.tolds.append((item.choice, item.told))
                if self.told is None or SEVERITY[item.told.decision] > SEVERITY[self.told.decision]:  # type: ignore[index]
                    self.told = item.told
            elif kind is Finish:
                self.written += len(item.stop.encode()) if item.stop else 0
            elif kind is About:
                self.usage.update({k: v for k, v in item.numbers.items() if type(v) is int})
            elif kind is CheckFailed:
                self.told = item.told
                raise self._broken(item.told, item.why)
        return list(out)

    def _broken(self, told: Told, why: str = "") -> Broken:
        if not told.principle and why:  # no check of a principle: something the server said
            return Broken(502, f"{why} ({told.verdict})", again=False)
        why = NO_CHECK.format(f"{told.principle or 'no principle'}, {told.verdict}")
        return Broken(503, why, again=False, kind="check_failed")

    # ------------------------------------------------------------------------------------- what is kept

    async def settle(self) -> None:
        """Writes the entry of a request whose reply is about to end; with a strict log, waits until it is kept."""
        log = self.one.log
        if log is None:
            return
        self.number = log.record(self._entry(200, ""))
        if log.options.strict:
            await log.settled(self.number)

    def close(self) -> None:
        """The request is over."""
        release, log, ended = self.release, self.one.log, self.ended
        if not release.ended:
            release.close()
        for kind, n in self.usage.items():
            self.one.metrics.counts["tokens", self.one.account.name, kind] += n
        if log is None:
            return
        if self.number is None:
            self.number = log.record(self._entry(self.one.out.status, ended))
        elif ended:
            log.unsent(self.number, ended)

    def _entry(self, status: int, ended: str) -> Entry:
        one, ledger, book, told = self.one, self.release.ledger, self.book, self.told
        return Entry(
            self._began,
            one.id,
            one.asked.route,
            self.decision,
            book.sha256,
            book.classifier,
            one.account.digest,
            one.asked.stream,
            told.principle if told else "",
            told.verdict if told else "",
            hashlib.sha256(one.raw).hexdigest(),
            tuple(ledger.verdicts),
            ledger.ranges,
            self.written,
            shadow=tuple(ledger.shadow),
            usage=self.usage,
            status=status,
            ended=ended,
        )  # type: ignore[arg-type]  # the ledger's verdicts and ranges have the same fields


async def _answer(check: PromptCheck, asked: Asked, book: Book) -> Decision:
    """What a check of prompts says; what goes wrong inside it is a decision `failed`. A model is asked in the pool."""
    why = "gave no decision"
    try:
        if getattr(check, "cost", 0) and book.asker is not None:
            deadline = DEADLINES.get(check.cost, book.plan.budget)  # type: ignore[attr-defined]
            said: object = await book.asker.pool.submit(check.name, partial(check.ask, asked.messages), deadline)
        else:
            said = check.ask(asked.messages)
        if isinstance(said, Decision):
            return said if said.check else replace(said, check=check.name)
    except NoAnswer as late:
        why = str(late)
    except Exception as problem:  # noqa: BLE001  # becomes a counted failure of the check, closed by default
        why = f"raised {type(problem).__name__}"
    return Decision("failed", getattr(check, "principle", ""), why, (), check.name)


def whole(items: Sequence[Item]) -> list[Event]:
    """What a reply in one body is written from: notes stand beside it, and a stop is how its alternative finished."""
    out: list[Event] = []
    for item in items:
        if isinstance(item, Stop):
            out.append(Finish(item.choice, item.reason))
        elif not isinstance(item, Noted):
            out.append(item)
    return out


def everything_waits(plan: Plan) -> Plan:
    """The same plan for replies that are not streamed: nothing leaves before an alternative is whole, so that all of
    it can still be redacted or refused."""
    return replace(plan, buffered=frozenset().union(*WIRE.values()))
