"""The end of a text that is still coming, with the way from its characters back to the texts they came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fairlead.guard.checks import signs
from fairlead.guard.checks.reader import plain
from fairlead.guard.wire.events import Channel

LETTERS = 640  # letters and digits looked back over: eight symbols under three decoders need at most 576
LONGEST = 4096  # characters looked back over, however few letters are among them


@dataclass(slots=True)
class Trail:
    """`text` ends where the newest character stands. `parts` says what it is made of: (start in `text`, whose, offset
    there), in order; whose is None for an earlier turn."""

    text: str = ""
    parts: list[tuple[int, Channel | None, int]] = field(default_factory=list)

    def copy(self) -> Trail:
        return Trail(self.text, list(self.parts))

    def add(self, channel: Channel | None, offset: int, text: str) -> None:
        """`text` follows, characters from `offset` on of `channel`."""
        last = self.parts[-1] if self.parts else None
        if last is None or last[1] != channel or last[2] + len(self.text) - last[0] != offset:
            self.parts.append((len(self.text), channel, offset))
        self.text += text

    def whose(self, start: int, end: int) -> Iterator[tuple[Channel | None, int, int]]:
        """The stretch [start, end) as stretches of the texts it came from."""
        for n, (begin, channel, offset) in enumerate(self.parts):
            stop = self.parts[n + 1][0] if n + 1 < len(self.parts) else len(self.text)
            a, b = max(start, begin), min(end, stop)
            if a < b:
                yield channel, a - begin + offset, b - begin + offset

    def around(self, start: int, end: int) -> Iterator[tuple[Channel | None, int, int]]:
        """The whole of every part that [start, end) touches."""
        for n, (begin, channel, offset) in enumerate(self.parts):
            stop = self.parts[n + 1][0] if n + 1 < len(self.parts) else len(self.text)
            if max(start, begin) < min(end, stop):
                yield channel, offset, offset + stop - begin

    def forget(self, times: int = 1) -> None:
        """Let go of what no fragment that still grows can begin in; `times` as much is kept of what comes in pieces."""
        size = len(self.text)
        keep = times * LETTERS * 3 // 2
        while keep < min(size, LONGEST) and len(signs.glued(plain(self.text[-keep:]))) < LETTERS:
            keep *= 2
        keep = min(keep, LONGEST)
        if size <= keep + 256:
            return
        cut = size - keep
        parts = []
        for n, (begin, channel, offset) in enumerate(self.parts):
            stop = self.parts[n + 1][0] if n + 1 < len(self.parts) else size
            if stop > cut:
                parts.append((max(0, begin - cut), channel, offset + max(0, cut - begin)))
        self.text, self.parts = self.text[cut:], parts
