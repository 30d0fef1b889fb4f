"""One alternative of a reply on its way: its texts, what was said of it, and how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fairlead.exchange import Message, ToolCall
from fairlead.guard.decision import SEVERITY, Decision
from fairlead.guard.holding import Held
from fairlead.guard.watch import Seen, as_part
from fairlead.guard.wire.events import Finish, Opaque

if TYPE_CHECKING:
    from fairlead.guard.release import Release

NEVER = 1 << 62
"""How far a check lets go that has no say in a text: farther than any text is long."""

_END = SEVERITY["escalate"]


class Alternative:
    """State of one alternative.

    texts     its parts, in the order in which they were opened; those before `first` have left
    stop      the string that ended it, a text like others
    passed    events that no check reads and that the policy lets pass: (number of parts before it, event)
    worst     the most severe decision so far, with the id of its verdict; `revising` the one to revise, apart
    finish    how it ended, once the provider said so; `whole` once everything may leave; `ended` once it is over
    sent      something of it has left
    waiting   answers of models that are outstanding; `stages` models to be asked after them
    awake     models that sleep until a doubt wakes them
    """

    __slots__ = (
        "again", "asking", "awake", "calls", "cover", "ended", "finish", "first", "index", "lost_call", "passed",
        "revising", "sent", "shadow", "shadow_open", "stages", "stop", "texts", "verdict", "waiting", "whole",
        "withheld", "worst",
    )  # fmt: skip

    def __init__(self, index: int) -> None:
        self.index = index
        self.texts: list[Held] = []
        self.first = self.calls = self.withheld = self.waiting = self.shadow_open = 0
        self.stop: Held | None = None
        self.passed: list[tuple[int, Opaque]] = []
        self.worst: Decision | None = None
        self.verdict = ""
        self.revising: tuple[Decision, str] | None = None
        self.finish: Finish | None = None
        self.whole = self.ended = self.sent = self.lost_call = False
        self.stages: list[list[int]] = []
        self.awake: set[int] = set()
        self.asking: set[int] = set()
        self.again: set[int] = set()  # models to be asked once more: a doubt came while they were reading
        self.cover: tuple[str, ...] | None = None
        self.shadow: dict[str, str] = {}

    @property
    def principle(self) -> str:
        return self.worst.principle if self.worst is not None else ""

    @property
    def hard(self) -> bool:
        """Nothing more of it may leave. What has left cannot be revised."""
        return (self.worst is not None and SEVERITY[self.worst.outcome] >= _END) or (
            self.revising is not None and self.sent
        )

    @property
    def all_texts(self) -> tuple[Held, ...]:
        return (*self.texts, self.stop) if self.stop is not None else tuple(self.texts)

    def judge(self, decision: Decision, verdict: str) -> None:
        """The most severe decision counts; of equals the first."""
        if decision.outcome == "revise":
            self.revising = self.revising or (decision, verdict)
        elif self.worst is None or SEVERITY[decision.outcome] > SEVERITY[self.worst.outcome]:
            self.worst, self.verdict = decision, verdict

    def reply(self) -> tuple[Message, ...]:
        """What came so far, as checks and people read it. Needs texts that are kept."""
        parts = tuple(
            as_part(Seen(text.channel, text.place, "", name=text.name), "".join(text.kept or ()))
            for text in self.all_texts
            if text.kept
        )
        return (Message("assistant", parts),) if parts else ()

    def number(self, call: Held, messages: Sequence[Message]) -> int:
        """How many calls stand in the conversation before this one."""
        before = sum(isinstance(part, ToolCall) for message in messages for part in message.parts)
        return before + [one for one in self.texts if one.place == "tool_call"].index(call)

    def covering(self, release: Release, text: Held, upto: int) -> tuple[tuple[str, ...], int]:
        """Ids of the verdicts that let the next characters of a text go, and how far they all reach."""
        cover = self.cover
        if cover is None:
            cover = self.cover = _base(release)
        if not text.segments:
            return cover, upto
        more = []
        for answers in text.segments.values():
            while answers and answers[0][0] <= text.out:
                answers.popleft()
            if answers:
                more.append(answers[0][1])
                upto = min(upto, answers[0][0])
        return (*cover, *more), upto

    def would(self, key: str, outcome: str) -> None:
        """A check in shadow mode would have done this: the most severe counts."""
        before = self.shadow.get(key, "allow")
        if SEVERITY[outcome] > SEVERITY[before]:  # type: ignore[index]
            self.shadow[key] = outcome

    def count(self, release: Release) -> None:
        """Counts what shadow mode would have done, once all of it is known; an alternative cut short is no case."""
        if self.finish is None or not self.ended or self.shadow_open:
            return
        for key in release.shadowed:
            release.tally.shadow[key, self.shadow.get(key, "allow")] += 1


def _base(release: Release) -> tuple[str, ...]:
    """One verdict per check that follows the stream: it stands for all that this check lets go of the alternative."""
    ids = []
    for i in release.plan.codes:
        one = release.plan.followed[i]
        if not one.policy.shadow:
            failed = release.open_failed.get(i)
            ids.append(failed or release.ledger.verdict(one.name, one.principle, "allow"))
    if not ids and all(one.policy.shadow for one in release.plan.followed):
        ids.append(release.ledger.verdict("guard", "", "allow", "no check stands over this place"))
    return tuple(ids)
