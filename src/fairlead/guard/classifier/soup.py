"""One encoder of several fine-tuning runs: the mean of their weights ("model soups", Wortsman et al. 2022, ICML).

Runs that begin at one encoder and differ in seed alone (order of batches, drops, the head's first weights) end up near
enough to each other that the mean of their weights is a good model, most often a better one than any of them. It serves
at the cost of one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fairlead.errors import InputError
from fairlead.guard.classifier.finetune import Example, Tuned, Tuning, finetune


def soup(
    encoder: Path,
    examples: Sequence[Example],
    tuning: Tuning,
    seeds: Sequence[int],
    out: Path,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Tuned:
    """Fine-tune once for each of `seeds` (`tuning.seed` is not read) and write the mean to `out/encoder`.

    Each run lives in `out/seed-N` and may be stopped and gone on with. Seconds are summed, the loss is the mean.
    """
    from safetensors.numpy import load_file, save_file

    if not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"seeds are {list(seeds)}: give one at least, each once")
    runs = [
        finetune(
            encoder, examples, tuning.model_copy(update={"seed": seed}), out / f"seed-{seed}",
            say=lambda text, seed=seed: say(f"seed {seed}: {text}"),  # type: ignore[misc]
        )
        for seed in seeds
    ]  # fmt: skip
    folder = out / "encoder"
    shutil.copytree(runs[0].folder, folder, dirs_exist_ok=True)
    held = [load_file(str(run.folder / "model.safetensors")) for run in runs]
    mean = {name: _mean([one[name] for one in held]) for name in held[0]}
    save_file(mean, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return Tuned(
        folder,
        _mean([run.weight_HD for run in runs]),
        _mean([run.bias_H for run in runs]),
        sum(run.seconds for run in runs),
        float(np.mean([run.loss for run in runs])),
    )


def _mean(arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.asarray(np.mean(np.stack(arrays), axis=0, dtype=np.float64), np.float32)
