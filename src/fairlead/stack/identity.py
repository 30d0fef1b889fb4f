"""What determines a result, as short hashes that need no torch: files, folders, our own code, versions, threads."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import fairlead

# What reads a Hugging Face folder looks at; a README or an optimizer state beside the weights changes no result.
_MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken", "prompts/*.md")


def digest(value: Any) -> str:
    """sha256 over canonical JSON: keys sorted, no spaces. Floats are written as Python's repr, which is exact."""
    body = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
    return hashlib.sha256(body.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in a cache key")


def file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_hash(folder: Path) -> str:
    """Identity of a Hugging Face model folder: its weights, configuration, tokenizer and chat template."""
    files = {f for pattern in _MODEL_FILES for f in folder.glob(pattern) if f.is_file()}
    return digest({str(f.relative_to(folder)): file_hash(f) for f in sorted(files)})


@cache
def code_hash(*rooms: str) -> str:
    """Hash of our own source and prompt files under the named packages or modules of `fairlead`.

    A changed line in a room that a stage uses makes that stage's cached results stale; comments count too, because
    telling them apart would need trust in a parser where a rerun only needs time.
    """
    root = Path(fairlead.__file__).parent
    files: list[Path] = []
    for room in rooms:
        place = root / room
        if place.is_dir():
            files += [f for f in place.rglob("*") if f.suffix in {".py", ".md", ".jinja", ".yaml"}]
        else:
            files.append(place.with_suffix(".py"))
    return digest({str(f.relative_to(root)): file_hash(f) for f in sorted(set(files))})


def version_of(package: str) -> str:
    """The installed version, or "" where the package is absent; imports nothing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def cores() -> int:
    """Cores this process may use: results of float arithmetic depend on how many threads share a sum."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def numerics(threads: int, device: str) -> dict[str, Any]:
    """What besides code, data and seed decides the bits of a result."""
    names = ("torch", "transformers", "tokenizers", "numpy")
    return {"threads": threads, "device": device, **{name: version_of(name) for name in names}}
