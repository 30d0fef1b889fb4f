"""The classifier as a check: of replies, of prompts, and of streams by windows."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from fairlead.constitution.schema import Constitution
from fairlead.exchange import Exchange, Message
from fairlead.guard.classifier.artefact import Head
from fairlead.guard.classifier.model import Classifier
from fairlead.guard.classifier.reading import asked, windows
from fairlead.guard.decision import ALLOW, Decision, Outcome, unplaced
from fairlead.guard.pieces import PLACES
from fairlead.guard.watch import Doubt, Ruling, Seen, Watch
from fairlead.guard.wire.events import Channel
from fairlead.judges.lineage import Lineage

SEEN = 0.9
"""Of what breaks a principle on the validation part, the share that a classifier has to doubt, or to be sure of, for a
critic to be asked on its doubt alone."""


@dataclass(frozen=True)
class ClassifierCheck:
    """One principle of a classifier as a check. A `Check`, a `PromptCheck` and a `StreamCheck`; and a `Sharing` one, so
    that an exchange is read once for all principles.

    It knows that something is broken and not where: what would be redacted is refused, and so is what would be revised
    in a stream that has begun to go out (the guard decides on that). Between `doubt` and the threshold it says nothing
    but leaves evidence; with `cascade` it is in doubt there, and dearer checks of its principle are asked on its doubt
    alone: cheaper, and no safer than the classifier is.
    """

    classifier: Classifier
    principle: str
    on_violation: Outcome = "refuse"
    at: frozenset[str] = PLACES
    cost: int = 1
    cascade: bool = False

    def __post_init__(self) -> None:
        if self.exchange_head is None and self.prompt_head is None:
            raise ValueError(f"the classifier {self.classifier.manifest.name} has no head for {self.principle!r}")

    @property
    def name(self) -> str:
        return f"classifier:{self.principle}"

    @property
    def lineage(self) -> Lineage:
        return self.classifier.lineage

    @property
    def window(self) -> int:
        """Characters that have to come before a growing reply is read again, by who asks checks of this cost."""
        return self.classifier.reading.step

    @property
    def context(self) -> int:
        """Characters before those that are read with them."""
        return self.classifier.reading.window - self.classifier.reading.step

    @property
    def exchange_head(self) -> int | None:
        return self.classifier.head(self.principle, "exchange")

    @property
    def prompt_head(self) -> int | None:
        return self.classifier.head(self.principle, "prompt")

    def decide(self, exchanges: Sequence[Exchange]) -> list[Decision]:
        h = self.exchange_head
        if h is None:
            return [ALLOW] * len(exchanges)
        p_NH = self.classifier.judge(exchanges, self.at)
        return [self._decision(h, float(p)) for p in p_NH[:, h]]

    @property
    def asks(self) -> frozenset[str]:
        return frozenset({self.principle}) if self.cascade and self.settles else frozenset()

    @property
    def settles(self) -> bool:
        """Whether dearer checks need be asked on its doubt alone. Not where it reads prompts only, is never in doubt,
        or lets more of what breaks the principle through without a doubt than `SEEN` allows: then they read all."""
        return self._settles(self.exchange_head)

    @property
    def settles_prompts(self) -> bool:
        """The same of what is asked: a critic of it is spared where this one allows without a doubt."""
        return self.cascade and self._settles(self.prompt_head)

    def _settles(self, h: int | None) -> bool:
        head = None if h is None else self.classifier.heads[h]
        return head is not None and head.doubt < head.threshold and head.seen >= SEEN

    def weigh(self, exchanges: Sequence[Exchange]) -> list[Decision | Doubt]:
        """As `decide`, but what is doubtful is said as a doubt, for the dearer checks of the principle."""
        return [self._weighed(said) for said in self.decide(exchanges)]

    @property
    def model(self) -> Hashable:
        return (self.classifier.sha256, self.at)

    def read(self, exchanges: Sequence[Exchange]) -> list[Sequence[float]]:
        """P(broken) by head, of each exchange."""
        return list(self.classifier.judge(exchanges, self.at))

    def said(self, reading: Sequence[float]) -> Decision | Doubt:
        h = self.exchange_head
        return ALLOW if h is None else self._weighed(self._decision(h, float(reading[h])))

    def _weighed(self, said: Decision) -> Decision | Doubt:
        doubtful = bool(self.asks) and said.outcome == "allow" and bool(said.evidence)
        return Doubt(self.principle, said, said.evidence) if doubtful else said

    @property
    def doubt(self) -> tuple[float, float]:
        """P(broken) of a reply from which on it is in doubt, and from which on it is sure that it is broken."""
        head = self.classifier.heads[self.exchange_head or 0]
        return head.doubt, head.threshold

    @property
    def seen(self) -> float:
        """Of what broke the principle on the validation part, the share from the doubt on."""
        return self.classifier.heads[self.exchange_head or 0].seen

    def ask(self, messages: Sequence[Message]) -> Decision:
        h = self.prompt_head
        if h is None:
            return ALLOW
        return self._decision(h, float(self.classifier.judge([Exchange(tuple(messages), ())])[0, h]))

    def watch(self, messages: Sequence[Message]) -> Watch:
        return Windows(self, asked(messages, self.classifier.reading))

    def _decision(self, h: int, p: float) -> Decision:
        if math.isnan(p):
            return Decision("allow", self.principle, "", (), self.name)  # nothing of it stands where this check looks
        return self.ruled(self.classifier.heads[h], p)

    def ruled(self, head: Head, p: float) -> Decision:
        """What follows from P(broken)."""
        if p < head.doubt:
            return Decision("allow", self.principle, "", (), self.name)
        if p < head.threshold:
            told = f"doubtful: P(broken) {p:.3f}, from {head.threshold:.3f} on it counts"
            return Decision("allow", self.principle, told, (), self.name)
        told = f"P(broken) {p:.3f}, at least {head.threshold:.3f}"
        return Decision(unplaced(self.on_violation), self.principle, told, (), self.name)


@dataclass(slots=True)
class Windows:
    """A reply as it grows. A window is judged when it is full, and what is left when a part is whole; what lies before
    the end of the last window that was judged and kept may go. One judgement for every `step` characters."""

    check: ClassifierCheck
    said: str
    texts: dict[Channel, _Tail] = field(default_factory=dict)
    broken: dict[int, Decision] = field(default_factory=dict)

    def feed(self, seen: Seen) -> Ruling:
        h = self.check.exchange_head
        tail = self.texts.setdefault(seen.channel, _Tail())
        tail.total += len(seen.text)
        place = "reply" if seen.place in ("refusal", "citation") else seen.place
        if h is None or place not in self.check.at:
            tail.judged = tail.total
            return Ruling(ALLOW, (), {seen.channel: tail.total})
        if seen.channel.choice in self.broken:
            return Ruling(self.broken[seen.channel.choice])
        tail.text += f"{seen.name}\n{seen.text}" if seen.place == "tool_call" else seen.text
        worst = ALLOW
        for window in tail.full(self.check.classifier.reading.window, self.check.classifier.reading.step, seen.last):
            worst = self._judge(h, window)
            if worst.outcome != "allow":
                self.broken[seen.channel.choice] = worst
                return Ruling(worst)
        return Ruling(worst, (), {seen.channel: tail.judged})

    def finish(self, choice: int) -> Ruling:
        """What no window has covered yet is judged now."""
        h = self.check.exchange_head
        if choice in self.broken:
            return Ruling(self.broken[choice])
        safe: dict[Channel, int] = {}
        worst = ALLOW
        for channel, tail in self.texts.items():
            if channel.choice != choice:
                continue
            reading = self.check.classifier.reading
            for window in tail.full(reading.window, reading.step, True) if h is not None else ():
                worst = self._judge(h, window) if h is not None else worst
                if worst.outcome != "allow":
                    self.broken[choice] = worst
                    return Ruling(worst)
            safe[channel] = tail.total
        return Ruling(worst, (), safe)

    def _judge(self, h: int, window: str) -> Decision:
        classifier = self.check.classifier
        # what folds into more characters than it had is still read whole
        pairs = [(self.said, w) for w in windows(window, classifier.reading) if w]
        if not pairs:
            return ALLOW
        return self.check.ruled(classifier.heads[h], float(classifier.score_batch(pairs)[:, h].max()))


@dataclass(slots=True)
class _Tail:
    """The text from where the next window begins. `judged` counts characters from the start of the part."""

    text: str = ""
    total: int = 0
    judged: int = 0
    covered: int = 0  # of `text`, from its start: already within a window

    def full(self, window: int, step: int, last: bool) -> list[str]:
        """The windows that are full, and with `last` what is left over; afterwards all of them count as judged."""
        found = []
        while len(self.text) >= window:
            found.append(self.text[:window])
            self.text = self.text[step:]
            self.covered = window - step
        if last and len(self.text) > self.covered:
            found.append(self.text)
            self.covered = len(self.text)
        self.judged = self.total if last else self.total - (len(self.text) - self.covered)
        return found


def classifier_checks(
    constitution: Constitution, classifier: Classifier, *, cascade: bool = False
) -> tuple[ClassifierCheck, ...]:
    """A check for every guarded principle that the classifier has a head for, the more severe first.

    cascade   dearer checks of the same principle (a critic) are asked where the classifier is in doubt, and not else

    Raises ValueError for a classifier that was trained from another constitution.
    """
    if classifier.manifest.constitution != constitution.sha256:
        raise ValueError("the classifier was trained from another constitution: run `fairlead guard train` again")
    checks = []
    for principle in sorted(constitution.principles, key=lambda p: -p.severity):
        known = any(h.principle == principle.id for h in classifier.heads)
        if principle.guard is not None and known:
            at = frozenset(principle.guard.at)
            places = frozenset({*at, "reasoning"} if "reply" in at else at) - {"prompt"}
            checks.append(
                ClassifierCheck(classifier, principle.id, principle.guard.on_violation, places, cascade=cascade)
            )
    return tuple(checks)
