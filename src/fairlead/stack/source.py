"""Which model a name means, found without loading it: where its weights lie, what identifies it, what can be done.

A run whose results are all cached needs no more of its models than this.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from fairlead.errors import InputError, MissingResource
from fairlead.stack.identity import digest, model_hash

Kind: TypeAlias = Literal["apprentice", "local", "remote"]


@dataclass(frozen=True, slots=True)
class Source:
    """A model by name. `identity` is a hash of its files, or of provider and name where it is remote."""

    spec: str
    kind: Kind
    folder: Path | None
    identity: str

    @property
    def trainable(self) -> bool:
        """Whether its weights can be trained here: they are at hand, and so is torch."""
        return self.folder is not None and torch_installed()

    @property
    def parameters(self) -> int:
        """Roughly how many parameters, from the size of the weights (2 bytes or 4 each by the file's own header)."""
        return sum(_parameters(file) for file in self.folder.glob("*.safetensors")) if self.folder else 0


def torch_installed() -> bool:
    """Whether training is possible, without importing anything heavy."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


def locate(spec: str) -> Source:
    """Find a model by the name `open_model` takes. Raises InputError (exit 2) or MissingResource (exit 4)."""
    from fairlead.models import is_remote

    if is_remote(spec):
        return Source(spec, "remote", None, digest({"remote": spec.strip()}))
    if spec == "apprentice":
        from fairlead import apprentice

        folder = apprentice.path()
        if not (folder / "config.json").is_file():
            raise MissingResource(
                f"the apprentice's weights are missing from this installation ({folder}); install Fairlead again"
            )
        return Source(spec, "apprentice", folder, model_hash(folder))
    folder = _local(spec)
    kind: Kind = "apprentice" if _is_apprentice(folder) else "local"
    return Source(spec, kind, folder, model_hash(folder))


def _local(spec: str) -> Path:
    folder = Path(spec).expanduser()
    if folder.is_dir():  # a name that is a folder here means the folder
        if not (folder / "config.json").is_file():
            raise InputError(f"{spec}: holds no config.json, so it is no Hugging Face model folder")
        return folder
    if spec.startswith((".", "/", "~")) or folder.exists():
        raise MissingResource(f"{spec}: no such model folder")
    return _from_hub(spec)


def _from_hub(name: str) -> Path:
    """The folder of a hub model in the local hub cache; what is not there yet is fetched."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingResource(f"{name}: hub models need transformers: pip install 'fairlead[train]'") from None
    wanted = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (OSError, ValueError) as error:  # its own errors derive from these
        raise MissingResource(
            f"{name}: no such folder, and the hub does not give a model of this name ({str(error).splitlines()[0]}); "
            "write ./NAME for a folder"
        ) from None


def _is_apprentice(folder: Path) -> bool:
    """A descendant of the apprentice (the model/ of a run) still lives in its world: it carries the same wordings.

    Those that the base was raised on count; others may have come since the descendant was made.
    """
    from fairlead import apprentice
    from fairlead.apprentice.dialect import QUESTIONS

    own = Path(apprentice.__file__).parent / "prompts"
    files = [own / f"{name}.md" for name in QUESTIONS]
    return all(
        (folder / "prompts" / f.name).is_file() and (folder / "prompts" / f.name).read_bytes() == f.read_bytes()
        for f in files
    )


def _parameters(file: Path) -> int:
    """Parameters of a safetensors file by its header: names, dtypes, shapes; no tensor is read."""
    import json
    import math

    try:
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            if not 0 < size < 100_000_000:
                return 0
            header = json.loads(handle.read(size))
    except (OSError, ValueError):
        return 0  # a damaged file is refused, with its reason, by whoever loads it
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
