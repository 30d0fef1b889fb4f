"""A classifier on disk: a folder with a manifest that names every file by its sha256. Verified when it is loaded.

    manifest.json         what it is, for which constitution, how it reads, its heads and thresholds, sha256 of the rest
    heads.safetensors     weight_HD, bias_H
    vocabulary.json       of TF-IDF: the features in order; vocabulary.safetensors: their idf
    encoder.onnx          of an encoder, and tokenizer.json
    rows.jsonl            where every row came from, what it says of which principle, on which part it was; no texts
    card.json, card.md    what it was measured to do

The sha256 of manifest.json is the classifier's: caches and the audit log go by it. Nothing here can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fairlead.errors import InputError
from fairlead.guard.classifier.reading import Reading
from fairlead.guard.classifier.rows import View

FORMAT = 1
MANIFEST = "manifest.json"
INJECTION = "guard:injection"  # the head for orders in tools' texts stands for no principle: no id has a colon
Kind: TypeAlias = Literal["tfidf", "encoder"]


@dataclass(frozen=True, slots=True)
class Head:
    """One decision: P(principle is broken) = sigmoid(slope * logit + offset), broken from `threshold` on.

    doubt   from here to the threshold it is doubtful: a cascade asks a dearer check
    rate    the false-positive rate that the threshold was chosen for, on the validation part
    seen    of what broke the principle there, the share from `doubt` on: all that a dearer check is asked about in a
            cascade; 0 where it was not measured
    """

    principle: str
    view: View
    slope: float
    offset: float
    threshold: float
    doubt: float
    rate: float
    seen: float = 0.0


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a classifier is. `constitution` is its sha256; `rows` counts by source, `rows_sha256` is over them all."""

    kind: Kind
    name: str
    constitution: str
    reading: Reading
    heads: tuple[Head, ...]
    max_tokens: int
    rows: Mapping[str, int]
    rows_sha256: str
    made: Mapping[str, Any]
    files: Mapping[str, str]
    format: int = FORMAT


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def save(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> str:
    """Write the folder whole, or not at all; what stood there before is replaced. Returns the classifier's sha256."""
    body = {**asdict(manifest), "files": {name: digest(raw) for name, raw in sorted(files.items())}}
    raw = json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    temporary, old = (folder.with_name(f".{what}-{os.getpid()}-{folder.name}") for what in ("new", "old"))
    try:
        temporary.mkdir(parents=True)
        for name, content in {**files, MANIFEST: raw}.items():
            with (temporary / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return digest(raw)


def open_folder(folder: Path) -> tuple[Manifest, dict[str, bytes], str]:
    """(manifest, the files it names, sha256 of the classifier). Raises InputError that says which file is not what it
    was; files that the manifest does not name are not read."""
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder}: holds no classifier (no {MANIFEST}); make one with `fairlead guard train`")
    raw = path.read_bytes()
    try:
        body = json.loads(raw)
        if body.get("format") != FORMAT:
            raise InputError(f"{path}: format {body.get('format')!r}, this version reads {FORMAT}: train it anew")
        heads = tuple(Head(**head) for head in body.pop("heads"))
        manifest = Manifest(**{**body, "heads": heads, "reading": Reading(**body["reading"])})
    except (ValueError, TypeError, KeyError, AttributeError) as problem:
        raise InputError(f"{path}: cannot be read ({problem}); restore the folder, or train it anew") from None
    files: dict[str, bytes] = {}
    for name, wanted in manifest.files.items():
        file = folder / name
        if name != Path(name).name or not file.is_file():
            raise InputError(f"{file}: is missing, though {MANIFEST} names it: restore the folder, or train it anew")
        files[name] = file.read_bytes()
        found = digest(files[name])
        if found != wanted:
            raise InputError(
                f"{file}: its sha256 is {found[:12]}…, {MANIFEST} says {wanted[:12]}…: it was changed after training; "
                "restore it, or train it anew"
            )
    return manifest, files, digest(raw)
