"""The values that flow through Fairlead: what was said, what was answered, what it was worth.

Everything here is frozen, slotted, free of torch, and round-trips through JSON (`to_json`, `from_json`).
An `Exchange` is the unit that judges score, guards decide on and reports show.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeAlias, TypeVar

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
Origin: TypeAlias = Literal["operator", "user", "model", "tool", "retrieved"]

ORIGIN_OF_ROLE: Mapping[str, Origin] = {
    "system": "operator",
    "user": "user",
    "assistant": "model",
    "tool": "tool",
}

# --------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's wish to run a tool; `arguments` is the JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gave back for the call `call_id`."""

    call_id: str
    parts: tuple[Part, ...]
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Reasoning before an answer: readable text, or opaque bytes a provider wants returned unchanged."""

    text: str | None = None
    opaque: str | None = None


@dataclass(frozen=True, slots=True)
class Media:
    """An image, sound or file, by digest; the bytes live elsewhere."""

    kind: str
    digest: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal that the provider itself marked as one."""

    text: str


Part: TypeAlias = Text | ToolCall | ToolResult | Reasoning | Media | Refusal

# ------------------------------------------------------------------------------- messages, exchanges


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. A plain string is accepted for `parts`; `origin` follows from `role` where it is not given."""

    role: Role
    parts: tuple[Part, ...]
    origin: Origin = ""  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        if isinstance(self.parts, str):
            object.__setattr__(self, "parts", (Text(self.parts),))
        elif not isinstance(self.parts, tuple):
            object.__setattr__(self, "parts", tuple(self.parts))
        if self.role not in ORIGIN_OF_ROLE:
            raise ValueError(f"unknown role {self.role!r}: use one of {', '.join(ORIGIN_OF_ROLE)}")
        if not self.origin:
            object.__setattr__(self, "origin", ORIGIN_OF_ROLE[self.role])

    @property
    def text(self) -> str:
        """The visible text: text and refusal parts joined; tool calls, reasoning and media are not text."""
        return "".join(p.text for p in self.parts if isinstance(p, Text | Refusal))


def system(text: str) -> Message:
    return Message("system", (Text(text),))


def user(text: str) -> Message:
    return Message("user", (Text(text),))


def assistant(text: str) -> Message:
    return Message("assistant", (Text(text),))


@dataclass(frozen=True, slots=True)
class Exchange:
    """What was said (`messages`) and what was answered (`reply`, which may hold tool turns)."""

    messages: tuple[Message, ...]
    reply: tuple[Message, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reply_text(self) -> str:
        """The text of the reply's assistant turns, joined by newlines."""
        return "\n".join(m.text for m in self.reply if m.role == "assistant")


def exchange(messages: str | Iterable[Message], reply: str | Iterable[Message], **meta: Any) -> Exchange:
    """An exchange from plain strings or messages: `exchange("hello", "good day")`."""
    said = (user(messages),) if isinstance(messages, str) else tuple(messages)
    answered = (assistant(reply),) if isinstance(reply, str) else tuple(reply)
    return Exchange(said, answered, meta)


# --------------------------------------------------------------------------------- what judges return


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's answer on one exchange.

    `score` lies in [0, 1] (1 = fully in keeping, calibrated) or is None with a `reason`; `raw` is unbounded
    and is what RL and fits use; `steps` holds per-step rewards where the judge gives them.
    """

    score: float | None
    raw: float | None = None
    reason: str = ""
    steps: tuple[float, ...] = ()
    principle: str = ""
    judge: str = ""

    def __post_init__(self) -> None:
        if self.score is None:
            if not self.reason:
                raise ValueError("a verdict without a score must say why: give reason=")
        elif not 0.0 <= self.score <= 1.0:
            raise ValueError(f"verdict score {self.score} lies outside [0, 1]; unbounded values go into raw=")


# ------------------------------------------------------------------------------------- training values


@dataclass(frozen=True, slots=True)
class Preference:
    """Two replies to one prompt. `strength` is P(chosen is better), in [0.5, 1]; 0.5 is a kept tie.

    `gold` is a third reply beside them, to be imitated (TPO); empty where there is none.
    """

    messages: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    strength: float = 1.0
    margin: float | None = None
    principle: str = ""
    annotator: str = ""
    source: str = ""
    gold: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        if not 0.5 <= self.strength <= 1.0:
            raise ValueError(
                f"preference strength {self.strength} lies outside [0.5, 1]; "
                "use preference(first, second, p_first=...), which swaps the pair where p is below 0.5"
            )


def preference(
    messages: Iterable[Message],
    first: Iterable[Message],
    second: Iterable[Message],
    *,
    p_first: float,
    **more: Any,
) -> Preference:
    """A `Preference` from P(first is better) in [0, 1]; the pair is swapped where that is below 0.5."""
    if not 0.0 <= p_first <= 1.0:
        raise ValueError(f"p_first is {p_first}; a probability lies in [0, 1]")
    said, a, b = tuple(messages), tuple(first), tuple(second)
    return (
        Preference(said, a, b, strength=p_first, **more)
        if p_first >= 0.5
        else Preference(said, b, a, strength=1.0 - p_first, **more)
    )


@dataclass(frozen=True, slots=True)
class Rated:
    """One reply with a thumb up or down (KTO and kin)."""

    messages: tuple[Message, ...]
    reply: tuple[Message, ...]
    good: bool
    principle: str = ""
    annotator: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Ranking:
    """K replies to one prompt (InstructGPT: 4 to 9), `order` lists reply indices from best to worst."""

    messages: tuple[Message, ...]
    replies: tuple[tuple[Message, ...], ...]
    order: tuple[int, ...]
    principle: str = ""
    annotator: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.replies))):
            raise ValueError(f"order {self.order} is not a permutation of the {len(self.replies)} replies")


@dataclass(frozen=True, slots=True)
class Stepped:
    """A reply in steps; `labels` holds P(the step is right) for each, or None where nobody said (process rewards)."""

    messages: tuple[Message, ...]
    steps: tuple[str, ...]
    labels: tuple[float | None, ...]
    principle: str = ""
    annotator: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if not self.steps or len(self.labels) != len(self.steps):
            raise ValueError(f"{len(self.steps)} steps and {len(self.labels)} labels: give a label, or None, for each")
        for label in self.labels:
            if label is not None and not 0.0 <= label <= 1.0:
                raise ValueError(f"step label {label} lies outside [0, 1]; -1, 0, 1 is written 0, 0.5, 1")


@dataclass(frozen=True, slots=True)
class Case:
    """One question a measure asks. `cluster` names what cases share (template or entity): intervals need it."""

    messages: tuple[Message, ...]
    measure: str
    principle: str = ""
    reference: str = ""
    cluster: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------ JSON

T = TypeVar("T")

_PARTS: Mapping[str, type] = {
    "text": Text,
    "tool_call": ToolCall,
    "tool_result": ToolResult,
    "reasoning": Reasoning,
    "media": Media,
    "refusal": Refusal,
}
_PART_NAMES = {cls: name for name, cls in _PARTS.items()}


def to_json(value: Any) -> Any:
    """Plain dicts, lists and scalars, ready for any JSON writer. Parts carry their kind under `type`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        body = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        kind = _PART_NAMES.get(type(value))
        return {"type": kind, **body} if kind else body
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, Sequence):
        return [to_json(v) for v in value]
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def from_json(cls: type[T], data: Any) -> T:
    """The inverse of `to_json` for the dataclasses of this module.

    Raises ValueError for data of another shape: unknown and missing keys and values of a wrong type are named with
    where they stand (`messages[0].parts[1].text`).
    """
    return typing.cast(T, _decode_object(cls, data, ""))


@cache
def _field_types(cls: type) -> Mapping[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


@cache
def _needed(cls: type) -> tuple[str, ...]:
    return tuple(
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )


def _decode_object(cls: type, data: Any, where: str) -> Any:
    head = f"{where}: " if where else f"{cls.__name__}: "
    if not isinstance(data, Mapping):
        raise ValueError(f"{head}expected an object, got {_named(data)}")
    kinds = _field_types(cls)
    unknown = [key for key in data if key not in kinds]
    if unknown:
        raise ValueError(f"{head}unknown key {unknown[0]!r}; known: {', '.join(kinds)}")
    for name in _needed(cls):
        if name not in data:
            raise ValueError(f"{head}has no {name!r}")
    dot = f"{where}." if where else ""
    return cls(**{name: _decode(kinds[name], value, dot + name) for name, value in data.items()})


_SCALARS: Mapping[type, tuple[str, tuple[type, ...]]] = {
    str: ("a text", (str,)),
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
}


def _decode(kind: Any, data: Any, where: str) -> Any:
    if kind is Any:
        return data
    if kind == Part:
        return _decode_part(data, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if not isinstance(data, Sequence) or isinstance(data, str):
            raise ValueError(f"{where}: expected a list, got {_named(data)}")
        return tuple(_decode(args[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin is types.UnionType:  # X | None
        return None if data is None else _decode(args[0], data, where)
    if origin is Literal:
        if data not in args:
            raise ValueError(f"{where}: {data!r} is none of {', '.join(args)}")
        return data
    if dataclasses.is_dataclass(kind):
        return _decode_object(typing.cast(type, kind), data, where)
    if kind in _SCALARS:
        words, accepted = _SCALARS[kind]
        if not isinstance(data, accepted) or (isinstance(data, bool) and kind is not bool):
            raise ValueError(f"{where}: expected {words}, got {_named(data)}")
        return float(typing.cast(float, data)) if kind is float else data
    if not isinstance(data, Mapping):  # `meta`: any JSON under text keys
        raise ValueError(f"{where}: expected an object, got {_named(data)}")
    return data


def _named(data: Any) -> str:
    return "null" if data is None else type(data).__name__


def _decode_part(data: Any, where: str) -> Any:
    if isinstance(data, str):
        return Text(data)
    kind = data.get("type") if isinstance(data, Mapping) else type(data).__name__
    if not isinstance(data, Mapping) or not isinstance(kind, str) or kind not in _PARTS:
        raise ValueError(f"{where}: unknown part kind {kind!r}; known: {', '.join(_PARTS)}")
    return _decode_object(_PARTS[kind], {k: v for k, v in data.items() if k != "type"}, where)
