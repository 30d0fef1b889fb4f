"""How alike two texts are, by their words alone: for near-duplicates among prompts, and for the nearest example.

It knows no meaning: a paraphrase in other words is unlike, a twin in the same words is alike. Who uses it says so.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

GRAM = 4  # characters


def normalised(text: str) -> str:
    """The words of a text in small letters, marks and spacing left out: what two spellings of one prompt share."""
    return " ".join(
        re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold().replace("'", "").replace("’", ""))
    )


def grams(text: str) -> frozenset[str]:
    """The runs of four characters of the normalised text; a shorter text is one run of its own."""
    plain = f" {normalised(text)} "
    return frozenset(plain[i : i + GRAM] for i in range(max(1, len(plain) - GRAM + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """What two sets share over what they hold together, in [0, 1]. Jaccard 1912; of texts, Broder 1997."""
    return len(a & b) / len(a | b) if a | b else 1.0


class Likeness:
    """How like each of some texts a new one is: cosine of word counts, a word the heavier the fewer texts hold it."""

    def __init__(self, texts: Sequence[str]) -> None:
        bags = [Counter(normalised(text).split()) for text in texts]
        held: Counter[str] = Counter(word for bag in bags for word in bag)
        self._weight = {word: math.log(1 + len(bags) / n) for word, n in held.items()}
        self._unknown = math.log(1 + len(bags))  # a word of none of the texts makes the new one unlike all of them
        self._vectors = [self._vector(bag) for bag in bags]

    def __call__(self, text: str) -> list[float]:
        """In [0, 1] for each of the texts, in their order."""
        asked = self._vector(Counter(normalised(text).split()))
        return [min(1.0, sum(asked.get(word, 0.0) * x for word, x in vector.items())) for vector in self._vectors]

    def _vector(self, bag: Counter[str]) -> dict[str, float]:
        raw = {word: n * self._weight.get(word, self._unknown) for word, n in bag.items()}
        length = math.sqrt(sum(x * x for x in raw.values()))
        return {word: x / length for word, x in raw.items()} if length else {}
