"""Where cases come from: a bank gives them by measure id. The harbour's is the apprentice's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fairlead.apprentice import cases as harbour
from fairlead.apprentice.scenes import Split
from fairlead.errors import InputError
from fairlead.exchange import Case


class Bank(Protocol):
    """`cases` draws without repeats, in an order fixed by `seed`; at most `n`, fewer where it has no more.

    name        for print and for the audit's choice of judges
    max_tokens  room a reply to its questions needs
    """

    @property
    def name(self) -> str: ...
    @property
    def max_tokens(self) -> int: ...

    def cases(self, measure: str, n: int, seed: int) -> list[Case]: ...


@dataclass(frozen=True, slots=True)
class World:
    """The harbour's cases: what the apprentice is measured on. The truth is known, so gold can audit."""

    split: Split = "audit"
    name: str = "harbour"
    max_tokens: int = 96

    def cases(self, measure: str, n: int, seed: int) -> list[Case]:
        check_n(measure, n)
        return harbour.cases(measure, self.split, n, seed)


def check_n(measure: str, n: int) -> None:
    if n < 1:
        raise InputError(f"measure {measure!r}: {n} cases were asked for; give at least 1")
