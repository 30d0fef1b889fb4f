"""YAML files that say where they are wrong: `load_yaml(path, Model)` for any pydantic model.

Text is composed into nodes by ruamel.yaml (YAML 1.2: `on`, `yes` and `no` are words), so every key and value keeps its
line. Errors of the YAML and errors of the model come out alike: `file.yaml:14: principle 'no-harm': unknown key …`.
Knows nothing of the constitution: the stack's plan is read through the same door.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from fairlead.constitution.explain import KeyPath, explain
from fairlead.errors import InputError, MissingResource

M = TypeVar("M", bound=BaseModel)
MAX_NODES = 200_000  # an alias that repeats itself can grow a small file without end
MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Document:
    """The plain data of a YAML file, with the line (1-based) of every key or list item under its path."""

    source: str
    data: Any
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def line(self, path: KeyPath) -> int:
        """The line of `path`, or of the nearest thing around it that the file holds."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def load_yaml(path: str | Path, model: type[M], *, what: str = "file", strict: bool = True) -> M:
    """Read `path` and validate it as `model`; every problem is an `InputError` that names file, line and key.

    `what` names the kind of file in messages about the whole of it ("constitution", "stack"). Types are strict
    (`severity: "5"` is an error), except that a list may become a tuple or a set and a string an enum or a path.
    """
    return validate(read_yaml(path, what=what), model, strict=strict)


def read_yaml(path: str | Path, *, what: str = "file") -> Document:
    """Read `path` as one YAML document; refuses what is missing, empty, not UTF-8 or not YAML 1.2."""
    return parse_yaml(read_text(path, what=what), str(path), what=what)


def read_text(path: str | Path, *, what: str = "file") -> str:
    """The UTF-8 text of `path` (a byte order mark is dropped)."""
    file = Path(path)
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such {what}. Check the name and the folder you are in") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; name the {what} in it") from None
    except OSError as error:
        raise MissingResource(f"{path}: cannot be read: {error.strerror}") from None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path}: is UTF-16 text; save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}:{line}: is not UTF-8 text (byte 0x{raw[error.start]:02x}); save the file as UTF-8"
        ) from None


def parse_yaml(text: str, source: str, *, what: str = "file") -> Document:
    """`text` as one YAML document; `source` is the file name used in messages."""
    if not text.strip():
        raise InputError(f"{source}: the {what} is empty")
    try:
        root = YAML(typ="safe", pure=True).compose(io.StringIO(text))
    except MarkedYAMLError as error:
        raise InputError(_syntax(error, text, source)) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        shown = ascii(text[error.position])
        raise InputError(f"{source}:{line}: holds the character {shown}, which YAML does not allow") from None
    except YAMLError as error:
        raise InputError(f"{source}: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{source}: is nested deeper than {MAX_DEPTH} levels") from None
    if root is None:
        raise InputError(f"{source}: the {what} holds nothing but comments")
    lines: dict[KeyPath, int] = {(): root.start_mark.line + 1}
    return Document(source, _Build(source, lines).value(root, ()), lines)


def validate(document: Document, model: type[M], *, strict: bool = True) -> M:
    """The document's data as `model`, or an `InputError` with one line per problem, in the order of the file."""
    if not isinstance(document.data, dict):
        kind = "a list" if isinstance(document.data, list) else "a single value"
        raise InputError(f"{document.source}:{document.line(())}: holds {kind}; expected keys such as `name: …`")
    try:
        # through JSON, where a list may become a tuple although types are strict
        return model.model_validate_json(json.dumps(document.data), strict=strict)
    except ValidationError as error:
        problems = explain(error, model, document.data)
        told = sorted({(document.line(path), message) for path, message in problems})
        raise InputError("\n".join(f"{document.source}:{line}: {message}" for line, message in told)) from None


# -------------------------------------------------------------------------------------------- nodes to plain data


@dataclass(slots=True)
class _Build:
    source: str
    lines: dict[KeyPath, int]
    seen: int = 0

    def value(self, node: Node, path: KeyPath, around: tuple[Node, ...] = ()) -> Any:
        self.seen += 1
        if any(node is outer for outer in around):
            raise self.error(node, "an alias stands inside the thing it names")
        if self.seen > MAX_NODES:
            raise self.error(node, f"aliases make more than {MAX_NODES:,} values of this file")
        if len(around) > MAX_DEPTH:
            raise self.error(node, f"is nested deeper than {MAX_DEPTH} levels")
        if isinstance(node, ScalarNode):
            return self.scalar(node)
        if not str(node.tag).startswith("tag:yaml.org,2002:"):
            raise self.error(node, f"the tag {node.tag} is not known; remove it")
        inside = (*around, node)
        if isinstance(node, SequenceNode):
            return [self.child(item, (*path, i), item, inside) for i, item in enumerate(node.value)]
        assert isinstance(node, MappingNode)
        data: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = self.key(key_node)
            line = key_node.start_mark.line + 1
            if key in first:
                raise self.error(key_node, f"key {key!r} is given twice, first on line {first[key]}")
            first[key] = line
            data[key] = self.child(value_node, (*path, key), key_node, inside)
        return data

    def child(self, node: Node, path: KeyPath, mark: Node, around: tuple[Node, ...]) -> Any:
        self.lines[path] = mark.start_mark.line + 1
        return self.value(node, path, around)

    def key(self, node: Node) -> str:
        if not isinstance(node, ScalarNode):
            raise self.error(node, "a list or mapping cannot be a key")
        if node.value == "<<" and not node.style:
            raise self.error(node, "merge keys (<<) are not part of YAML 1.2; write the keys out")
        return str(node.value)

    def scalar(self, node: ScalarNode) -> Any:
        kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
        text = node.value
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        try:
            if kind == "int":
                return int(text.replace("_", ""), 0) if text.lower().startswith(("0x", "0o")) else int(text)
            if kind == "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            raise self.error(node, f"{text!r} is not a number; quote it if it is text") from None
        if kind in ("str", "timestamp"):  # YAML 1.2 knows no dates: they stay as written
            return text
        raise self.error(node, f"the tag {node.tag} is not known; remove it")

    def error(self, node: Node, message: str) -> InputError:
        return InputError(f"{self.source}:{node.start_mark.line + 1}: {message}")


def _syntax(error: MarkedYAMLError, text: str, source: str) -> str:
    """One line for what the YAML parser found, with our words for the mistakes that are made most."""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    rows = text.splitlines()
    row = rows[line - 1] if line <= len(rows) else ""
    problem = " ".join(str(error.problem or error).split())
    context = " ".join(str(error.context or "").split())
    if "\t" in row[: len(row) - len(row.lstrip())] or "'\\t'" in problem:
        return f"{source}:{line}: a tab stands where YAML allows only spaces; indent with spaces"
    if "found another document" in problem or "single document" in context:
        return f"{source}:{line}: a second document starts here (---); keep one per file"
    if "undefined alias" in problem:
        return f"{source}:{line}: {problem}; an alias (*name) needs its anchor (&name) above it"
    if "mapping values are not allowed" in problem:
        return f"{source}:{line}: a ': ' stands inside unquoted text; put the text in quotes"
    where = f" ({context})" if context else ""
    return f"{source}:{line}: is not valid YAML: {problem}{where}"
