"""What a classifier says of a text that a tool brought: P(it holds an order to the model)."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock

from fairlead.guard.classifier.artefact import INJECTION
from fairlead.guard.classifier.model import Classifier
from fairlead.guard.classifier.reading import windows
from fairlead.judges.lineage import Lineage

REMEMBERED = 20_000  # windows, by digest: a conversation brings its tools' texts again with every turn
BATCH = 64  # windows scored before what they said is remembered


@dataclass(frozen=True)
class OrderScore:
    """The head for orders in tools' texts as a function of a text: the highest P of its windows, 0 of no text."""

    classifier: Classifier
    head: int
    _known: OrderedDict[bytes, float] = field(default_factory=OrderedDict, repr=False, compare=False)
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    @property
    def threshold(self) -> float:
        return self.classifier.heads[self.head].threshold

    @property
    def lineage(self) -> Lineage:
        return self.classifier.lineage

    def __call__(self, text: str) -> float:
        found = [window for window in windows(text, self.classifier.reading) if window]
        keys = [hashlib.blake2b(window.encode("utf-8", "surrogatepass"), digest_size=16).digest() for window in found]
        with self._lock:
            said = {key: self._known[key] for key in keys if key in self._known}
            for key in said:
                self._known.move_to_end(key)
        new = {key: window for key, window in zip(keys, found, strict=True) if key not in said}
        for n in range(0, len(new), BATCH):
            batch = dict(list(new.items())[n : n + BATCH])
            p_NH = self.classifier.score_batch([("", window) for window in batch.values()])
            fresh = {key: float(p) for key, p in zip(batch, p_NH[:, self.head], strict=True)}
            said |= fresh
            with self._lock:
                self._known.update(fresh)
                while len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
        return max(said.values(), default=0.0)


def order_score(classifier: Classifier) -> OrderScore | None:
    """None where the classifier has no head for orders in tools' texts."""
    head = classifier.head(INJECTION, "exchange")
    return None if head is None else OrderScore(classifier, head)
