"""Objects at random: of the names and types that the formats know, and real ones with something else in them."""

from __future__ import annotations

import random
from typing import Any

WORDS = sorted(
    {
        "type", "choices", "delta", "message", "index", "content", "tool_calls", "function", "name", "arguments", "id",
        "finish_reason", "logprobs", "usage", "error", "response", "item", "output_index", "content_index", "part",
        "text", "summary", "summary_index", "content_block", "stop_reason", "input", "citation", "annotation", "output",
        "status", "annotations", "signature", "thinking", "partial_json", "refusal", "role", "data", "encrypted_content",
    }
)  # fmt: skip
TYPES = sorted(
    {
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
        "message_stop", "text_delta", "thinking_delta", "input_json_delta", "signature_delta", "citations_delta", "text",
        "thinking", "tool_use", "redacted_thinking", "response.created", "response.output_item.added",
        "response.output_item.done", "response.content_part.added", "response.content_part.done",
        "response.output_text.delta", "response.output_text.done", "response.function_call_arguments.delta",
        "response.function_call_arguments.done", "response.reasoning_summary_part.added", "response.completed",
        "response.reasoning_summary_text.delta", "response.output_text.annotation.added", "message", "function_call",
        "reasoning", "output_text", "refusal", "summary_text", "function", "url_citation", "error", "ping",
    }
)  # fmt: skip
SCALARS = (None, True, False, -1, 0, 0, 0, 1, 7, 10**20, 0.5, "", "stop", "a", "\u2600")


def anything(chance: random.Random, depth: int = 4) -> Any:
    kind = chance.random()
    if depth == 0 or kind < 0.35:
        return chance.choice(SCALARS)
    if kind < 0.5:
        return chance.choice(TYPES)
    if kind < 0.6:
        return [anything(chance, depth - 1) for _ in range(chance.randrange(3))]
    return something(chance, depth)


def something(chance: random.Random, depth: int = 4) -> dict[str, Any]:
    """An object of known names and anything under them."""
    said = {name: anything(chance, depth - 1) for name in chance.sample(WORDS, chance.randrange(8))}
    if chance.random() < 0.8:
        said["type"] = chance.choice(TYPES)
    if chance.random() < 0.5:
        said |= {"index": 0, "output_index": 0, "content_index": 0}
    return said


def changed_at_random(chance: random.Random, value: Any) -> Any:
    """The value with something else somewhere in it."""
    if not value or not isinstance(value, dict | list) or chance.random() < 0.1:
        return anything(chance) if not isinstance(value, dict) else something(chance)
    if isinstance(value, list):
        at = chance.randrange(len(value))
        return [changed_at_random(chance, one) if i == at else one for i, one in enumerate(value)]
    name = chance.choice(list(value))
    return {key: changed_at_random(chance, one) if key == name else one for key, one in value.items()}
