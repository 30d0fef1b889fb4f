"""Who speaks between the policy's turns: tools that it calls, or a simulated user (`episodes.py` asks them).

Also how a call is read off what the policy wrote, by the form that its model was taught.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeAlias

from fairlead.constitution.prompts import template
from fairlead.errors import MissingResource
from fairlead.exchange import Exchange, Message, Part, Text, ToolCall, ToolResult, user
from fairlead.judges.prompting import fill
from fairlead.judges.transcript import quoted, transcript
from fairlead.models.protocol import Model, Sampling

Parse: TypeAlias = Callable[[str], Sequence[Part]]
"""The parts of what the policy said, tool calls among them. Raises ValueError for a call that cannot be read."""


class Partner(Protocol):
    """The other side. It may have `batch(exchanges)` too, which then is called once for all that wait.

    The exchange holds what was said so far, the policy's turns with their tool calls as such. None or nothing ends
    the reply.
    """

    def __call__(self, so_far: Exchange, /) -> Sequence[Message] | None: ...


def apprentice_calls(text: str) -> tuple[Part, ...]:
    """The apprentice's one form of a call, `call TOOL ARGUMENT`, as the whole turn; anything else is text."""
    words = text.split()
    if words[:1] != ["call"]:
        return (Text(text),)
    found = re.fullmatch(r"\s*call\s+(\w+)\s+(\S.*?)\s*", text, re.DOTALL)
    if found is None:
        raise ValueError("a call is : call , the tool , and what it is asked")
    return (ToolCall("", found[1], found[2]),)


_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def tagged_calls(text: str) -> tuple[Part, ...]:
    """Calls as `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, as Hermes and Qwen write; the rest is text.

    A tool is given its arguments as JSON text.
    """
    parts: list[Part] = []
    at = 0
    for found in _TAGGED.finditer(text):
        if text[at : found.start()].strip():
            parts.append(Text(text[at : found.start()]))
        at = found.end()
        try:
            call = json.loads(found[1])
        except json.JSONDecodeError as error:
            raise ValueError(f"what stands in <tool_call> is no JSON: {error}") from error
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise ValueError('a call is {"name": ..., "arguments": {...}} in <tool_call>')
        parts.append(ToolCall("", call["name"], json.dumps(call.get("arguments", {}), ensure_ascii=False)))
    if text[at:].strip() or not parts:
        parts.append(Text(text[at:]))
    return tuple(parts)


CALLS: Mapping[str, Parse] = {"apprentice": apprentice_calls, "tagged": tagged_calls}


def tools(functions: Mapping[str, Callable[[str], str]]) -> Partner:
    """A partner that runs the tool calls of a turn, each by its function of the arguments' text; without one, the end.

    A tool that is not there, and a ValueError or LookupError that one raises, is an error message for the policy.
    Anything else that a tool raises is the tool's fault, and is raised.
    """

    def run(call: ToolCall) -> ToolResult:
        if call.name not in functions:
            known = " , ".join(functions)
            return ToolResult(call.id, (Text(f"error : no tool {call.name} ; there is {known}"),), is_error=True)
        try:
            return ToolResult(call.id, (Text(functions[call.name](call.arguments)),))
        except (ValueError, LookupError) as error:
            reason = error.args[0] if error.args else type(error).__name__  # str() of a KeyError adds quotes
            return ToolResult(call.id, (Text(f"error : {reason}"),), is_error=True)

    def partner(so_far: Exchange, /) -> list[Message] | None:
        calls = [part for part in so_far.reply[-1].parts if isinstance(part, ToolCall)]
        return [Message("tool", (run(call),)) for call in calls] or None

    return partner


def first_of(*partners: Partner) -> Partner:
    """The first partner that has something to say: tools, then a user. They are asked one conversation at a time."""

    def partner(so_far: Exchange, /) -> Sequence[Message] | None:
        return next((said for one in partners if (said := one(so_far))), None)

    return partner


@dataclass(frozen=True)
class SimulatedUser:
    """A model that answers in the user's place.

    prompt      a file with the wording (jinja: goal, transcript, done); by default that of the house, simulate_user.md
    goal        what the user wants, where the case's `meta["goal"]` does not say
    done        what the model writes once it has nothing more to say
    sampling    how its words are drawn; give it a seed where the run must repeat
    """

    model: Model
    prompt: Path | None = None
    goal: str = "what the first message asks for"
    done: str = "[done]"
    sampling: Sampling = field(default_factory=Sampling)

    def __call__(self, so_far: Exchange, /) -> list[Message] | None:
        return self.batch([so_far])[0]

    def batch(self, exchanges: Sequence[Exchange]) -> list[list[Message] | None]:
        """What the user says next in each, or None. Raises MissingResource where the model does not answer."""
        if not exchanges:
            return []
        text = template("simulate_user") if self.prompt is None else self.prompt.read_text(encoding="utf-8")
        prompts = [
            (
                user(
                    fill(
                        text,
                        goal=quoted(str(item.meta.get("goal", self.goal))),
                        transcript=transcript((*item.messages, *item.reply)),
                        done=self.done,
                    )
                ),
            )
            for item in exchanges
        ]
        replies = [group[0] for group in self.model.generate(prompts, replace(self.sampling, n=1))]
        for reply in replies:
            if reply.finish == "error":
                raise MissingResource(f"the simulated user ({self.model.name}) does not answer: {reply.error}")
        said = [reply.text.strip() for reply in replies]
        return [None if not text or self.done in text else [user(text)] for text in said]
