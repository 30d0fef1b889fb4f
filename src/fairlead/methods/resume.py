"""Resumable states of a training run: weights, optimiser, generators, records and settings, whole and checked.

A state is a folder `training-KEY/step-N`: safetensors files and a `state.json` that names them with their checksums.
It is filled under another name, flushed to the disk and renamed, and the one before stays until the next is written. So
a kill or a full disk at any moment leaves a good state, and a damaged one is found out and the one before is used.

The order of the rows is a function of the seed, so the position in the data is a number of steps; with the rest
restored, a run that was killed goes on to the same weights, bit for bit, on the same number of processes. On another
number it goes on too, and says that the last bits may differ.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fairlead.engine import parallel
from fairlead.engine.checkpoint import (
    read_record,
    read_tensors,
    rng_state,
    set_rng_state,
    sync,
    write_record,
    write_tensors,
)
from fairlead.errors import InputError, MissingResource
from fairlead.methods.loop import StepRecord, TrainingStopped, Updates

log = logging.getLogger(__name__)

_FORMAT = "fairlead training state 2"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_KEPT = 2
_UNREADABLE = "state.json cannot be read: "


class _NotWritten(MissingResource):
    """A state could not be written; trying once more on the way out would fail again."""


@contextmanager
def resumable(updates: Updates, key: str) -> Iterator[int]:
    """Restore the state that `run.checkpoint` holds for `key`, yield the steps it has done, save as training goes on.

    Without a checkpoint folder this yields 0 and saves nothing; with `run.fresh` it yields 0. A state of another run
    (other data, weights or settings) is not used, and a damaged one is not either; both are said in the log. The states
    go when the run ends, the loggers are closed, and weights that were split over processes are whole again. Raises
    InputError where the processes were started with different data or settings, MissingResource for a full disk.
    """
    try:
        parallel.same(key, "data, model or settings")
    except ValueError as error:
        raise InputError(str(error)) from None
    updates.key = key
    folder = None if updates.run.checkpoint is None else updates.run.checkpoint / f"training-{key}"
    if folder is not None:
        if not updates.run.fresh:
            _restore(updates, folder)
        elif parallel.first() and _states(folder):
            log.info("%s: starting anew, as asked; its states are replaced", folder)
        updates.after_step = lambda: save() if updates.done % updates.run.every == 0 else None
    saved = restored = updates.done

    def save() -> None:
        nonlocal saved
        if folder is not None and updates.done > saved:
            _save(updates, folder)
            saved = updates.done

    try:
        yield restored
        updates.finish()
    except _NotWritten:
        raise
    except BaseException as error:
        # Stopped between two steps (Ctrl-C, time over): keep what is done. Inside a step the state is not a state, and
        # of several processes only a stop that all of them make leaves them at the same step.
        if updates.settled and (updates.world.size == 1 or isinstance(error, TrainingStopped)):
            try:
                save()
            except MissingResource as full:
                log.error("%s", full)  # what stopped the run is what its caller must hear
        raise
    finally:
        for logger in updates.run.loggers:
            logger.close()
    if folder is not None and parallel.first():
        shutil.rmtree(folder, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------ saving


def _save(updates: Updates, folder: Path) -> None:
    """Write one state. Every process takes part; where weights are not split, process 0 writes all of it."""
    first = updates.world.rank == 0
    final, fresh = folder / f"step-{updates.done:08d}", folder / f".step-{updates.done:08d}.tmp"
    generators = _of_all(rng_state())
    extras = [json.loads(text) for text in parallel.texts(json.dumps(updates.extra))]

    def write() -> str:
        carried = {f"carried.{name}": tensor.cpu() for name, tensor in updates.tensors.items()}
        tensors = _state(updates) | ({"generators": generators} | carried if first else {})
        return write_tensors(fresh / _file(updates.world.rank), tensors)

    def publish() -> str:
        write_record(fresh / "state.json", _about(updates, digests, extras))
        _publish(fresh, final)
        return ""

    _, failed = _everywhere(lambda: _make_empty(fresh), first)
    if not failed:
        digests, failed = _everywhere(write, first or updates.split)
    if not failed:
        _, failed = _everywhere(publish, first)
    if failed:
        if first:
            shutil.rmtree(fresh, ignore_errors=True)
        raise _NotWritten(
            f"{final}: the training state cannot be written: {failed}. The one before it is kept; free some space and "
            "start the same run again, and it goes on from there"
        )


def _everywhere(action: Callable[[], str], mine: bool) -> tuple[list[str], str]:
    """Do something on the processes it is for: what each returned, and the first failure, known to all."""
    got = failed = ""
    if mine:
        try:
            got = action()
        except OSError as error:
            failed = str(error)
    return parallel.texts(got), next(filter(None, parallel.texts(failed)), "")


def _make_empty(folder: Path) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return ""


def _publish(fresh: Path, final: Path) -> None:
    """Flush, rename into place, and let go of all but the last two."""
    sync(fresh)
    shutil.rmtree(final, ignore_errors=True)  # a damaged state of the same step, or it would have been gone on from
    fresh.rename(final)
    sync(final.parent)
    # States of later steps were found damaged, or this one would not be written.
    done = [state for state in _states(final.parent) if state.name <= final.name]
    for state in {*_states(final.parent)} - {*done[:_KEPT]}:
        shutil.rmtree(state, ignore_errors=True)


def _state(updates: Updates) -> dict[str, torch.Tensor]:
    """Weights and optimiser state by name; of split ones, this process's part."""
    tensors = {f"weight.{name}": parallel.local(p) for name, p in updates.parameters.items()}
    for name, parameter in updates.parameters.items():
        state = updates.optimiser.state.get(parameter, {})
        tensors |= {f"{m}.{name}": parallel.local(torch.as_tensor(state[m])) for m in _MOMENTS if m in state}
    tensors |= {f"good.{name}": kept for name, kept in updates.good.items()}
    tensors |= {f"held.{name}": kept for name, kept in updates.held.items()}
    return tensors


def _about(updates: Updates, digests: list[str], extras: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "step": updates.done,
        "processes": updates.world.size,
        "split": [name for name, p in updates.parameters.items() if parallel.is_split(p)],
        "files": {_file(rank): digest for rank, digest in enumerate(digests) if digest},
        "config": updates.config.model_dump(mode="json"),
        "extra": extras,
        "torch": torch.__version__,
        "records": [dataclasses.asdict(record) for record in updates.records],
    }


def _file(rank: int) -> str:
    return f"process-{rank:05d}.safetensors"


def _of_all(state: torch.Tensor) -> torch.Tensor:
    """Every process's bytes, a row each."""
    here = parallel.world()
    table = torch.zeros(here.size, len(state), dtype=torch.uint8)
    table[here.rank] = state
    return parallel.total(table)


def _states(folder: Path) -> list[Path]:
    """States in a folder, the newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


# --------------------------------------------------------------------------------------------------- restoring


def _restore(updates: Updates, folder: Path) -> None:
    """Go back to the newest state that is whole; process 0 says which, and why not a newer one."""
    if parallel.first():
        _tidy(folder)
    names = parallel.texts(" ".join(state.name for state in _states(folder)))[0].split()
    for name in names:
        about, tensors, problem = _read(updates, folder / name)
        problems = [text for text in parallel.texts(problem) if text]
        if not problems:
            _apply(updates, about, tensors)
            log.info("%s: going on after step %d", folder / name, updates.done)
            return
        rest = "going back to the state before it" if name != names[-1] else "starting anew"
        log.warning("%s is damaged (%s): %s", folder / name, problems[0], rest)


def _tidy(folder: Path) -> None:
    """Remove what a killed run left half-written; say where only states of other runs lie."""
    for fresh in folder.glob(".step-*.tmp"):
        shutil.rmtree(fresh, ignore_errors=True)
    others = [other for other in sorted(folder.parent.glob("training-*")) if other != folder]
    if others and not _states(folder):
        log.warning("%s belongs to a run with other data, weights or settings: starting anew", others[0])


def _read(updates: Updates, state: Path) -> tuple[dict[str, Any], list[dict[str, torch.Tensor]], str]:
    """A state's description and what this process needs of its tensors, or what is wrong with it.

    Where weights are split now as they were, that is this process's own file; where they are not, process 0 reads
    all and tells the others; where the cut differs, every process that holds a part reads all files.
    """
    try:
        text = (state / "state.json").read_text(encoding="utf-8") if parallel.first() else ""
    except (OSError, ValueError) as error:
        text = f"{_UNREADABLE}{error}"
    text = parallel.texts(text)[0]
    try:
        if text.startswith(_UNREADABLE):
            raise ValueError(text)
        about = read_record(text)
        if about.get("format") != _FORMAT:
            raise ValueError(f"its format is {about.get('format')!r}, not {_FORMAT!r}")
        files: dict[str, str] = about["files"]
        here = updates.world
        if about["split"] and updates.split and about["processes"] == here.size:
            wanted = [_file(here.rank)]
        else:
            wanted = sorted(files) if updates.split or here.rank == 0 else []
        return about, [read_tensors(state / name, files[name]) for name in wanted], ""
    except (ValueError, KeyError) as error:
        return {}, [], f"process {updates.world.rank}: {error}" if updates.world.size > 1 else str(error)


def _apply(updates: Updates, about: dict[str, Any], tensors: list[dict[str, torch.Tensor]]) -> None:
    here = updates.world
    moments = _moments(updates, tensors)
    kept = [("good", updates.good, _named(tensors, "good.")), ("held", updates.held, _named(tensors, "held."))]
    with torch.no_grad():
        for name, parameter in updates.parameters.items():
            parallel.local(parameter).copy_(_part(updates, about, tensors, f"weight.{name}", parameter))
            for moment in moments.get(name, ()):
                state = updates.optimiser.state[parameter]
                count = moment == "step"  # a fused optimiser counts on the parameter's device
                like = torch.zeros((), device=parameter.device) if count else torch.zeros_like(parameter)
                parallel.local(like).copy_(_part(updates, about, tensors, f"{moment}.{name}", like))
                state[moment] = like
            for what, into, names in kept:
                if name in names:
                    into[name] = _part(updates, about, tensors, f"{what}.{name}", parameter).cpu().clone()
    updates.records[:] = [StepRecord(**record) for record in about["records"]]
    updates.extra.update(about["extra"][min(here.rank, len(about["extra"]) - 1)])
    _carry(updates, tensors[0] if here.rank == 0 else {})
    generators = parallel.from_first(tensors[0]["generators"] if here.rank == 0 else None)
    if generators is not None and here.rank < len(generators):
        set_rng_state(generators[here.rank])
    if about["processes"] != here.size:
        log.warning(
            "the state is of a run on %d processes and this one is on %d: it goes on with the same rows and weights, "
            "but rounding may differ in the last bits, and what random generators draw on a process",
            about["processes"],
            here.size,
        )


def _carry(updates: Updates, tensors: dict[str, torch.Tensor]) -> None:
    """What the method carries as tensors, from process 0 to all."""
    for name in _named([tensors], "carried."):
        told = parallel.from_first(tensors.get(f"carried.{name}"))
        assert told is not None
        updates.tensors[name] = told


def _named(tensors: list[dict[str, torch.Tensor]], start: str) -> list[str]:
    """What process 0 has read of the names that begin so, without that beginning, on every process."""
    names = (name.removeprefix(start) for name in (tensors[0] if tensors else {}) if name.startswith(start))
    return parallel.texts("\n".join(names))[0].splitlines()


def _moments(updates: Updates, tensors: list[dict[str, torch.Tensor]]) -> dict[str, list[str]]:
    """Which moments the state holds of which parameter, on every process."""
    found: dict[str, list[str]] = {}
    for moment in _MOMENTS:
        for name in _named(tensors, f"{moment}."):
            if name in updates.parameters:
                found.setdefault(name, []).append(moment)
    return found


def _part(
    updates: Updates, about: dict[str, Any], tensors: list[dict[str, torch.Tensor]], name: str, like: torch.Tensor
) -> torch.Tensor:
    """What belongs into this process's part of `like`."""
    if not tensors:
        value = None
    elif len(tensors) == 1 or name.partition(".")[2] not in about["split"] or name.startswith("step."):
        value = tensors[0][name]
    else:
        value = torch.cat([part[name] for part in tensors])
    if not updates.split:
        told = parallel.from_first(value)
        assert told is not None
        return told
    assert value is not None
    if not parallel.is_split(like) or value.shape == parallel.local(like).shape:
        return value
    # FSDP2 cuts the first axis like torch.chunk: equal lengths, what is left over to the last.
    length = -(-len(value) // updates.world.size)
    return value[updates.world.rank * length :][:length]
