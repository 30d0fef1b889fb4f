"""The cells of the conformance matrix: every combination of its axes, and why some of them are none.

CELLS      all that are valid, as the axes enumerate them
reason(c)  why a combination is none ("" where it is one)
pairs(…)   a covering part: every two values that go together at an endpoint stand in some cell of it
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields

AXES: dict[str, tuple[str, ...]] = {
    "endpoint": ("chat", "responses", "completions", "messages"),
    "reply": ("whole", "window", "buffer"),
    "tools": ("none", "one", "two", "split"),
    "reasoning": ("none", "readable", "opaque"),
    "n": ("1", "3"),
    "logprobs": ("off", "on"),
    "decision": (
        "allow", "redact", "revise", "refuse", "escalate", "block_tool_call", "failed", "failed_late", "shadow",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One combination.

    reply     in one body (whole), or streamed behind a window, or streamed and held back until it is whole (buffer)
    tools     calls in the reply: none, one, two, or one whose arguments come in several chunks (split)
    decision  what the guard is to decide. `failed` is a check that breaks before anything left, `failed_late` one that
              breaks in the middle of a stream; `shadow` is a reply that would have been refused
    """

    endpoint: str
    reply: str
    tools: str
    reasoning: str
    n: str
    logprobs: str
    decision: str

    @property
    def id(self) -> str:
        return (
            f"{self.endpoint}-{self.reply}-{self.tools}_tools-{self.reasoning}_reasoning-n{self.n}"
            f"-logprobs_{self.logprobs}-{self.decision}"
        )

    @property
    def stream(self) -> bool:
        return self.reply != "whole"

    @property
    def number(self) -> int:
        """A number of its own, for what varies from cell to cell without being an axis."""
        return sum(ord(char) * (i + 1) for i, char in enumerate(self.id))


assert tuple(field.name for field in fields(Cell)) == tuple(AXES)


def reason(cell: Cell) -> str:
    """Why a combination is no cell: the format or the guard has nothing of the kind."""
    if cell.endpoint == "completions" and cell.tools != "none":
        return "the older route has no tools"
    if cell.endpoint == "completions" and cell.reasoning != "none":
        return "the older route has no reasoning"
    if cell.endpoint in ("responses", "messages") and cell.n != "1":
        return "the format gives one alternative"
    if cell.endpoint == "messages" and cell.logprobs == "on":
        return "the format has no log-probs"
    if cell.tools == "split" and not cell.stream:
        return "one body has no chunks to split a call over"
    if cell.decision == "block_tool_call" and cell.tools == "none":
        return "there is no call to block"
    if cell.decision == "revise" and cell.reply == "window":
        return "a principle that revises holds the reply whole"
    if cell.decision == "failed_late" and cell.reply != "window":
        return "before a reply is whole nothing of it has left, so no check can break after that"
    if cell.decision == "shadow" and cell.reply == "buffer":
        return "in shadow mode nothing is held back"
    return ""


def every() -> Iterator[Cell]:
    return (Cell(*values) for values in itertools.product(*AXES.values()))


CELLS: tuple[Cell, ...] = tuple(cell for cell in every() if not reason(cell))


def pairs(cells: Sequence[Cell] = CELLS) -> tuple[Cell, ...]:
    """Greedily, of all cells, so many that each two values which go together at an endpoint do so in one of them."""
    missing = set().union(*map(_pairs, cells))
    chosen: list[Cell] = []
    waiting = list(cells)
    while missing:
        best = max(waiting, key=lambda cell: len(_pairs(cell) & missing))
        missing -= _pairs(best)
        chosen.append(best)
        waiting.remove(best)
    return tuple(sorted(chosen, key=lambda cell: cell.id))


def _pairs(cell: Cell) -> set[tuple[str, ...]]:
    endpoint, *values = astuple(cell)
    named = [f"{name}={value}" for name, value in zip(list(AXES)[1:], values, strict=True)]
    return {(endpoint, a, b) for a, b in itertools.combinations(named, 2)}


def table(cells: Sequence[Cell]) -> str:
    """How many cells there are, by endpoint and decision."""
    counts = Counter((cell.endpoint, cell.decision) for cell in cells)
    endpoints = AXES["endpoint"]
    rows = [("decision", *endpoints, "all")]
    for decision in (*AXES["decision"], "all"):
        each = [sum(n for (e, d), n in counts.items() if e == end and decision in (d, "all")) for end in endpoints]
        rows.append((decision, *map(str, each), str(sum(each))))
    return "\n".join(f"{row[0]:<16}" + "".join(f"{value:>13}" for value in row[1:]) for row in rows)
