"""How an exchange is read by a classifier: what was asked, shortened, beside a window of what is answered.

A reply is never read whole at once: it is read in windows that overlap by half, each in the light of the same few words
of what was asked, so a stream costs one reading for every half window however long it gets.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fairlead.exchange import Exchange, Message
from fairlead.guard.pieces import pieces

Pair: TypeAlias = tuple[str, str]  # what was asked; a window of what is answered, "" for a prompt alone
GAP = " … "


@dataclass(frozen=True, slots=True)
class Reading:
    """Lengths in characters.

    asked    of what was asked: the last turn of the user from both its ends, what stood before it in a few words
    window   of the reply that is read at once
    step     from one window to the next, at most `window`
    """

    asked: int = 400
    window: int = 480
    step: int = 240

    def __post_init__(self) -> None:
        if not (self.asked >= 40 and 0 < self.step <= self.window):
            raise ValueError(f"cannot read {self}: asked at least 40, step between 1 and window")


WORDS = Reading()  # n-grams have no limit of their own: this is what a stream has to hold back
TOKENS = Reading(asked=240, window=320, step=160)  # an encoder reads 128 tokens, of some four characters each


def shown(text: str) -> str:
    """The text as it looks: compatibility forms folded, invisible characters left out, white space as one space."""
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    folded = unicodedata.normalize("NFKC", text)
    return " ".join("".join(c for c in folded if unicodedata.category(c) != "Cf").split())


def clipped(text: str, most: int) -> str:
    """The text's two ends where it is longer than `most`: a request stands at the start or at the end."""
    if len(text) <= most:
        return text
    tail = (most - len(GAP)) // 3
    return text[: most - len(GAP) - tail] + GAP + text[-tail:]


def asked(messages: Sequence[Message], reading: Reading) -> str:
    """What was asked: the user's last turn, and the turn before it in a quarter of the room where there is some left.

    The operator's own words are not read: they are what a user is held to, and differ from one service to the next.
    """
    turns = [shown(m.text) for m in messages if m.role == "user" and m.text.strip()]
    if not turns:
        return ""
    last = clipped(turns[-1], reading.asked)
    room = reading.asked - len(last)
    if len(turns) > 1 and room >= reading.asked // 4:
        return f"{clipped(turns[-2], reading.asked // 4)}\n{last}"
    return last


def windows(text: str, reading: Reading) -> Iterator[str]:
    """The text in windows that overlap; the last one ends where the text ends. An empty text has one, empty window."""
    text = shown(text)
    start = 0
    while True:
        yield text[start : start + reading.window]
        if start + reading.window >= len(text):
            return
        start = min(start + reading.step, len(text) - reading.window)


def windows_of(text: str, part: str, reading: Reading) -> list[str]:
    """The windows of a text that show most (three fifths) of a part of it, or are filled by it as much."""
    text, part = shown(text), shown(part)
    start = text.find(part)
    if start < 0:
        raise ValueError(f"a part of {len(part)} characters does not stand in its text of {len(text)}")
    needed = 0.6 * min(len(part), reading.window)
    found, at = [], 0
    for window in windows(text, reading):
        if min(start + len(part), at + len(window)) - max(start, at) >= needed:
            found.append(window)
        at = min(at + reading.step, len(text) - reading.window)
    return found


def read(exchange: Exchange, reading: Reading, places: frozenset[str] | None = None) -> list[Pair]:
    """Every pair that has to be judged of an exchange; of a prompt alone that is one, of an empty reply none.

    places  of the reply that count (`guard/pieces.py`); all where None
    """
    said = asked(exchange.messages, reading)
    if not exchange.reply:
        return [(said, "")]
    texts = [p.text for p in pieces(exchange.reply) if (places is None or p.place in places) and p.text.strip()]
    return [(said, window) for text in texts for window in windows(text, reading)]
