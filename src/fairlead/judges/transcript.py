"""Messages as text for a prompt: one rendering, shared by every judge and every method that shows a conversation.

What was said is hostile input to a judge. Each message starts a line of its own with its role; every further line of
its text is indented, so no text can start a line that looks like another speaker or like the end of the transcript.
Chat-control markers (`<|end|>`) are broken apart. Nothing else is changed and nothing is cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from fairlead.exchange import Media, Message, Part, Reasoning, Refusal, Text, ToolCall, ToolResult

INDENT = "    "
_INVISIBLE_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")


def quoted(text: str) -> str:
    """Text that stays inside its frame: further lines indented, control markers broken apart."""
    tame = _INVISIBLE_CONTROL.sub("", text).replace("<|", "< |").replace("|>", "| >")
    lines = [line.rstrip() for line in tame.splitlines()] or [""]  # at every line separator of Unicode, not only at \n
    if lines[0].startswith("="):  # a reply may stand at the start of a line, where templates put their === marks ===
        lines[0] = INDENT + lines[0]
    return f"\n{INDENT}".join(lines)


def part_text(part: Part) -> str:
    """One part in words. Reasoning is not part of what was said and is left out by `transcript`."""
    if isinstance(part, Text | Refusal):
        return part.text
    if isinstance(part, ToolCall):
        return f"[calls {part.name} with {part.arguments}]"
    if isinstance(part, ToolResult):
        inner = "".join(part_text(item) for item in part.parts)
        return f"[error: {inner}]" if part.is_error else inner
    if isinstance(part, Media):
        return f"[{part.kind} {part.digest}]"
    return ""


def message_text(message: Message) -> str:
    """All parts of one message but reasoning, quoted."""
    return quoted("".join(part_text(part) for part in message.parts if not isinstance(part, Reasoning)))


def transcript(messages: Iterable[Message]) -> str:
    """The conversation, one `role: text` per message."""
    return "\n".join(f"{message.role}: {message_text(message)}" for message in messages)


def reply_block(reply: Iterable[Message]) -> str:
    """A reply as text: the bare words where it is one assistant turn, a transcript where it holds tool turns."""
    turns = tuple(reply)
    if len(turns) == 1 and turns[0].role == "assistant":
        return message_text(turns[0])
    return transcript(turns)
