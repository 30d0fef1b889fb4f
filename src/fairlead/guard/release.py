"""From what a provider says to what leaves: nothing leaves before every check that covers it has let it go.

One `Release` per request. It is told of every event that comes (`feed`) and gives the events that may leave; where a
check is a model, more of them come later (`settle`). What leaves of a text is what every watch lets go, the least of
them all; where a principle streams by `buffer`, nothing of the places it covers leaves before the alternative is whole.
What has left cannot be taken back: from then on text can be painted over ahead, or the alternative is stopped. The
ledger holds which verdict let which characters go. Nothing here knows of sockets or formats.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Message
from fairlead.guard import ending
from fairlead.guard.alternative import NEVER, Alternative
from fairlead.guard.calling import NAME, called
from fairlead.guard.cascade import Questions
from fairlead.guard.decision import Decision
from fairlead.guard.holding import Held, readable, writable
from fairlead.guard.leaving import drain
from fairlead.guard.ledger import Ledger
from fairlead.guard.plan import Plan
from fairlead.guard.released import Broken, Out
from fairlead.guard.saying import failed, ruled
from fairlead.guard.tally import Tally
from fairlead.guard.watch import STOP, Seen, Watch
from fairlead.guard.wire.events import (
    About,
    Channel,
    Close,
    Delta,
    End,
    Event,
    Failed,
    Finish,
    Opaque,
    Open,
    Unknown,
)

if TYPE_CHECKING:
    from fairlead.guard.cascade import Asker

Escalate = Callable[[Exchange, Decision, str], None]
"""Hands an exchange, the decision and the id of its verdict to the people who look at it."""


class Release:
    """The release of one request's reply.

    messages  what was asked, as the checks read it
    tools     names of the tools that may be called; None where nobody here can tell
    asker     asks models; needed where the plan has some, or revises
    dear      how many dear questions it may still ask them; None for what the plan says
    pending   how many answers of models are outstanding: `settle` waits for the next
    over      everything that can leave has left: the upstream is not needed any more, `feed(End())` ends it
    """

    def __init__(
        self,
        plan: Plan,
        messages: Sequence[Message],
        *,
        asker: Asker | None = None,
        tenant: str = "",
        tally: Tally | None = None,
        ledger: Ledger | None = None,
        n: int = 1,
        escalate: Escalate | None = None,
        rounds: int | None = None,
        dear: int | None = None,
        tools: Collection[str] | None = None,
    ) -> None:
        self.plan, self.messages, self.tenant, self.n = plan, tuple(messages), tenant, n
        self.tally = Tally() if tally is None else tally
        self.ledger = Ledger() if ledger is None else ledger
        self.escalate, self.asker, self.tools = escalate, asker, tools
        self.rounds = plan.rounds if rounds is None else rounds
        self.over = self.ended = self.sent = False
        self.refusing: tuple[Decision, str] | None = None  # a watch failed closed: so every alternative is refused
        self.questions: Questions | None = None
        if plan.models or plan.revise is not None:
            if asker is None:
                raise InputError("these checks ask models: give the release an asker (cascade.Asker)")
            self.questions = Questions(self, asker, plan.dear if dear is None else dear)
        self.shadowed = plan.shadowed
        self._keep = self.questions is not None or escalate is not None
        self.texts: dict[Channel, Held] = {}
        self.choices: dict[int, Alternative] = {}
        self.live: list[tuple[int, Watch]] = []
        self.took = [0.0] * len(plan.followed)  # seconds, by check of code
        for i in plan.codes:
            start, began = plan.followed[i].start, perf_counter()
            assert start is not None
            self.live.append((i, start(self.messages)))
            self.took[i] = perf_counter() - began
        self.open_failed: dict[int, str] = {}  # watches that failed open, by the verdict that says so
        self.let = [NEVER if one.policy.shadow or one.asleep else 0 for one in plan.followed] + [NEVER]
        self._out: list[Out] = []
        self._abouts: list[Out] = []
        self.dirty: set[int] = set()
        self._end = False
        self._news: asyncio.Event | None = None

    # ------------------------------------------------------------------------------------ in, and out

    def feed(self, event: Event, last: bool = False) -> list[Out]:
        """One event from the provider; what may leave now. `last`: a `Delta` that ends its text, whose `Close` is not
        fed then, so that every check reads it once."""
        if self.ended:
            return self.take()
        if last and isinstance(event, Delta):
            self._delta(event, True)
        else:
            _ACTS[type(event)](self, event)
        return self.take()

    @property
    def pending(self) -> int:
        """How many answers of models the reply waits for."""
        return sum(choice.waiting for choice in self.choices.values() if not choice.ended)

    async def settle(self) -> list[Out]:
        """Waits for the next answer of a model, and gives what may leave then. Returns at once where none is due."""
        if self.pending and not self._out:
            if self._news is None:
                self._news = asyncio.Event()
            self._news.clear()
            await self._news.wait()
        return self.take()

    def take(self) -> list[Out]:
        out, self._out = self._out, []
        return out

    def close(self) -> None:
        """Nobody reads any more: what is outstanding is dropped, and counted."""
        for choice in self.choices.values():
            if not choice.ended:
                self._cut_off(choice)
        self.over = self.ended = True
        if self.questions is not None:
            self.questions.close()

    def news(self) -> None:
        """An answer was worked in: wakes who waits in `settle`."""
        if self._news is not None:
            self._news.set()

    def emit(self, *events: Out) -> None:
        if self._abouts:
            self._out += self._abouts
            self._abouts = []
        self._out += events
        self.sent = True

    # --------------------------------------------------------------------------------- what comes in

    def _alternative(self, index: int) -> Alternative:
        choice = self.choices.get(index)
        if choice is None:
            choice = self.choices[index] = Alternative(index)
            if self.refusing is not None:
                choice.judge(*self.refusing)
        return choice

    def _open(self, event: Open) -> None:
        choice = self._alternative(event.channel.choice)
        if event.channel in self.texts:
            raise ValueError(f"{event.channel} was opened twice")
        self._hold(choice, event)

    def _hold(self, choice: Alternative, event: Open) -> Held:
        let = self.let.copy()
        for i in choice.awake:
            if not self.plan.followed[i].policy.shadow:
                let[i] = 0
        text = self.texts[event.channel] = Held(event, let, self._keep)
        if event.channel.part != STOP:
            choice.texts.append(text)
        return text

    def _delta(self, event: Delta, last: bool = False) -> None:
        text = self.texts[event.channel]
        choice = self.choices[event.channel.choice]
        if choice.ended or text.whole:
            self.tally.withheld["text after the end"] += 1
            return
        if not event.text:
            if last:
                self._complete(choice, text)
            return
        body = writable(event.text)
        if not event.logprobs:
            text.add(body)
        else:
            log, hidden = readable(body, event.logprobs, alternatives=self.plan.top_logprobs)
            text.add(body, log)
            if hidden:
                counts = self.tally.passed if self.plan.top_logprobs else self.tally.withheld
                counts["log-prob alternatives"] += hidden
            if not log:
                self.tally.withheld["log-probs of another text"] += 1
        if last:
            self._complete(choice, text, body)
        elif text.place != "tool_call":
            self._tell(choice, text, Seen(event.channel, text.place, body))

    def _closed(self, event: Close) -> None:
        text, choice = self.texts[event.channel], self.choices[event.channel.choice]
        if not choice.ended and not text.whole:
            self._complete(choice, text)

    def _complete(self, choice: Alternative, text: Held, new: str = "") -> None:
        """A text is whole, with what is `new` at its end."""
        text.whole = True
        if text.place != "tool_call":
            self._tell(choice, text, Seen(text.channel, text.place, new, True))
            return
        arguments = called(self, choice, text)
        if arguments is None:
            self.act(choice)
        else:
            self._tell(choice, text, Seen(text.channel, "tool_call", arguments, True, text.name))

    def _tell(self, choice: Alternative, text: Held, seen: Seen) -> None:
        now, took, followed = perf_counter(), self.took, self.plan.followed
        for i, watch in self.live:
            try:
                ruling = watch.feed(seen)
                before, now = now, perf_counter()
                took[i] += now - before
                if took[i] > followed[i].deadline:
                    self._late(i, choice)
                else:
                    ruled(self, i, ruling, choice)
            except Exception as problem:  # noqa: BLE001  # becomes a counted failure of the check, closed by default
                failed(self, i, choice, f"raised {type(problem).__name__}")
        if self.questions is not None and not choice.hard:
            self.questions.more(choice)
        self.act(choice)

    def _late(self, i: int, choice: Alternative) -> None:
        """Code cannot be interrupted: that it was late is seen when it gives back, and what it said does not count."""
        told = f"took {self.took[i]:.2g} s, {self.plan.followed[i].deadline:g} s is what it may take in one request"
        failed(self, i, choice, told)

    def _finish(self, event: Finish) -> None:
        choice = self._alternative(event.choice)
        if choice.ended or choice.finish is not None:
            return
        for text in choice.texts:
            if not text.whole and not choice.ended:
                self._complete(choice, text)
        if event.stop and not choice.ended:
            channel = Channel(event.choice, STOP)
            choice.stop = self._hold(choice, Open(channel, "reply"))
            choice.stop.add(writable(event.stop))
            choice.stop.whole = True
            self._tell(choice, choice.stop, Seen(channel, "reply", writable(event.stop), True))
        if choice.ended:
            return
        choice.finish = event
        for i, watch in self.live:
            try:
                began = perf_counter()
                ruling = watch.finish(event.choice)
                self.took[i] += perf_counter() - began
                if self.took[i] > self.plan.followed[i].deadline:
                    self._late(i, choice)
                elif ruling.decision.outcome == "hold":
                    failed(self, i, choice, "asked to hold a reply of which no more is coming")
                else:
                    ruled(self, i, ruling, choice)
            except Exception as problem:  # noqa: BLE001  # as above
                failed(self, i, choice, f"raised {type(problem).__name__}")
        if self.questions is not None and not choice.hard:
            self.questions.last(choice)
        ending.whole(self, choice)

    def _about(self, event: About) -> None:
        id, model = (text if NAME.fullmatch(text) else "" for text in (event.id, event.model))
        kept = event if (id, model) == (event.id, event.model) else About(id, model, event.created, event.numbers)
        if self.sent:
            self._out.append(kept)
        else:
            self._abouts.append(kept)

    def _opaque(self, event: Opaque) -> None:
        choice = self._alternative(event.choice)
        if self.plan.opaque == "drop" or choice.ended:
            self.tally.withheld[f"opaque {event.kind}"] += 1
            return
        self.tally.passed[f"opaque {event.kind}"] += 1
        choice.passed.append((len(choice.texts), event))
        self.act(choice)

    def _unknown(self, event: Unknown) -> None:
        self.tally.withheld["unknown event"] += 1
        if self.plan.unknown == "drop":
            return
        why = "the upstream said something that has no name here"
        verdict = self.ledger.verdict("guard", "", "failed", why)
        for index in range(self.n):
            choice = self._alternative(index)
            if not choice.ended and not self.ended:
                choice.judge(Decision("failed", "", why), verdict)
                ending.end(self, choice)

    def _broke_off(self, event: Failed) -> None:
        for choice in self.choices.values():
            if not choice.ended:
                self._cut_off(choice)
        self.emit(event)
        self.over = self.ended = True

    def _last(self, event: End) -> None:
        if not self.choices:
            self._broke_off(Failed("the upstream ended without a reply"))
            return
        if not self.over and any(choice.finish is None and not choice.ended for choice in self.choices.values()):
            self._broke_off(Failed("the upstream ended in the middle of a reply"))
            return
        self._end = True
        self.check_over()

    # ------------------------------------------------------------------------- what the others call

    def act(self, choice: Alternative) -> None:
        """After something was said: ends what has to end, lets go of what may."""
        self.dirty.add(choice.index)
        while self.dirty:
            other = self.choices[self.dirty.pop()]
            if other.hard and not other.ended:
                ending.end(self, other)
            elif not other.ended:
                drain(self, other)

    def whole(self, choice: Alternative) -> None:
        ending.whole(self, choice)

    def give_up(self, choice: Alternative, why: str) -> None:
        ending.give_up(self, choice, why)

    def lost(self, choice: Alternative, why: str) -> None:
        """Something of the guard itself broke: nothing of the alternative leaves."""
        if not choice.ended:
            choice.judge(Decision("failed", "", why), self.ledger.verdict("guard", "", "failed", why))
            ending.end(self, choice)

    def broke(self, broken: Broken) -> None:
        """A check failed closed before anything left: there is no reply at all."""
        for choice in self.choices.values():
            choice.ended = True
        self._abouts = []
        self._out.append(broken)
        self.over = self.ended = True
        self.tally.replies["failed"] += 1
        self.news()

    def take_over(self, choice: Alternative, out: Sequence[Out], how: str) -> None:
        """What the release of a revision let go stands for the alternative."""
        broken = next((event for event in out if isinstance(event, Broken)), None)
        if broken is not None:
            self.broke(broken)
            return
        self.emit(*out)
        ending.done(self, choice, how)

    def check_over(self) -> None:
        """Ends the reply where every alternative has ended, and the provider has or is not needed any more."""
        if self.ended:
            return
        self.news()
        ended = sum(choice.ended for choice in self.choices.values())
        self.over = ended == len(self.choices) and (self._end or ended >= self.n)
        if self._end and self.over:
            self.emit(End())
            self.ended = True

    def _cut_off(self, choice: Alternative) -> None:
        choice.withheld += sum(text.drop() for text in choice.texts if not text.done)
        ending.done(self, choice, "cut off")


_ACTS: dict[type, Callable[[Release, Any], None]] = {
    Delta: Release._delta, Open: Release._open, Close: Release._closed, Finish: Release._finish, About: Release._about,
    Opaque: Release._opaque, Unknown: Release._unknown, Failed: Release._broke_off, End: Release._last,
}  # fmt: skip
