"""Summed log-probs of each row's replies under the reference: computed once, kept on disk.

The key is what determines them: the weights, and the token ids (which data, template and tokenizer went into). A file
that is damaged or of another shape is computed again, and the log says so. Under torchrun every process computes its
share of the rows and gets the whole; process 0 alone reads and writes the file.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fairlead.engine import parallel
from fairlead.engine.checkpoint import atomic_write
from fairlead.engine.logprobs import ReplyLogprobs
from fairlead.methods.rows import Rows, Trainable, beside, folder_key

log = logging.getLogger(__name__)


def _whole(logp: ReplyLogprobs) -> torch.Tensor:
    return logp.sum_R()


def cached_logprobs(
    model: Trainable,
    rows: Rows,
    tokens_per_batch: int,
    cache: Path | None,
    sums: Callable[[ReplyLogprobs], torch.Tensor] = _whole,
    what: str = "",
) -> torch.Tensor:
    """Summed reply log-probs [rows, replies] in nats under the model's weights, from `cache` where they lie there.

    `sums` adds up each reply's tokens, where not plainly, and `what` then names the way in the cache's key.
    """
    if cache is None:
        return logprob_sums(model, rows, tokens_per_batch, sums)
    dtype = str(next(model.module.parameters()).dtype)
    key = folder_key("reference 1", model.lineage, dtype, rows.digest, *([what] if what else []))
    file = beside(cache, "reference", key, ".npy")
    known = parallel.from_first(
        _known(file, (len(rows.trees), len(rows.trees[0].replies))) if parallel.first() else None
    )
    if known is not None:
        return known
    made = logprob_sums(model, rows, tokens_per_batch, sums)
    if parallel.first():
        buffer = io.BytesIO()
        np.save(buffer, made.numpy(), allow_pickle=False)
        atomic_write(file, buffer.getvalue())
    return made


def _known(file: Path, shape: tuple[int, int]) -> torch.Tensor | None:
    """What the file holds, where it is whole and fits."""
    if not file.exists():
        return None
    try:
        known = torch.from_numpy(np.load(file, allow_pickle=False))
        if known.shape == shape and bool(torch.isfinite(known).all()):
            return known
        log.warning("%s has another shape than the data: computed again", file)
    except (ValueError, OSError, EOFError) as error:
        log.warning("%s is damaged (%s): computed again", file, error)
    return None


def logprob_sums(
    model: Trainable, rows: Rows, tokens_per_batch: int, sums: Callable[[ReplyLogprobs], torch.Tensor] = _whole
) -> torch.Tensor:
    """Summed reply log-probs [rows, replies per row] in nats, on the CPU, without gradients or dropout.

    Under torchrun every process must ask for the same rows at the same point.
    """
    return sums(parallel.score(model.module, rows.trees, tokens_per_batch)).view(len(rows.trees), -1)
