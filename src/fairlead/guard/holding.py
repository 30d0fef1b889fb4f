"""One text on its way through the guard: what of it is held, what is to be painted over, what may go.

Work is linear in the length of the text, however it is cut into pieces: a piece is looked at once when it comes and
once when it goes, and a piece that goes in parts is not copied anew for each.
"""

from __future__ import annotations

import heapq
import re
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from fairlead.guard.pieces import REDACTED
from fairlead.guard.wire.events import Channel, Close, Delta, Open

Log = tuple[Mapping[str, Any], ...]
Painted = tuple[str, str]
"""Text that goes, and the id of the verdict whose mark it is ("" where it is the model's own)."""

_HALF = re.compile("[\ud800-\udfff]")


def writable(text: str) -> str:
    """The text as UTF-8 can say it: half of a surrogate pair becomes U+FFFD, before any check reads it."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return _HALF.sub("\ufffd", text)
    return text


class Held:
    """One text. Positions count characters of the text as the model wrote it.

    let       how far each watch lets go, in the order of the watches
    seen      characters that came; `out` those that left or were painted over
    whole     no more is coming; `done` all of it has left, or is withheld for good
    moved     characters copied so far, for tests of linearity
    """

    __slots__ = (
        "asked", "blocked", "channel", "cuts", "done", "head", "id", "kept", "let", "logged", "moved", "name", "opened",
        "out", "painted", "pieces", "place", "seen", "segments", "whole",
    )  # fmt: skip

    def __init__(self, event: Open, let: list[int], keep: bool) -> None:
        self.channel = event.channel
        self.place = event.place
        self.id, self.name = event.id, event.name
        self.let = let
        self.pieces: deque[tuple[str, Log]] = deque()
        self.head = 0  # characters of the first piece that are gone
        self.seen = self.out = self.moved = 0
        self.opened = self.whole = self.done = self.logged = False
        self.cuts: list[tuple[int, int, str]] = []  # a heap of (start, end, verdict)
        self.painted = -1  # where the last mark ended
        self.blocked = ""  # the verdict that takes a tool call out
        self.kept: list[str] | None = [] if keep else None  # the whole text, for models that read it again
        self.asked: dict[int, int] = {}  # how far each model was asked
        self.segments: dict[int, deque[tuple[int, str]]] = {}  # answers of each model: (up to where, verdict)

    def add(self, text: str, log: Log = ()) -> None:
        self.pieces.append((text, log))
        if log:
            self.logged = True
        self.seen += len(text)
        if self.kept is not None:
            self.kept.append(text)

    def cut(self, start: int, end: int, verdict: str) -> bool:
        """Characters [start, end) are to be painted over; False where all of them have left."""
        end = min(end, self.seen)
        if end <= self.out or start >= end:
            return False
        heapq.heappush(self.cuts, (max(start, self.out), end, verdict))
        return True

    def answered(self, i: int, upto: int, verdict: str) -> None:
        """Model `i` lets go up to there."""
        self.let[i] = upto
        self.segments.setdefault(i, deque()).append((upto, verdict))

    def tail(self, start: int) -> str:
        """What came from `start` on; the work is that of the tail. Needs a text that is kept."""
        assert self.kept is not None
        n, got = self.seen - start, []
        for piece in reversed(self.kept):
            if n <= 0:
                break
            got.append(piece if len(piece) <= n else piece[len(piece) - n :])
            n -= len(piece)
        return "".join(reversed(got))

    def take(self, upto: int) -> list[tuple[list[Painted], Log]]:
        """What leaves when everything before `upto` may: stretches, each with its log-probs.

        Log-probs belong to a whole piece: a piece that has some leaves whole or waits, and loses them with a mark.
        """
        if not self.cuts and self.painted < 0 and not self.logged:
            return [([(self._pull(upto - self.out), "")], ())] if upto > self.out else []
        out: list[tuple[list[Painted], Log]] = []
        while self.out < upto and self.pieces:
            text, log = self.pieces[0]
            end = self.out + len(text) - self.head
            if end > upto:
                if log:
                    break
                end = upto
            stretches = self._paint(end)
            clean = len(stretches) == 1 and not stretches[0][1] and len(stretches[0][0]) == len(text)
            if log and clean:
                out.append((stretches, log))
            elif stretches:
                if out and not out[-1][1]:
                    out[-1][0].extend(stretches)
                else:
                    out.append((stretches, ()))
        return out

    def _paint(self, upto: int) -> list[Painted]:
        out: list[Painted] = []
        while self.out < upto:
            start, end, verdict = self.cuts[0] if self.cuts else (upto, upto, "")
            if end <= self.out:
                heapq.heappop(self.cuts)
            elif start <= self.out:
                if self.painted != self.out:  # touching and overlapping cuts are one mark
                    out.append((REDACTED, verdict))
                self._pull(min(end, upto) - self.out)
                self.painted = self.out
            else:
                out.append((self._pull(min(start, upto) - self.out), ""))
        return out

    def _pull(self, n: int) -> str:
        """The next n characters, taken out."""
        self.out += n
        self.moved += n
        pieces, got = self.pieces, []
        while n:
            text = pieces[0][0]
            left = len(text) - self.head
            if left <= n:
                got.append(text[self.head :] if self.head else text)
                pieces.popleft()
                self.head = 0
                n -= left
            else:
                got.append(text[self.head : self.head + n])
                self.head += n
                n = 0
        return got[0] if len(got) == 1 else "".join(got)

    def drop(self) -> int:
        """Withholds what is still here for good; how many characters that is."""
        withheld = self.seen - self.out
        self.pieces.clear()
        self.done = True
        return withheld

    def opening(self) -> Open:
        self.opened = True
        return Open(self.channel, self.place, self.id, self.name)

    def closing(self) -> Close:
        self.done = True
        return Close(self.channel)


def readable(text: str, log: Sequence[Mapping[str, Any]], *, alternatives: bool = False) -> tuple[Log, int]:
    """The log-prob entries as they may leave with exactly this text, and how many alternatives stood in them.

    An entry is made anew of its token, its log-prob and its bytes. What else the model might have said (`top_logprobs`)
    is text that no check reads: it goes, except where `alternatives` may pass. Entries whose tokens do not add up to
    the text (by their bytes where they have some: a token may end inside a character) say something else, and all go.
    """
    try:
        spelled = [_bytes(entry) for entry in log]
        if b"".join(spelled) != text.encode():
            return (), 0
        out: list[Mapping[str, Any]] = []
        n = 0
        for data, entry in zip(spelled, log, strict=True):
            kept = _entry(data, entry)
            if "top_logprobs" in entry:
                others = entry["top_logprobs"] or ()
                n += len(others)
                kept["top_logprobs"] = [_entry(_bytes(other), other) for other in others] if alternatives else []
            out.append(kept)
    except (KeyError, TypeError, ValueError):
        return (), 0
    return tuple(out), n


def _bytes(entry: Mapping[str, Any]) -> bytes:
    given = entry.get("bytes")
    return bytes(given) if given is not None else str(entry["token"]).encode()


def _entry(data: bytes, entry: Mapping[str, Any]) -> dict[str, Any]:
    value = entry["logprob"]
    kept = {"token": data.decode("utf-8", "replace"), "logprob": None if value is None else float(value)}
    return kept if entry.get("bytes") is None else {**kept, "bytes": list(data)}


def delta(channel: Channel, stretches: Sequence[Painted], log: Log) -> Delta:
    text = stretches[0][0] if len(stretches) == 1 else "".join(text for text, _ in stretches)
    return Delta(channel, text, log)
