"""The steps of a policy's training that are under way, kept on disk until no state needs them.

So a run that was killed goes on with the replies and scores it had, and asks no model and no judge twice.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fairlead.engine import parallel
from fairlead.errors import InputError, MissingResource
from fairlead.methods.experience import Experience, keep, kept
from fairlead.methods.loop import Run


class Journal:
    """`updates` are the optimiser steps of a step. Without a checkpoint folder nothing is kept."""

    def __init__(self, run: Run, key: str, updates: int) -> None:
        self.folder = None if run.checkpoint is None else run.checkpoint / f"training-{key}" / "steps"
        self.updates = updates
        if self.folder is not None and run.fresh and parallel.first():
            shutil.rmtree(self.folder, ignore_errors=True)
        parallel.wait()

    def holds(self, step: int) -> bool:
        """Whether the step's experience lies here."""
        return self.folder is not None and self._file(step).exists()

    def find(self, step: int) -> Experience | None:
        """What an earlier run had gathered for this step. Raises InputError for a damaged file."""
        if self.folder is None:
            return None
        try:
            return kept(self._file(step))
        except ValueError as error:
            raise InputError(f"{error}. Remove it and start again: the replies are then drawn anew") from error

    def put(self, step: int, experience: Experience) -> None:
        """Keep a step; let go of those before the oldest state. Raises MissingResource for a full disk."""
        if self.folder is None:
            return
        failed = ""
        if parallel.first():
            try:
                keep(experience, self._file(step))
            except OSError as error:
                failed = f"{self._file(step)}: the step's replies cannot be written: {error}"
            states = [int(state.name.removeprefix("step-")) for state in self.folder.parent.glob("step-*")]
            for file in self.folder.glob("*.safetensors"):
                if int(file.stem) < min(states, default=0) // self.updates:
                    file.unlink()
        failed = next(filter(None, parallel.texts(failed)), "")
        if failed:
            raise MissingResource(
                f"{failed}. Free some space and start the same run again: it goes on from its last state"
            )

    def _file(self, step: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{step:08d}.safetensors"
