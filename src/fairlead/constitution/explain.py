"""From a pydantic error to a sentence: which key, in which named thing, what is wrong with it, what was meant."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

KeyPath: TypeAlias = tuple[str | int, ...]  # ("principles", 0, "guard", "at")

_TYPES = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "NoneType": "nothing"}
_WANTED = {
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be keys and values",
    "model_type": "must be keys and values",
    "model_attributes_type": "must be keys and values",
    "dataclass_type": "must be keys and values",
}


def explain(error: ValidationError, model: type[BaseModel], data: Any) -> list[tuple[KeyPath, str]]:
    """(path in the data, sentence) for each problem. The path is the part of pydantic's location the data holds.

    A missing key is not told where an unknown key beside it is plainly that key misspelt, nor a list that is too short
    where something in it is wrong.
    """
    told: list[tuple[KeyPath, str]] = []
    misspelt: set[tuple[KeyPath, str]] = set()
    absent: list[tuple[KeyPath, str]] = []
    items = error.errors(include_url=False)
    for item in items:
        if item["type"] == "too_short" and any(_within(other["loc"], item["loc"]) for other in items):
            continue  # it is short of what is told to be wrong
        path, found = _held(item["loc"], data)
        key = str(item["loc"][-1]) if item["loc"] else ""
        if item["type"] == "missing":
            absent.append((path, key))
        elif item["type"] == "extra_forbidden":
            known = _keys(model, item["loc"][:-1])
            misspelt |= {(path[:-1], close) for close in _close(key, known)}
            told.append((path, _say(path[:-1], data, f"unknown key {key!r}. {meant(key, known)}")))
        else:
            told.append((path, _say(path, data, _complaint(item, found))))
    told += [(path, _say(path, data, f"missing key {key!r}")) for path, key in absent if (path, key) not in misspelt]
    return told


def _within(loc: tuple[int | str, ...], of: tuple[int | str, ...]) -> bool:
    return len(loc) > len(of) and loc[: len(of)] == of


def _complaint(item: ErrorDetails, found: Any) -> str:
    """What is wrong with a value that lies at a known key."""
    kind = item["type"]
    if kind in ("literal_error", "enum"):
        options = re.findall(r"'([^']*)'", str(item.get("ctx", {}).get("expected", "")))
        close = _close(str(item["input"]), options)
        return f"{item['input']!r} is not one of {', '.join(options)}" + (
            f". Did you mean {close[0]!r}?" if close else ""
        )
    if kind in _WANTED:
        return f"{_WANTED[kind]}, not {_shown(found)}"
    if kind in ("value_error", "assertion_error"):
        return re.sub(r"^(Value|Assertion) error, ", "", item["msg"])
    if kind == "too_short":
        return f"needs at least {item['ctx']['min_length']}"
    message = item["msg"].replace("Input should", "should", 1)
    return message if isinstance(found, dict | list) else f"{message}, not {_shown(found)}"


def _close(word: str, known: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(word, known, n=1, cutoff=0.6)


def meant(word: str, known: Sequence[str]) -> str:
    """ "Did you mean 'severity'?", or the list of what is known."""
    close = _close(word, known)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}"


def place(path: Sequence[str | int], data: Any) -> str:
    """`("principles", 2, "guard")` as "principle 'no-harm': guard": list items by their id, name or only key."""
    words: list[str] = []
    skip = False
    for i, part in enumerate(path):
        if isinstance(part, int):
            inner = data[part]
            list_name = str(path[i - 1]) if i else "item"
            single = list_name.removesuffix("s")
            name = inner.get("id", inner.get("name")) if isinstance(inner, dict) else None
            if isinstance(name, str):
                label = f"{single} {name!r}"
            elif isinstance(inner, dict) and len(inner) == 1 and list_name != single:
                label = f"{single} {next(iter(inner))!r}"
                skip = True
            else:
                label = f"{single} {part + 1}"
            if words and i and words[-1] == list_name:
                words[-1] = label
            else:
                words.append(label)
            data = inner
        else:
            data = data[part]
            if not skip:
                words.append(part)
            skip = False
    return ": ".join(words)


def _say(path: Sequence[str | int], data: Any, message: str) -> str:
    where = place(path, data)
    return f"{where}: {message}" if where else message


def _held(loc: Sequence[str | int], data: Any) -> tuple[KeyPath, Any]:
    """The part of `loc` that leads through the data (pydantic adds names of union members), and what lies there."""
    path: list[str | int] = []
    for part in loc:
        if isinstance(data, dict) and part in data:  # noqa: SIM114 - two branches, so that the types narrow
            data = data[part]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            continue
        path.append(part)
    return tuple(path), data


def _keys(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """The keys that the model knows at `loc`, over all members of a union."""
    here: list[Any] = [model]
    for part in loc:
        inner = [deeper for kind in here for deeper in _inside(kind, part)]
        here = inner or here
    names = [f.alias or name for kind in _members(here) if _is_model(kind) for name, f in kind.model_fields.items()]
    return list(dict.fromkeys(names))


def _members(kinds: Sequence[Any]) -> Iterator[Any]:
    for kind in kinds:
        origin = typing.get_origin(kind)
        if origin is typing.Annotated:
            yield from _members([typing.get_args(kind)[0]])
        elif origin in (typing.Union, types.UnionType):
            yield from _members(typing.get_args(kind))
        else:
            yield kind


def _inside(kind: Any, part: str | int) -> Iterator[Any]:
    for member in _members([kind]):
        args = typing.get_args(member)
        if _is_model(member):
            for name, info in member.model_fields.items():
                if part in (name, info.alias):
                    yield info.annotation
        elif isinstance(part, int) and args and typing.get_origin(member) in (list, tuple, set, frozenset):
            yield args[0]
        elif args and len(args) == 2 and isinstance(part, str):  # a mapping
            yield args[1]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else f"{value!r} ({_TYPES.get(type(value).__name__, type(value).__name__)})"
