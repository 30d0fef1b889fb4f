"""One resumable state per training run: weights, optimiser and records, rewritten whole and checked before use.

The order of the rows is a function of the seed, so a position in it is a number of steps; with the optimiser's state
restored, a run that was killed goes on to the same weights, bit for bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fairlead.errors import MissingResource
from fairlead.methods.loop import StepRecord, Updates

log = logging.getLogger(__name__)

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@contextmanager
def resumable(updates: Updates, key: str) -> Iterator[int]:
    """Restore the state that `run.checkpoint` holds for `key`, yield the steps it has done, save as training goes on.

    Without a checkpoint folder this yields 0 and does nothing. A state of another run (other data, weights or
    settings) is not used, and a damaged one is not either; both are said in the log. The state goes when the run ends.
    """
    folder = updates.run.checkpoint
    if folder is None:
        yield 0
        return
    file = folder / f"training-{key}.safetensors"
    _restore(updates, file)
    updates.after_step = lambda: _save(updates, file) if updates.done % updates.run.every == 0 else None
    restored = updates.done
    try:
        yield restored
    except BaseException:
        # Stopped between two steps (Ctrl-C, time over): keep what is done. Inside a step the state is not a state.
        if updates.settled and updates.done > restored:
            _save(updates, file)
        raise
    file.unlink(missing_ok=True)


def _save(updates: Updates, file: Path) -> None:
    tensors = {f"weight.{name}": p.detach().clone() for name, p in updates.parameters.items()}
    for name, parameter in updates.parameters.items():
        state = updates.optimiser.state[parameter]
        tensors |= {f"{moment}.{name}": torch.as_tensor(state[moment]).detach().clone() for moment in _MOMENTS}
    records = json.dumps([dataclasses.asdict(record) for record in updates.records])
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={"records": records, "sha256": _digest(tensors, records)})
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(file)
    except (OSError, SafetensorError) as error:
        raise MissingResource(f"{file}: the training state cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _restore(updates: Updates, file: Path) -> None:
    if not file.exists():
        others = sorted(file.parent.glob("training-*.safetensors"))
        if others:
            log.warning("%s belongs to a run with other data, weights or settings: starting anew", others[0])
        return
    try:
        tensors = load_file(file)
        metadata = _metadata(file)
        if metadata["sha256"] != _digest(tensors, metadata["records"]):
            raise ValueError("its checksum does not match")
    except (SafetensorError, ValueError, KeyError) as error:
        log.warning("%s is damaged (%s): starting anew", file, error)
        return
    with torch.no_grad():
        for name, parameter in updates.parameters.items():
            parameter.copy_(tensors[f"weight.{name}"])
            updates.optimiser.state[parameter] = {
                moment: tensors[f"{moment}.{name}"].to("cpu" if moment == "step" else parameter.device)
                for moment in _MOMENTS
            }
    updates.records[:] = [StepRecord(**record) for record in json.loads(metadata["records"])]
    log.info("%s: going on after step %d", file, updates.done)


def _metadata(file: Path) -> dict[str, str]:
    with file.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        header: Any = json.loads(handle.read(size))
    return dict(header["__metadata__"])


def _digest(tensors: dict[str, torch.Tensor], records: str) -> str:
    body = hashlib.sha256(records.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        body.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        body.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return body.hexdigest()
