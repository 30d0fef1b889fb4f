"""What a job will need: bounds on the tokens of a prompt, and the estimate that is shown before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fairlead.exchange import Reasoning, Refusal, Text, ToolCall, ToolResult
from fairlead.models.protocol import Prompt


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job will cost: prompt tokens are about right, reply tokens at most that; `usd` None = unknown."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None

    def __add__(self, other: Estimate) -> Estimate:
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        return Estimate(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            usd,
        )

    def __str__(self) -> str:
        cost = "price unknown (give a price file)" if self.usd is None else f"at most about ${self.usd:,.2f}"
        return (
            f"{self.calls:,} calls, about {self.prompt_tokens:,} prompt tokens, "
            f"at most {self.completion_tokens:,} reply tokens, {cost}"
        )


def most_tokens(prompt: Prompt) -> int:
    """An upper bound for the tokens of a prompt: as many as bytes, plus the frame of each turn."""
    return sum(sizes_of(prompt)) + 16 * len(prompt) + 32


def sizes_of(prompt: Prompt) -> list[int]:
    """Bytes of each message."""

    def text(part: Any) -> str:
        if isinstance(part, Text | Refusal):
            return part.text
        if isinstance(part, Reasoning):
            return (part.text or "") + (part.opaque or "")
        if isinstance(part, ToolCall):
            return part.name + part.arguments + part.id
        if isinstance(part, ToolResult):
            return part.call_id + "".join(map(text, part.parts))
        return ""

    return [len("".join(map(text, m.parts)).encode()) for m in prompt]
