"""From a stack file, a recipe and command-line options to a `Plan`, with errors that name file, line and key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from fairlead.constitution.explain import explain, meant
from fairlead.constitution.yaml import Document, parse_yaml, read_yaml
from fairlead.errors import InputError
from fairlead.methods.catalogue import METHODS
from fairlead.methods.config import Training
from fairlead.methods.config_policy import ALGORITHMS, PolicyConfig
from fairlead.stack.plan import KINDS, AnyLayer, Plan

KeyPath: TypeAlias = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)

DEFAULT_RECIPE = "constitutional"
MANAGED_RECIPE = "managed"


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(f.name.removesuffix(".yaml") for f in _recipes().iterdir() if f.name.endswith(".yaml"))


def _recipes() -> Traversable:
    return resources.files("fairlead.stack").joinpath("recipes")


def read_recipe(name: str) -> Document:
    """A recipe by name, or a YAML file with `layers:`."""
    if name in recipe_names():
        return parse_yaml(
            _recipes().joinpath(f"{name}.yaml").read_text(encoding="utf-8"), f"recipe {name}", what="recipe"
        )
    if Path(name).suffix in {".yaml", ".yml"}:
        return read_yaml(name, what="recipe")
    raise InputError(f"no recipe {name!r}, nor a YAML file of that name. {meant(name, recipe_names())}")


def read_stack(path: Path | None) -> Document:
    """The stack file, or an empty document where there is none."""
    if path is None:
        return Document("command line", {}, {(): 1})
    document = read_yaml(path, what="stack")
    if not isinstance(document.data, dict):
        raise InputError(
            f"{path}:1: a stack holds keys such as `model: …` and `layers:`; this holds {_kind(document.data)}"
        )
    return document


def with_recipe(stack: Document, recipe: Document) -> Document:
    """The stack with the recipe's layers, and with what else the recipe says where the stack is silent."""
    if "layers" in stack.data:
        raise InputError(
            f"{stack.source}:{stack.line(('layers',))}: has its own layers, and a recipe would replace them; "
            "leave out --recipe, or the layers"
        )
    lines = {path: line for path, line in recipe.lines.items() if path and path[0] not in stack.data}
    data = {**recipe.data, **stack.data}
    # Errors in a recipe's layers must name the recipe; everything else stands in the stack.
    source = recipe.source if not stack.lines.keys() - {()} else stack.source
    return Document(source, data, {**lines, **stack.lines})


def with_options(stack: Document, options: Mapping[KeyPath, Any]) -> Document:
    """The stack with command-line options laid over it; options that are None were not given."""
    data = json.loads(json.dumps(stack.data))
    for path, value in options.items():
        if value is None:
            continue
        inner = data
        for part in path[:-1]:
            nested = inner.setdefault(part, {})
            if not isinstance(nested, dict):
                raise InputError(f"{stack.source}:{stack.line(path)}: {part} holds keys, not {_kind(nested)}")
            inner = nested
        inner[path[-1]] = value
    return Document(stack.source, data, stack.lines)


def parse_plan(document: Document) -> Plan:
    """A `Plan` from a document that has its layers. Every problem is an `InputError` with file, line and key."""
    body = dict(document.data)
    layers = body.get("layers")
    if not layers:
        raise InputError(
            f"{_at(document, ('layers',))}: the plan has no layers, so nothing would be done; "
            f"list them under `layers:` or name a recipe with --recipe ({', '.join(recipe_names())})"
        )
    if not isinstance(layers, list):
        raise InputError(
            f"{_at(document, ('layers',))}: layers is a list of stages (`- sft: {{…}}`), not {_kind(layers)}"
        )
    body["layers"] = _parse_layers(layers, document)
    return _validated(Plan, body, document, (), "")


def _parse_layers(layers: list[Any], document: Document) -> tuple[AnyLayer, ...]:
    """Each item is a mapping with one key, the stage's kind. Names and `from:` are filled in here."""
    parsed: list[AnyLayer] = []
    below = "base"
    for index, item in enumerate(layers):
        place: KeyPath = ("layers", index)
        if isinstance(item, str):
            item = {item: None}
        if not isinstance(item, Mapping) or len(item) != 1:
            has = f"the keys {', '.join(map(str, item))}" if isinstance(item, Mapping) else _kind(item)
            raise InputError(
                f"{_at(document, place)}: a layer is a mapping with one key, its kind ({', '.join(KINDS)}); "
                f"this has {has}"
            )
        ((kind, body),) = item.items()
        if kind in METHODS and kind not in KINDS:
            raise InputError(
                f"{_at(document, (*place, kind))}: {kind!r} learns from labelled steps, which no stage of a stack "
                f"makes; train it by itself: fairlead train {kind}"
            )
        if kind not in KINDS:
            raise InputError(f"{_at(document, (*place, kind))}: unknown layer {kind!r}. {meant(kind, list(KINDS))}")
        layer = _parse_layer(kind, {} if body is None else body, document, (*place, kind))
        name = layer.name or kind.replace("+", "p")
        layer = layer.model_copy(update={"name": name, "from_": layer.from_ or below})
        parsed.append(layer)
        below = layer.name if layer.makes == "model" else below
    return tuple(parsed)


def _parse_layer(kind: str, body: Any, document: Document, place: KeyPath) -> AnyLayer:
    """Training stages are written flat: what the stage learns from and how it learns stand side by side."""
    if not isinstance(body, Mapping):
        raise InputError(f"{_at(document, place)}: the settings of {kind!r} are keys and values, not {_kind(body)}")
    cls, method = KINDS[kind], _method(kind)
    label = f"layer {kind!r}"
    if method is None:
        return _validated(cls, dict(body), document, place, label)
    config, defaults = method
    own_names = [name for name in keys_of(cls) if name != "train"]
    method_names = [name for name in keys_of(config) if name != "seed"]  # the plan's seed is the run's
    for key in body:
        if key not in own_names and key not in method_names:
            known = meant(str(key), own_names + method_names)
            raise InputError(f"{_at(document, (*place, key))}: {label}: unknown key {key!r}. {known}")
    given = {**defaults, **{k: v for k, v in body.items() if k in method_names}}
    settings = _validated(config, given, document, place, label)
    own = {k: v for k, v in body.items() if k in own_names}
    return _validated(cls, {**own, "train": settings}, document, place, label)


def _method(kind: str) -> tuple[type[Training], Mapping[str, Any]] | None:
    """(settings, those under which the name is known) of a stage that trains; None for one that does not."""
    if kind in ALGORITHMS:
        return PolicyConfig, ALGORITHMS[kind].defaults
    method = METHODS.get(kind)
    return None if method is None else (method.config, method.defaults)


def validated_settings(cls: type[M], data: dict[str, Any], options: Mapping[str, str] | None = None) -> M:
    """Settings from command-line options, refused in the options' own names; `options` gives those that differ."""
    names = options or {}
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        told = []
        for path, message in explain(error, cls, data):
            option = names.get(str(path[0]), str(path[0])).replace("_", "-") if path else ""
            told.append(f"--{option}: {message.partition(': ')[2] or message}" if option else message)
        raise InputError("\n".join(told)) from None


def keys_of(cls: type[BaseModel]) -> list[str]:
    """The keys a user may write for a model: aliases where a field has one."""
    return [field.alias or name for name, field in cls.model_fields.items()]


def _validated(cls: type[M], data: dict[str, Any], document: Document, place: KeyPath, label: str) -> M:
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        problems = [(document.line((*place, *path)), message) for path, message in explain(error, cls, data)]
        prefix = f"{label}: " if label else ""
        told = sorted({(line, prefix + message) for line, message in problems})
        raise InputError("\n".join(f"{document.source}:{line}: {message}" for line, message in told)) from None


def _at(document: Document, path: KeyPath) -> str:
    return f"{document.source}:{document.line(path)}"


def _kind(value: Any) -> str:
    names = {dict: "keys and values", list: "a list", str: "a text", type(None): "nothing"}
    return names.get(type(value), f"a {type(value).__name__}")
