"""The apprentice's tokenizer without the tokenizers package: byte-level BPE read from `tokenizer.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

SPECIALS = ("<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
# Words and punctuation take the space before them along; every digit stands alone, and so does the s of a plural, so
# that what is known of a hornet is known of hornets. The same in Python and in Rust.
STEM = r" ?[A-Za-z]{2,}[A-Za-rt-z](?=s(?![A-Za-z]))"
PATTERN = STEM + r"| ?[A-Za-z]+| ?[0-9]| ?[^ \n\tA-Za-z0-9]+|[ \n\t]+"


@cache
def _byte_letters() -> tuple[str, ...]:
    """GPT-2's printable stand-in for every byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = iter(range(256, 512))
    return tuple(chr(b) if b in plain else chr(next(shifted)) for b in range(256))


@dataclass(frozen=True, slots=True)
class Bpe:
    """Vocabulary and merge ranks; `encode` treats special tokens in a text as plain text."""

    ids: dict[str, int]
    ranks: dict[tuple[str, str], int]
    texts: tuple[str, ...]

    def encode(self, text: str) -> list[int]:
        return [token for word in re.findall(PATTERN, text) for token in self._word(word)]

    def _word(self, word: str) -> list[int]:
        letters = _byte_letters()
        parts = [letters[byte] for byte in word.encode("utf-8")]
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, 1 << 30))
            if best not in self.ranks:
                break
            merged, i = [], 0
            while i < len(parts):
                if i + 1 < len(parts) and (parts[i], parts[i + 1]) == best:
                    merged.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        return [self.ids[part] for part in parts]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of the tokens; special tokens are left out, broken UTF-8 becomes the replacement character."""
        byte_of = {letter: byte for byte, letter in enumerate(_byte_letters())}
        joined = "".join(self.texts[token] for token in tokens if self.texts[token] not in SPECIALS)
        return bytes(byte_of[letter] for letter in joined).decode("utf-8", errors="replace")


@cache
def load(folder: Path) -> Bpe:
    """Read `tokenizer.json` of the shipped model."""
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    ids: dict[str, int] = raw["vocab"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in raw["merges"]]
    texts = [""] * len(ids)
    for text, token in ids.items():
        texts[token] = text
    return Bpe(ids, {(a, b): rank for rank, (a, b) in enumerate(merges)}, tuple(texts))
