"""What was painted over is remembered, so that the next turn is read together with what was really said.

A client sends the conversation again with every request, and where something was painted over it sends "[redacted]".
What a model then goes on with (the next three characters of a base64 text, say) cannot be read without what stood
there. So the reply as the model wrote it is kept, under the conversation that it answered, in the memory of this
process alone: it is never written anywhere, at most `KEPT` characters of it all, and each for `SECONDS`.

Of a reply that lost a call the client sends no mark, but the words that stood in its place: what it had in its calls is
read beside what is sent.

A conversation is known by a digest of all that was said in it but the system prompt, which may change from request to
request. One that the client shortened, or that another process answered, is not known; its texts are then read as they
came, and more strictly where they hold the mark of something painted over (`spill.py`).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from fairlead.exchange import Media, Message, Part, Reasoning, Refusal, Text, ToolCall, ToolResult
from fairlead.guard.pieces import REDACTED, pieces

KEPT = 8 << 20  # characters
SECONDS = 3600.0


@dataclass(slots=True)
class Painted:
    """The replies of one check that something was painted over in, the oldest first; safe to share by threads."""

    clock: Callable[[], float] = time.monotonic
    _kept: OrderedDict[bytes, _Kept] = field(default_factory=OrderedDict)
    _size: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, messages: Sequence[Message], texts: Sequence[str], calls: Sequence[str] = ()) -> None:
        """One reply to `messages`, before anything was painted over: all its texts, in order, and those of the calls
        that were taken out of it."""
        if not texts:
            return
        key = _digests(messages)[-1]
        with self._lock:
            kept = self._kept.setdefault(key, _Kept(self.clock() + SECONDS))
            kept.replies.append(tuple(texts))
            kept.calls += calls
            self._size += sum(map(len, (*texts, *calls)))
            while self._kept and (self._size > KEPT or next(iter(self._kept.values())).until < self.clock()):
                _, old = self._kept.popitem(last=False)
                self._size -= sum(len(text) for reply in (*old.replies, old.calls) for text in reply)

    def said(self, messages: Sequence[Message]) -> tuple[list[str], bool]:
        """What the assistant said in its turns, as it was before anything was painted over, and whether it was."""
        if not self._kept:
            return [text for message in messages for text in _of_assistant(message)], False
        said: list[str] = []
        painted = False
        with self._lock:
            known = dict(self._kept)
        for message, before in zip(messages, _digests(messages), strict=False):
            texts = _of_assistant(message)
            kept = known.get(before)
            was = _of_these(kept, texts) if kept is not None and kept.until >= self.clock() else ()
            painted = painted or bool(was)
            said += was or texts
        return said, painted


@dataclass(slots=True)
class _Kept:
    until: float
    replies: list[tuple[str, ...]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)


def _of_assistant(message: Message) -> list[str]:
    return [piece.text for piece in pieces((message,))] if message.role == "assistant" else []


def _of_these(kept: _Kept, sent: Sequence[str]) -> tuple[str, ...]:
    """Which of the replies the client sends back: the one with most of the texts that it sends, each as far as its
    first mark. None of them is a reply in which nothing was painted over (of several alternatives, say); and where none
    begins like what was sent, it may be any of them, beside what was sent."""
    if not any(REDACTED in text for text in sent):
        lost = [call for call in kept.calls if call not in sent]
        return (*sent, *lost) if lost else ()
    replies = kept.replies
    starts = [text.partition(REDACTED)[0] for text in sent]
    like = [sum(any(text.startswith(start) for text in reply) for start in starts) for reply in replies]
    if not any(like):
        return (*sent, *(text for reply in replies for text in reply))
    return replies[like.index(max(like))]


def _digests(messages: Sequence[Message]) -> list[bytes]:
    """Of the conversation before each message, and of the whole."""
    so_far = hashlib.blake2b(digest_size=16)
    out = [so_far.digest()]
    for message in messages:
        if message.origin != "operator":
            for piece in (message.role, *_texts(message.parts)):
                said = piece.encode("utf-8", "surrogatepass")
                so_far.update(len(said).to_bytes(8, "big") + said)
        out.append(so_far.digest())
    return out


def _texts(parts: Iterable[Part]) -> Iterator[str]:
    for part in parts:
        match part:
            case Text(text) | Refusal(text):
                yield text
            case ToolCall(id, name, arguments):
                yield from (id, name, arguments)
            case ToolResult(id, inner):
                yield from (id, *_texts(inner))
            case Reasoning(text, opaque):
                yield text or opaque or ""
            case Media(_, digest):
                yield digest
