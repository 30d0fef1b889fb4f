"""Files and folders that are written whole or not at all, hashes of weights, and the states of random generators.

Everything is written beside its destination under a temporary name, flushed to the disk, and renamed into place: a
reader sees the old content or the new, and a full disk or a kill leaves the old one. Tensors lie in safetensors and
everything else in JSON: no file here can run code when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save, save_file
from torch import nn


def atomic_write(path: Path | str, data: bytes | str) -> None:
    """Write a file whole. Raises OSError (a full disk, for example) with nothing left behind."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode() if isinstance(data, str) else data
    fresh = _beside(path)
    try:
        with fresh.open("xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Give a temporary folder to fill; on a clean exit it is flushed and takes the place of `path`.

    If the body raises, the temporary folder goes and `path` stays as it was. An existing folder is moved aside for the
    instant between two renames; if a kill hits that instant, the old content is found under `.NAME.old`, and the next
    `atomic_folder` for the same path puts it back first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.parent / f".{path.name}.old"
    if old.exists() and not path.exists():
        os.replace(old, path)
    fresh = _beside(path)
    fresh.mkdir()
    try:
        yield fresh
        readable = fresh.stat().st_mode & 0o666
        for file in sorted(fresh.rglob("*")):
            if file.is_file():
                file.chmod(readable)  # some writers make their files private; who may read the folder may read these
            sync(file)
        sync(fresh)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
        os.replace(fresh, path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def save_model(module: nn.Module, tokenizer: Any, folder: Path | str) -> str:
    """Save weights, config and tokenizer in Hugging Face format, atomically; returns the weights' hash.

    The folder loads with `AutoModelForCausalLM.from_pretrained`. What stood in the folder before goes. Raises
    ValueError for a model under adapters, of which only those would be written.
    """
    model: Any = module
    if hasattr(model, "get_base_model"):
        raise ValueError(f"{folder}: the model carries adapters; fold them in first (engine.adapters.merged)")
    with atomic_folder(folder) as fresh:
        # Once processes have joined, transformers writes on process 0 alone, silently; here whoever is asked writes.
        model.__dict__["should_save_on_this_rank"] = lambda is_main_process: is_main_process
        try:
            model.save_pretrained(fresh, safe_serialization=True)
        except SafetensorError as error:  # a full disk, wrapped by the writer
            raise OSError(f"{folder}: the weights could not be written: {error}") from error
        finally:
            del model.__dict__["should_save_on_this_rank"]
        if tokenizer is not None:
            tokenizer.save_pretrained(fresh)
        written = weights_hash(fresh)
        if written != weights_hash(module):
            raise OSError(f"{folder}: the weights read back differ from those in memory; nothing was replaced")
    return written


def weights_hash(source: nn.Module | Path | str) -> str:
    """sha256 over names, dtypes, shapes and bytes of all weights, equal for a module and its saved folder.

    Tied weights count once, under the name they are saved by. Raises FileNotFoundError for a folder without
    safetensors.
    """
    if isinstance(source, nn.Module):
        return _digest(_own_tensors(source))
    files = sorted(Path(source).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{source}: no .safetensors file; is this a model folder?")
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return _digest(tensors)


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write tensors to a new file, flushed to the disk; returns their hash as they were in memory.

    Raises OSError, also for a full disk. The file is not renamed into place: it is part of a folder that will be.
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(ready, file)
    except SafetensorError as error:  # a full disk, wrapped by the writer
        raise OSError(f"{file}: could not be written: {error}") from error
    sync(file)
    return _digest(ready)


def read_tensors(file: Path, digest: str) -> dict[str, torch.Tensor]:
    """The tensors of `write_tensors`. Raises ValueError where the file is missing, damaged or not the one meant."""
    try:
        tensors: dict[str, torch.Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file.name} cannot be read: {error}") from error
    if _digest(tensors) != digest:
        raise ValueError(f"{file.name}: its checksum does not match")
    return tensors


def write_record(file: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON object with a checksum of itself, atomically. Raises OSError."""
    atomic_write(file, json.dumps({"sha256": _mark(record), **record}, indent=1))


def read_record(text: str) -> dict[str, Any]:
    """The object in the text of a `write_record` file. Raises ValueError where it is not what was written."""
    record = json.loads(text)
    if not isinstance(record, dict) or record.pop("sha256", None) != _mark(record):
        raise ValueError("its checksum does not match")
    return record


def _mark(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def rng_state() -> torch.Tensor:
    """The state of torch's, NumPy's and Python's global generators (and this process's GPU's) as bytes, [n]."""
    version, words, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([float("nan") if gauss is None else gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
        "numpy_at": torch.tensor([numpy["state"]["pos"], numpy["has_gauss"]]),
        "numpy_gauss": torch.tensor([numpy["gauss"]], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return torch.frombuffer(bytearray(save(state)), dtype=torch.uint8)


def set_rng_state(state: torch.Tensor) -> None:
    """Put back what `rng_state` gave."""
    kept = load(bytes(state.cpu().numpy().tobytes()))
    torch.set_rng_state(kept["torch"])
    version, *words = kept["python"].tolist()
    gauss = float(kept["python_gauss"])
    random.setstate((version, tuple(words), None if gauss != gauss else gauss))
    at, has_gauss = kept["numpy_at"].tolist()
    key = kept["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, at, has_gauss, float(kept["numpy_gauss"])))  # noqa: NPY002
    if "cuda" in kept and torch.cuda.is_available():
        torch.cuda.set_rng_state(kept["cuda"])


def _own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict without second names of shared tensors."""
    state: dict[str, torch.Tensor] = module.state_dict()
    tied = getattr(module, "_tied_weights_keys", None) or {}
    own: dict[str, torch.Tensor] = {}
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name in sorted(state, key=lambda name: (name in tied, name)):
        tensor = state[name]
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in seen:
            continue
        seen[place] = name
        own[name] = tensor
    return own


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous().cpu()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _beside(path: Path) -> Path:
    """A new name in the same folder (a rename works only within one file system)."""
    return path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
