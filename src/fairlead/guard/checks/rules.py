"""Rules: patterns that a reply must not hold. There are none by default; a rule is only what somebody wrote down, in
the guard layer of a stack (`guard: {rules: {PRINCIPLE: [PATTERN]}}`).

Patterns are read by RE2, so that no pattern can be made to take longer than the text is long; what RE2 does not know
(look-around, back-references) is refused with the place. Where the extra `guard` is not installed the standard library
reads them, after the same words are refused; a proxy, whose texts strangers write, does not start then (`by_re2`).

How matches over the border of what a stream holds back are treated is told in `spans.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Message
from fairlead.guard.checks.normalise import Folded, normalise, spelled, visible
from fairlead.guard.checks.spans import SpanWatch, decided
from fairlead.guard.decision import Decision, Outcome
from fairlead.guard.pieces import PLACES
from fairlead.judges.lineage import Lineage, leaf

try:
    import re2
except ImportError:
    re2 = None

HELD, BACK = 256, 2048
_UNKNOWN = re.compile(r"(?<!\\)(?:\\\\)*(\(\?(?:[=!]|<[=!]|\(|>|P=)|\\[1-9]|[*+?}]\+)")


def by_re2() -> bool:
    """Whether patterns are read in time linear in the text: whether google-re2 is installed."""
    return re2 is not None


def fault(pattern: str) -> str:
    """What is wrong with a pattern, and where, or ""."""
    unknown = _UNKNOWN.search(pattern)
    if unknown:
        what, at = unknown[1], unknown.start(1)
        return (
            f"the pattern {pattern!r} cannot be read: {what!r} at character {at} (look-around, back-references and "
            "possessive repeats are unknown to RE2; write it without)"
        )
    try:
        found = _compiled(pattern)
    except _ERRORS as problem:
        return f"the pattern {pattern!r} cannot be read: {problem}"
    return f"the pattern {pattern!r} matches empty text: it would match every reply" if found.match("") else ""


_ERRORS = (re.error,) if re2 is None else (re.error, re2.error)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    if re2 is None:
        return re.compile(pattern)
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


@lru_cache(maxsize=256)
def _any(patterns: tuple[str, ...]) -> Any:
    """All patterns as one, which says in one pass whether any of them matches. None where RE2 does not take them
    together, as where they are too many."""
    if re2 is None or len(patterns) < 2:
        return None
    try:
        return _compiled("|".join(f"(?:{pattern})" for pattern in patterns))
    except _ERRORS:
        return None


# What has no three letters standing alone has no word spelled out: seen at once by RE2, which has no look-around.
_ALONE = r"(?:^|[^\pL\pN])[\pL\pN](?:[^\pL\pN]{1,3}[\pL\pN]){2}(?:[^\pL\pN]|$)"


def _spells(text: str) -> bool:
    return re2 is None or _compiled(_ALONE).search(text) is not None


def _matched(patterns: tuple[str, ...], readings: Sequence[Folded]) -> list[Folded]:
    """The readings in which any of the patterns matches, as far as that is seen in one pass."""
    some = _any(patterns)
    return list(readings) if some is None else [read for read in readings if some.search(read.text) is not None]


def _found(pattern: str, readings: Sequence[Folded]) -> dict[tuple[str, int, int], None]:
    find = _compiled(pattern).finditer
    return {
        (pattern, *read.locate(match.start(), match.end())): None
        for read in readings
        for match in find(read.text)
        if match.end() > match.start()
    }


@dataclass(frozen=True)
class RulesCheck:
    """Regular expressions over every text of the reply: as written, as it reads (`normalise`), and over words that are
    spelled out letter by letter.

    What matches is what gets redacted, in the text as written. A pattern that matches the empty text would match
    everywhere and is refused.
    """

    patterns: tuple[str, ...]
    principle: str = ""
    on_violation: Outcome = "refuse"
    at: frozenset[str] = PLACES
    cost: int = 0
    held: ClassVar[int] = HELD  # characters of a stream

    def __post_init__(self) -> None:
        for pattern in self.patterns:
            problem = fault(pattern)
            if problem:
                raise InputError(f"{self.name}: {problem}")

    @property
    def name(self) -> str:
        return f"rules:{self.principle}" if self.principle else "rules"

    @cached_property
    def lineage(self) -> Lineage:
        # Patterns are compared by their exact text: punctuation is meaning here, so it goes in as code.
        return leaf("rule", text="guard rules", code="\n".join(self.patterns))

    def matches(self, text: str) -> list[tuple[str, int, int]]:
        """(pattern, start, end) of every match, in characters of the text as written."""
        read = normalise(text)
        folded = [Folded(text), *(() if read.same else (read,)), *(spelled(read) if _spells(read.text) else ())]
        if read.same or all(pattern.isascii() for pattern in self.patterns):
            folded = _matched(self.patterns, folded)
            return [found for pattern in self.patterns for found in _found(pattern, folded)] if folded else []
        shown = visible(text)  # for letters that would fold to others
        written = [Folded(text), *(() if shown.same else (shown,)), *spelled(shown)]
        return [
            found
            for pattern in self.patterns
            for found in _found(pattern, folded if pattern.isascii() else [*folded, *written])
        ]

    def decide(self, exchanges: Sequence[Exchange]) -> list[Decision]:
        return [decided(self, item.reply) for item in exchanges]

    def says(self, pattern: str, place: str) -> str:
        return f"matches /{pattern}/ in the {place.replace('_', ' ')}"

    def watch(self, messages: Sequence[Message]) -> SpanWatch:
        return SpanWatch(self, HELD, BACK)
