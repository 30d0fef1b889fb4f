"""What is asked of the guard, in one shape for every route, and what a policy lets through that is else refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import orjson

from fairlead.errors import FairleadError
from fairlead.exchange import Message, Part, Reasoning, Refusal, Text, ToolCall, ToolResult

At: TypeAlias = tuple[int, ...]  # message, part, and inside a tool's result the part of it (as in `decision.Span.at`)
Path: TypeAlias = tuple[str | int, ...]  # the way to a value in the body that goes upstream


@dataclass(frozen=True, slots=True)
class Allow:
    """What a policy lets pass although the guard cannot see into it. Empty is the safe setting.

    fields        names of request fields, in the words of the refusal: `previous_response_id`, `tools.web_search`,
                  `messages.content.file`. What is named here passes unread. `UNDECLARED` stands for calls of tools that
                  a request does not declare
    images        images in requests pass (unread: no check looks at them)
    opaque        encrypted and signed reasoning goes on, both ways; else it is dropped and counted
    top_logprobs  alternatives that the model did not choose are written; they are text that no check has seen
    """

    fields: frozenset[str] = frozenset()
    images: bool = False
    opaque: bool = False
    top_logprobs: bool = False
    passed: Counter[str] = field(default_factory=Counter, compare=False)  # what did, by kind: of one request (`anew`)

    def anew(self) -> Allow:
        """The same, to read one request under: what passes is counted for it alone."""
        return replace(self, passed=Counter()) if self.fields or self.images else self

    def lets(self, name: str) -> bool:
        """Whether a field passes unread; that it does is counted."""
        if name not in self.fields:
            return False
        self.passed[f"field {name}"] += 1
        return True


class Refused(FairleadError):
    """A request that does not go upstream: HTTP status, the field at fault ("" for none), a sentence for the client."""

    def __init__(self, status: int, field: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.field = field
        self.sentence = sentence


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, understood.

    route          path it came on
    format         chat, completions, responses, messages
    messages       the whole conversation that the model will see; tool results are of origin `tool`, system and
                   developer turns of origin `operator`, documents and search results of origin `retrieved`
    stream, n      whether the reply is to be streamed; how many alternatives
    tools          names of the tools that the request declares, those of kinds that the policy lets pass among them
    include_usage  a chat or completions stream was asked to end with its usage (other formats always give it)
    upstream       the body to forward. Built here, never the client's own object
    paths          where each text of `messages` stands in `upstream`
    dropped        what was left out of `upstream`, in words of ours, one entry for each time
    policy         the policy it was read under
    """

    route: str
    format: str
    model: str
    messages: tuple[Message, ...]
    stream: bool
    n: int
    tools: tuple[str, ...]
    include_usage: bool
    upstream: dict[str, Any]
    paths: Mapping[At, Path] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    policy: Allow = field(default_factory=Allow)


UNDECLARED = "tools.undeclared"
_BRING_TOOLS = ("prompt", "previous_response_id", "conversation")  # where a policy lets it pass


def callable_tools(asked: Asked) -> frozenset[str] | None:
    """The names of the tools that a reply may call. None where the guard cannot know them: the policy lets calls of
    undeclared tools pass, or state at the provider may bring tools of its own."""
    allowed = asked.policy.fields
    if UNDECLARED in allowed or any(name in allowed and asked.upstream.get(name) is not None for name in _BRING_TOOLS):
        return None
    return frozenset(asked.tools)


def with_messages(asked: Asked, messages: Sequence[Message]) -> Asked:
    """The request with its texts changed (redacted): `messages` are those of `asked` with other words in them.

    The changes are put into a copy of `upstream`. Raises ValueError where messages or parts were added, left out or
    changed in kind, where the arguments of a tool call are no longer JSON, and for a text that has no place of its own.
    """
    new = tuple(messages)
    if len(new) != len(asked.messages):
        raise ValueError(f"{len(new)} messages in place of {len(asked.messages)}: change their texts, not their number")
    changed: dict[At, str] = {}
    for m, (before, after) in enumerate(zip(asked.messages, new, strict=True)):
        _changes(before.parts, after.parts, (m,), changed)
    upstream: Any = asked.upstream
    for at, text in changed.items():
        if at not in asked.paths:
            raise ValueError(f"the text at {at} is no text of its own in the request")
        upstream = _put(upstream, asked.paths[at], text)
    return replace(asked, messages=new, upstream=upstream)


def _changes(before: tuple[Part, ...], after: tuple[Part, ...], at: At, out: dict[At, str]) -> None:
    if len(before) != len(after):
        raise ValueError(f"message {at[0]} has {len(after)} parts in place of {len(before)}: change their texts alone")
    for p, (old, new) in enumerate(zip(before, after, strict=True)):
        here = (*at, p)
        if old == new:
            continue
        if isinstance(old, ToolResult) and isinstance(new, ToolResult):
            _changes(old.parts, new.parts, here, out)
        elif isinstance(old, Text | Refusal | Reasoning) and type(old) is type(new):
            out[here] = new.text or ""
        elif isinstance(old, ToolCall) and isinstance(new, ToolCall) and old.name == new.name:
            out[here] = new.arguments
        else:
            raise ValueError(f"the part at {here} became a {type(new).__name__}: only texts can be changed")


def _put(tree: Any, path: Path, text: str) -> Any:
    """`tree` with `text` at `path`; what lies on the way is copied, the rest is shared."""
    if not path:
        return text if isinstance(tree, str) else orjson.loads(text)
    copy: Any = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = _put(tree[path[0]], path[1:], text)
    return copy
