"""Command-line options from a configuration's fields: types from its annotations, help from its docstring's lines.

A field that holds a configuration of its own becomes a flag, which takes it as it stands, and one option for each of
its fields: `lora` gives `--lora`, `--lora-rank`, …. Values are not checked here but where the configuration is made.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel

NONE = "none"  # how nothing is written where nothing is a choice, as in `--grad-clip none`
_METAVARS = {int: "N", float: "NUMBER", str: "TEXT"}
_ENTRY = re.compile(r"^    ([a-z_]+(?:, [a-z_]+)*)(?: {2,}|$)(.*)$")


@dataclass(frozen=True, slots=True)
class Setting:
    """One option: the field it sets (`path` leads through nested configurations), and how it is read and shown."""

    path: tuple[str, ...]
    kind: Any
    metavar: str | None
    help: str
    default: str | Literal[False]
    nullable: bool = False

    @property
    def name(self) -> str:
        return "_".join(self.path)

    @property
    def flag(self) -> str:
        return "--" + "-".join(self.path).replace("_", "-")

    @property
    def parameter(self) -> inspect.Parameter:
        """As typer reads it from a function's signature. What is not given is None."""
        flags = f"{self.flag}/--no-{self.flag[2:]}" if self.kind is bool and len(self.path) == 1 else self.flag
        option = typer.Option(flags, help=self.help, metavar=self.metavar, show_default=self.default)
        annotation: Any = Annotated[self.kind | None, option]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def settings_of(
    config: type[BaseModel], defaults: Mapping[str, Any], *, leave: Sequence[str] = (), words: Mapping[str, str]
) -> list[Setting]:
    """The options of a configuration, its own fields before those it inherits.

    defaults   values that stand in the place of the fields' own
    leave      fields without an option
    words      what is shown as default of fields whose default is found out later
    """
    found: list[Setting] = []
    said = documented(config)
    for name in _own_first(config):
        if name in leave:
            continue
        field = config.model_fields[name]
        default = defaults.get(name, field.get_default(call_default_factory=True))
        inner = next((kind for kind in _members(field.annotation) if _is_config(kind)), None)
        if inner is not None:
            found.append(Setting((name,), bool, None, said.get(name, ""), False))
            own = settings_of(inner, {}, words={})
            found += [Setting((name, *s.path), s.kind, s.metavar, s.help, s.default, s.nullable) for s in own]
            continue
        shown = words.get(name) or in_words(default)
        found.append(_setting(name, field.annotation, said.get(name, ""), default, shown))
    return found


def collected(given: Mapping[str, Any], settings: Sequence[Setting]) -> dict[str, Any]:
    """The configuration's data from what was given on the command line; options that were not given are left out."""
    data: dict[str, Any] = {}
    for setting in settings:
        value = given[setting.name]
        if value is None:
            continue
        *outer, last = setting.path
        inner = data
        for key in outer:
            held = inner.get(key)
            inner[key] = held if isinstance(held, dict) else {}  # --lora beside --lora-rank says nothing more
            inner = inner[key]
        if setting.nullable and value == NONE:
            inner[last] = None
        elif setting.kind is bool and setting.metavar is None and _has_own(setting, settings):
            if value:
                inner[last] = {}
        elif setting.metavar == "JSON":
            inner[last] = _json_or_text(value)
        else:
            inner[last] = value
    return data


def documented(config: type[BaseModel]) -> dict[str, str]:
    """What the docstrings of a configuration and of those it inherits from say of each field, in one line each."""
    said: dict[str, str] = {}
    for cls in config.__mro__:
        if not _is_config(cls) or cls is BaseModel:
            continue
        for name, text in _entries(cls.__dict__.get("__doc__") or ""):
            if name in config.model_fields:
                said.setdefault(name, text)
    return said


# ------------------------------------------------------------------------------------------------- within


def _entries(doc: str) -> Iterator[tuple[str, str]]:
    """`name   text` at four spaces, with lines further in that go on; `a, b   text` is told of both."""
    names: list[str] = []
    text: list[str] = []
    for line in [*doc.split("\n"), ""]:
        entry = _ENTRY.match(line)
        if entry is None and line.startswith("     ") and names:
            text.append(line.strip())
            continue
        yield from ((name, " ".join(text)) for name in names)
        names, text = (entry[1].split(", "), [entry[2].strip()]) if entry else ([], [])


def _own_first(config: type[BaseModel]) -> list[str]:
    order: dict[str, None] = {}
    for cls in config.__mro__:
        if _is_config(cls):
            order.update(dict.fromkeys(inspect.get_annotations(cls)))
    return [name for name in order if name in config.model_fields]


def _setting(name: str, annotation: Any, text: str, default: Any, shown: str | Literal[False]) -> Setting:
    kinds = list(_members(annotation))
    nullable = type(None) in kinds and default is not None
    kinds = [kind for kind in kinds if kind is not type(None)]
    kind, metavar, choices = _read_as(kinds[0]) if len(kinds) == 1 else (str, "JSON", "")
    if nullable:  # a number, or the word that means none
        kind, metavar = str, f"{metavar}|{NONE}"
    head = text.split(":")[0] if ":" in text else ""
    said = text if head and head in choices.split(", ") else text[:1].upper() + text[1:]
    said = f"{said}." if said and not said.endswith(".") else said
    said += f" One of: {choices}." if choices else ""
    return Setting((name,), kind, metavar, said.strip(), shown, nullable)


def _read_as(kind: Any) -> tuple[Any, str | None, str]:
    """What typer reads it as, its metavar, and the values it may have where they can be counted."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal and all(isinstance(value, str) for value in args):
        return str, "NAME", ", ".join(args)
    if kind is bool:
        return bool, None, ""
    if kind in _METAVARS:
        return kind, _METAVARS[kind], ""
    if origin is tuple and Ellipsis not in args:
        inner = [next(_members(arg)) for arg in args]
        if all(part in _METAVARS for part in inner):
            return tuple[tuple(inner)], " ".join(_METAVARS[part] for part in inner), ""  # type: ignore[misc]
    return str, "JSON", ""


def _members(kind: Any) -> Iterator[Any]:
    origin = typing.get_origin(kind)
    if origin is Annotated:
        yield from _members(typing.get_args(kind)[0])
    elif origin in (typing.Union, types.UnionType):
        for arg in typing.get_args(kind):
            yield from _members(arg)
    else:
        yield kind


def _is_config(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _has_own(setting: Setting, settings: Sequence[Setting]) -> bool:
    return any(len(other.path) > len(setting.path) and other.path[: len(setting.path)] == setting.path
               for other in settings)  # fmt: skip


def in_words(value: Any) -> str | Literal[False]:
    """A setting's value as it is shown; False where there is nothing to show."""
    if value is None or value == {}:
        return False
    if isinstance(value, Mapping):
        return json.dumps(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(f"{part}" for part in value)
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
