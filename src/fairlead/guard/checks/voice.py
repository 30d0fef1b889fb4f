"""Does a reply sound like a team's own texts? The surface of its style alone (`constitution/style.py`), so the critic
of a principle of voice, where there is one, reads it too.

The samples that are shown bound it; those that are held out stay for the judge that measures the voice. A style is that
of a whole reply: nothing of it leaves before its end.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fairlead.constitution.schema import Constitution, Voice
from fairlead.constitution.style import Style, features, off, style_of
from fairlead.constitution.voice import MIN_WORDS, halves
from fairlead.exchange import Exchange
from fairlead.guard.decision import Decision, Outcome, unplaced
from fairlead.guard.pieces import pieces
from fairlead.judges.lineage import Lineage, leaf

KEPT = 0.95  # share of the samples, each held out in its turn, that the bound lets pass; a guard is slower to speak up
SHORT = "a reply too short to have a style"


@dataclass(frozen=True)
class VoiceCheck:
    """A reply that lies farther from the style of `samples` than all but one in twenty of them breaks `principle`.

    It says that the whole is off and not where, so what would be redacted is refused. A reply of fewer words than the
    shortest sample may have has no style: it passes, and is counted.
    """

    samples: tuple[str, ...]
    principle: str = ""
    on_violation: Outcome = "refuse"
    cost: int = 0

    @property
    def name(self) -> str:
        return f"voice:{self.principle}" if self.principle else "voice"

    @cached_property
    def lineage(self) -> Lineage:
        code = hashlib.sha256("\n".join(sorted(self.samples)).encode()).hexdigest()
        return leaf("rule", text="guard voice: sounds like the samples", code=code)

    @cached_property
    def style(self) -> Style:
        return style_of(self.samples, KEPT)

    @property
    def rate(self) -> float:
        """The share of replies in the samples' own style that the bound lets pass, at least."""
        n = len(self.samples)
        return min(n, math.ceil(KEPT * (n + 1))) / (n + 1)

    def decide(self, exchanges: Sequence[Exchange]) -> list[Decision]:
        return [self._one(item) for item in exchanges]

    def _one(self, item: Exchange) -> Decision:
        text = "\n".join(piece.text for piece in pieces(item.reply) if piece.place == "reply")
        if len(text.split()) < MIN_WORDS:
            return Decision("allow", self.principle, SHORT if text.strip() else "", (), self.name)
        found = features(text)
        apart = self.style.distance(found)
        if apart <= self.style.bound:
            return Decision("allow", self.principle, "", (), self.name)
        told = f"not in the voice of the samples: {off(self.style, found)}"
        return Decision(unplaced(self.on_violation), self.principle, told, (), self.name)


def voice_checks(constitution: Constitution) -> tuple[VoiceCheck, ...]:
    """A check for every guarded principle of voice that looks at whole replies, where the constitution has samples."""
    voice = constitution.assistant.voice
    if not isinstance(voice, Voice) or not voice.texts:
        return ()
    samples = tuple(halves(voice)[0])
    return tuple(
        VoiceCheck(samples, p.id, p.guard.on_violation)
        for p in constitution.principles
        if p.dimension == "voice" and p.guard is not None and "reply" in p.guard.at and whole(constitution, p.id)
    )


def whole(constitution: Constitution, id: str) -> bool:
    """Whether a reply waits for its end under this principle: else a style would be judged when it has left."""
    guard = constitution[id].guard
    return guard is not None and (guard.stream == "buffer" or guard.on_violation == "revise")
