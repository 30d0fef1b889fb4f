"""The allow-list for requests: which fields pass, which are typed, and which are refused with their name.

Known fields have a `Kind`. Of unknown ones numbers, switches and short texts pass; an unknown object, a list of objects
or a long text may be context, tools or state that no check can see, and is refused unless the policy names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeAlias

import orjson

from fairlead.exchange import Media, Message, Origin, Part, Role, Text, ToolResult
from fairlead.guard.wire.asked import Allow, At, Path, Refused

SHORT = 128  # characters of an unknown text that still passes: an option, not context
LONG_FLAT = 512  # characters of a text in a flat object (metadata)
_NAME = 64  # characters of a field's name that an error repeats

Rule: TypeAlias = Callable[[Any, str, str, Allow], None]  # value, its path, its name in policies, the policy


@dataclass(frozen=True, slots=True)
class Kind:
    """What a known field may be: one of `types`, or whatever `rule` does not refuse."""

    types: tuple[type, ...]
    words: str = ""
    rule: Rule | None = None


def refuse(field: str, name: str, why: str, policy: Allow) -> None:
    """Refuses `field` unless the policy allows `name`."""
    if not policy.lets(name):
        raise Refused(400, field, f"{field}: {why}; leave it out, or have the policy allow {name!r}")


def wrong(field: str, expected: str, value: Any) -> Refused:
    return Refused(400, field, f"{field}: expected {expected}, got {_named(value)}")


def check(body: Mapping[str, Any], known: Mapping[str, Kind], policy: Allow, path: str = "", name: str = "") -> None:
    """Refuses what of an object may not pass. `path` and `name` are put before the names of its fields."""
    for key, value in body.items():
        if len(key) > _NAME:
            refuse(
                f"{path}{key[:_NAME]!r}…",
                name + key[:_NAME],
                f"a name of {len(key):,} characters may be context",
                policy,
            )
        if value is None:
            continue
        kind = known.get(key, UNKNOWN)
        if type(value) in kind.types:
            continue
        if policy.lets(name + key):
            continue
        short = key if len(key) <= _NAME and key.isprintable() else f"{key[:_NAME]!r}…"
        if kind.rule is None:
            raise wrong(path + short, kind.words, value)
        kind.rule(value, path + short, name + short, policy)


def _unknown(value: Any, field: str, name: str, policy: Allow) -> None:
    if isinstance(value, str):
        if len(value) > SHORT:
            refuse(field, name, f"unknown, and a text of {len(value):,} characters may be context", policy)
    elif value and not (isinstance(value, list) and all(type(one) in (int, float, bool) for one in value)):
        refuse(field, name, "unknown, and may hold context, tools or state that the guard cannot see", policy)


def _label(value: Any, field: str, name: str, policy: Allow) -> None:
    if not isinstance(value, str):
        raise wrong(field, "a text", value)
    if len(value) > SHORT:
        refuse(
            field,
            name,
            f"{len(value):,} characters are more than a name or an id has ({SHORT}), and may be context",
            policy,
        )


def _texts(value: Any, field: str, name: str, policy: Allow) -> None:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise wrong(field, "a text or a list of texts", value)


def _options(longest: int) -> Rule:
    """The rule of an object of numbers, switches and texts of at most `longest` characters."""

    def rule(value: Any, field: str, name: str, policy: Allow) -> None:
        if not isinstance(value, dict):
            raise wrong(field, "an object", value)
        for key, one in value.items():
            passes = one is None or isinstance(one, int | float) or (isinstance(one, str) and len(one) <= longest)
            if not passes or len(key) > _NAME:
                refuse(f"{field}.{key[:_NAME]}", name, "may hold context that the guard cannot see", policy)

    return rule


def _numbers(value: Any, field: str, name: str, policy: Allow) -> None:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else (None,)
    if not all(isinstance(one, int | float) for one in inner):
        raise wrong(field, "numbers", value)
    if isinstance(value, dict) and any(len(key) > _NAME for key in value):
        refuse(field, name, "a long name may be context", policy)


def _anything(value: Any, field: str, name: str, policy: Allow) -> None:
    if not isinstance(value, dict | list | str):
        raise wrong(field, "an object", value)
    shallow(value, field)


def shallow(value: Any, field: str) -> None:
    """Refuses what is nested so deeply that it could not be written again (orjson: 254 levels)."""
    try:
        orjson.dumps([[[[[[[[value]]]]]]]])
    except TypeError:
        raise Refused(400, field, f"{field}: nested too deeply; 240 levels are enough") from None


def hidden(why: str) -> Kind:
    """A field that is refused unless the policy names it."""
    return Kind((), rule=lambda value, field, name, policy: refuse(field, name, why, policy))


def off(why: str) -> Kind:
    """A switch that may be off."""

    def rule(value: Any, field: str, name: str, policy: Allow) -> None:
        if value is not False:
            refuse(field, name, why, policy)

    return Kind((), rule=rule)


def empty(why: str) -> Kind:
    """A field that may be there and hold nothing."""

    def rule(value: Any, field: str, name: str, policy: Allow) -> None:
        if value:
            refuse(field, name, why, policy)

    return Kind((), rule=rule)


Fields: TypeAlias = Mapping[str, Kind]
UNKNOWN = Kind((int, float, bool), rule=_unknown)
TEXT = Kind((str,), "a text")  # the format reads it, or the policy has let it pass
LABEL = Kind((), rule=_label)  # a name, an id, one of a few words: nobody reads it
NUMBER = Kind((int, float), "a number")
FLAG = Kind((bool,), "true or false")
TEXTS = Kind((str,), rule=_texts)
FLAT = Kind((), rule=_options(LONG_FLAT))
SWITCHES = Kind((), rule=_options(16))
NUMBERS = Kind((), rule=_numbers)
ANYTHING = Kind((int, float, bool), rule=_anything)  # the model may read it: `beside.py` shows it to checks
READ = Kind((str, int, float, bool, list, dict))  # the format reads it itself


def model_of(body: Any) -> str:
    if not isinstance(body, dict):
        raise Refused(400, "", "the body is not a JSON object")
    name = body.get("model")
    if not isinstance(name, str) or not 0 < len(name) <= LONG_FLAT:
        raise wrong("model", "the name of a model", name)
    return name


def flag_of(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise wrong(name, "true or false", value)


def count_of(body: Mapping[str, Any], name: str, most: int = 128) -> int:
    value = body.get(name)
    if value is None:
        return 1
    if type(value) is not int or not 1 <= value <= most:
        raise wrong(name, f"a whole number from 1 to {most}", value)
    return value


def tools_of(
    given: Any, policy: Allow, kind: str, name_of: Callable[[dict[str, Any], str], str], unsaid: str | None = None
) -> list[str]:
    """The names of the tools of one kind, which the client runs. What a provider runs is refused, unless the policy
    lets it pass: then with its name, for some of those are called like the others (Anthropic's `bash`).

    name_of   the name of a tool of that kind, from it and its path; refuses what else it may not hold
    unsaid    the kind of a tool that names none
    """
    if given is None:
        return []
    if not isinstance(given, list):
        raise wrong("tools", "a list of tools", given)
    names: list[str] = []
    for i, tool in enumerate(given):
        path = f"tools[{i}]"
        its = (tool.get("type") or unsaid) if isinstance(tool, dict) else None
        if its == kind:
            names.append(name_of(tool, path))
            continue
        word = its[:64] if isinstance(its, str) else "without a type"
        refuse(path, f"tools.{word}", f"a tool of the type {word!r} is not one that the guard can follow", policy)
        shallow(tool, path)
        names += _names_in(tool)
    return names


def _names_in(tool: Any) -> list[str]:
    """The names by which a tool of an unknown kind that passes may be called: its own, and those of tools in it."""
    if not isinstance(tool, dict):
        return []
    inner = tool.get("tools")
    found = [
        tool.get("name"),
        *(one.get("name") for one in (inner if isinstance(inner, list) else ()) if isinstance(one, dict)),
    ]
    return [name for name in found if isinstance(name, str)]


def digest(value: Any) -> str:
    return sha256(value.encode() if isinstance(value, str) else orjson.dumps(value)).hexdigest()


def media(kind: str, value: Any) -> Media:
    """What no check looks at, by its digest."""
    return Media(kind, digest(value))


def image(field: str, policy: Allow) -> None:
    """No check looks at an image: it is refused unless the policy lets images pass, and counted where it does."""
    if not policy.images:
        raise Refused(400, field, f"{field}: an image is not checked; leave it out, or have the policy allow images")
    policy.passed["image"] += 1


def _named(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {
        bool: "true or false",
        str: "a text",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), type(value).__name__)


Placed: TypeAlias = tuple[
    Part, Path | Sequence[Path]
]  # a part and where its text stands; of a tool's result, its parts'


class Turns:
    """The conversation of a request as it is read: messages, where their texts stand, and what was dropped."""

    __slots__ = ("dropped", "messages", "paths")

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.paths: dict[At, Path] = {}
        self.dropped: list[str] = []

    def text(self, role: Role, origin: Origin, text: str, path: Path) -> None:
        """A message of one text."""
        self.paths[len(self.messages), 0] = path
        self.messages.append(Message(role, (Text(text),), origin))

    def add(self, role: Role, origin: Origin, parts: Iterable[Placed]) -> None:
        """A message of several parts."""
        m = len(self.messages)
        kept = []
        for p, (part, path) in enumerate(parts):
            kept.append(part)
            if isinstance(part, ToolResult):
                for i, inner in enumerate(path):
                    if inner:
                        self.paths[m, p, i] = inner  # type: ignore[assignment]
            elif path:
                self.paths[m, p] = path  # type: ignore[assignment]
        self.messages.append(Message(role, tuple(kept), origin))
