"""How a run speaks: finished lines, notes, and progress. The command line prints; tests and scripts stay quiet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

Advance: TypeAlias = Callable[[int, int], None]  # (done, total) so far


class Voice(Protocol):
    """What the stack tells whoever is watching."""

    def say(self, text: str) -> None:
        """A note: something decided, counted, skipped, or found damaged."""

    def done(self, layer: str, what: str, seconds: float | None) -> None:
        """A finished stage in one line; `seconds` is None where the result was there already."""

    @contextmanager
    def progress(self, what: str) -> Iterator[Advance]:
        """Work under way: call what is yielded with (done, total) as often as convenient."""
        yield lambda done, total: None


@dataclass(slots=True)
class Quiet:
    """Keeps what was said, prints nothing."""

    lines: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.lines.append(text)

    def done(self, layer: str, what: str, seconds: float | None) -> None:
        self.lines.append(f"{layer}: {what}")

    @contextmanager
    def progress(self, what: str) -> Iterator[Advance]:
        yield lambda done, total: None
