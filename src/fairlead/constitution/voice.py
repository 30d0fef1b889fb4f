"""A team's own texts as the assistant's voice: `voice: {samples: [brand/*.md]}`.

The texts fall into passages, and these into two halves that never meet: one is shown (to critics, revisers and the
model itself, in the text of every principle of voice), the other is held out for the judge that measures the voice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from fairlead.constitution.schema import Constitution, Voice
from fairlead.constitution.yaml import Document, read_text
from fairlead.errors import InputError

MIN_PASSAGES = 12
MIN_WORDS = 8  # a shorter paragraph (a heading, a greeting) has no style to measure
EXCERPTS = 3
EXCERPT_WORDS = 90  # of all that is shown together; a passage is shown whole or not at all


def read_samples(voice: Voice, document: Document) -> tuple[Voice, tuple[Path, ...]]:
    """(the voice with its texts, their files). Globs are relative to the file that names them.

    Raises InputError with file and line for a pattern that matches no file, a file that is empty or no UTF-8, and for
    too few passages.
    """
    folder = Path(document.source).parent
    files: dict[Path, str] = {}
    for i, pattern in enumerate(voice.samples):
        here = f"{document.source}:{document.line(('assistant', 'voice', 'samples', i))}: assistant: voice: samples: "
        if Path(pattern).is_absolute():
            raise InputError(f"{here}{pattern!r} is absolute; write it relative to the folder of this file")
        matched = sorted(path for path in folder.glob(pattern) if path.is_file())
        if not matched:
            raise InputError(f"{here}no file matches {pattern!r} in {folder}")
        for path in matched:
            text = read_text(path, what="voice sample")
            if not text.strip():
                raise InputError(f"{here}{path} is empty; write something in it, or take it out of {pattern!r}")
            files.setdefault(path, text)
    found = passages(tuple(files.values()))
    if len(found) < MIN_PASSAGES:
        line = document.line(("assistant", "voice", "samples"))
        raise InputError(
            f"{document.source}:{line}: assistant: voice: samples: {len(files)} files hold {len(found)} passages of at "
            f"least {MIN_WORDS} words, and {MIN_PASSAGES} are needed: half are shown, half are held out to measure by"
        )
    return voice.with_texts(tuple(files.values())), tuple(files)


def passages(texts: Sequence[str]) -> list[str]:
    """The paragraphs of at least eight words, Markdown's marks taken off, each once, in an order of their hashes."""
    found: dict[str, str] = {}
    for text in texts:
        for block in re.split(r"\n\s*\n", text):
            lines = [re.sub(r"^\s*(?:#+|>|[-*+]|\d+[.)])\s+", "", line) for line in block.splitlines()]
            plain = " ".join(re.sub(r"[*_`]{1,3}(\S[^*_`]*)[*_`]{1,3}", r"\1", " ".join(lines)).split())
            if len(plain.split()) >= MIN_WORDS:
                found.setdefault(hashlib.sha256(plain.encode()).hexdigest(), plain)
    return [found[key] for key in sorted(found)]


def halves(voice: Voice) -> tuple[list[str], list[str]]:
    """(passages that are shown, passages that are held out); no passage is in both."""
    found = passages(voice.texts)
    return found[0::2], found[1::2]


def held_out(constitution: Constitution | None) -> list[str]:
    """The passages to measure the voice by; [] where no samples are given."""
    voice = constitution.assistant.voice if constitution is not None else None
    return halves(voice)[1] if isinstance(voice, Voice) and voice.texts else []


def with_samples(constitution: Constitution) -> Constitution:
    """The constitution with passages of the samples in the text of each principle of voice; its hash stays.

    So whoever reads such a principle reads how it sounds: critics and revisers in training, the guard's check, and the
    compiled system prompt.
    """
    voice = constitution.assistant.voice
    if not isinstance(voice, Voice) or not voice.texts:
        return constitution
    shown = excerpts(halves(voice)[0])
    told = "It sounds as in these texts: " + " ".join(f"“{passage}”" for passage in shown)
    principles = tuple(
        p.model_copy(update={"text": f"{p.text} {told}"}) if p.dimension == "voice" else p
        for p in constitution.principles
    )
    return constitution.model_copy(update={"principles": principles}).hashed_as(constitution.sha256)


def excerpts(shown: Sequence[str]) -> list[str]:
    """The first few of the shown passages that are together at most ninety words long; at least the shortest one."""
    kept: list[str] = []
    for passage in shown:
        if len(kept) < EXCERPTS and len(" ".join((*kept, passage)).split()) <= EXCERPT_WORDS:
            kept.append(passage)
    return kept or [min(shown, key=lambda passage: len(passage.split()))]
