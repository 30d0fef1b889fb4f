"""How a sentence-transformers folder makes one row of a text's tokens: read from `modules.json` and the folder of its
pooling, and refused by name where it is not covered. What else a folder does would silently be another encoder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from fairlead.errors import InputError

Mode: TypeAlias = Literal["mean", "cls", "max"]
_FLAGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}


@dataclass(frozen=True, slots=True)
class Pooling:
    """mode   mean of the last hidden states over the tokens, the first of them, or the largest in each place
    unit      divided by its length
    """

    mode: Mode = "mean"
    unit: bool = True


def read_pooling(folder: Path) -> Pooling:
    """The pooling of a folder. One without `modules.json`, as transformers saves it, says nothing: the mean, of length
    1, as sentence encoders are mostly used. Raises InputError for a module or a pooling that is not covered."""
    if not (folder / "modules.json").exists():
        return Pooling()
    modules = _json(folder / "modules.json")
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise InputError(f"{folder / 'modules.json'}: is no list of modules")
    kinds = [str(m.get("type", "")).rpartition(".")[2] for m in modules]
    for module, kind in zip(modules, kinds, strict=True):
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise InputError(
                f"{folder}: its module {module.get('path') or module.get('name')!r} ({kind}) is not covered; known are "
                "Transformer, Pooling and Normalize. Export it to a model.onnx of your own (output 'embedding')"
            )
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise InputError(
            f"{folder}: its modules are {', '.join(kinds)}; known: Transformer, Pooling, and perhaps Normalize"
        )
    if modules[0].get("path"):
        raise InputError(f"{folder}: its weights lie in {modules[0]['path']!r}; move them beside modules.json")
    file = folder / str(modules[1].get("path", "")) / "config.json"
    return Pooling(_mode(_json(file), file), "Normalize" in kinds)


def _mode(config: Any, file: Path) -> Mode:
    if not isinstance(config, dict):
        raise InputError(f"{file}: is no object")
    named = config.get("pooling_mode")
    on = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    modes = [_FLAGS.get(name, name) for name in on] if named is None else named if isinstance(named, list) else [named]
    if len(modes) == 1 and modes[0] in get_args(Mode):
        mode: Mode = modes[0]
        return mode
    raise InputError(f"{file}: pools by {', '.join(map(str, modes)) or 'nothing'}; known: one of mean, cls and max")


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise InputError(f"{file}: cannot be read ({problem})") from None
