"""What models said, kept for the same question: the same tenant, constitution, classifier, check and whole exchange.

A key is a digest of all of these, so that nothing of one tenant is ever found by another. Failures are not kept.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from fairlead.exchange import Message
from fairlead.guard.decision import Decision
from fairlead.guard.watch import Doubt

Answer = Decision | Doubt


class VerdictCache:
    """The answers asked for last, within `limit` bytes (as estimated: keys, words and spans). Not for several threads.

    hits, misses  lookups; `bytes` what is held
    """

    def __init__(self, limit: int = 16 << 20) -> None:
        self.limit, self.bytes, self.hits, self.misses = limit, 0, 0, 0
        self._kept: OrderedDict[bytes, Answer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Answer | None:
        found = self._kept.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(key)
        return found

    def put(self, key: bytes, answer: Answer) -> None:
        if isinstance(answer, Decision) and answer.outcome == "failed":
            return
        before = self._kept.pop(key, None)
        if before is not None:
            self.bytes -= _size(before)
        self._kept[key] = answer
        self.bytes += _size(answer)
        while self.bytes > self.limit and self._kept:
            self.bytes -= _size(self._kept.popitem(last=False)[1])

    def clear(self) -> None:
        self._kept.clear()
        self.bytes = 0


def base(tenant: str, sha256: str, classifier: str, messages: Sequence[Message]) -> hashlib._Hash:
    """The part of a key that all questions of one request share."""
    return hashlib.sha256(repr((tenant, sha256, classifier, tuple(messages))).encode("utf-8", "backslashreplace"))


def key(shared: hashlib._Hash, identity: str, reply: Sequence[Message]) -> bytes:
    """`repr` of frozen values quotes every string, so different exchanges have different texts."""
    whole = shared.copy()
    whole.update(repr((identity, tuple(reply))).encode("utf-8", "backslashreplace"))
    return whole.digest()


def _size(answer: Answer) -> int:
    decision = answer.otherwise if isinstance(answer, Doubt) else answer
    words = len(decision.evidence) + len(decision.check) + (len(answer.why) if isinstance(answer, Doubt) else 0)
    return 400 + 2 * words + 120 * len(decision.spans)
