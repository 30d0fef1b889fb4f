"""What a policy is held to: summed log-probs under the model that came in, or a reference that follows the policy.

Log-probs of each row's replies under a reference that stays are computed once and kept on disk.

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
from fairlead.methods.adapters import trainable_copy
from fairlead.methods.config import Training
from fairlead.methods.loop import Updates
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


class Reference:
    """The policy that is held to: the model that came in, or one that follows the policy at `config.reference_pace`.

    Resetting it lets a long run move on (DeepSeek-AI 2025, arXiv 2501.12948, every 400 steps; ProRL, Liu et al. 2025,
    arXiv 2505.24864; TR-DPO, Gorbatovski et al. 2024, arXiv 2404.09656); a running mean does so smoothly (WARP, Ramé
    et al. 2024, arXiv 2406.16768; TR-DPO's soft update, rate x policy + (1 - rate) x reference). A mean lags behind;
    BEMA adds to it a share of the way from the start (Block and Zhang 2025, arXiv 2508.00180, algorithm 1).
    """

    def __init__(self, model: Trainable, config: Training) -> None:
        self.pace = config.reference_pace
        self.module: torch.nn.Module = model.module if self.pace is None else trainable_copy(model.module, config)
        self.module.eval()
        self.start, self.mean = dict(model.module.named_parameters()), dict[str, torch.Tensor]()
        if self.pace is not None and self.pace.bias is not None:
            self.mean = {name: p.detach().clone() for name, p in self._moving()}

    def carry(self, updates: Updates) -> None:
        """Have its weights saved with the run's state, and take up those of a state that was restored."""
        if self.pace is None:
            return
        with torch.no_grad():
            for what, held in (("reference", dict(self._moving())), ("reference_mean", self.mean)):
                for name, tensor in held.items():
                    saved = updates.tensors.get(f"{what}.{name}")
                    if saved is not None:
                        tensor.copy_(saved)
                    updates.tensors[f"{what}.{name}"] = tensor.data

    def follow(self, policy: torch.nn.Module, steps: int) -> None:
        """After `steps` steps in all."""
        if self.pace is None or steps % self.pace.every:
            return
        (rate, ahead), now = self.pace.at(steps), dict(policy.named_parameters())
        with torch.no_grad():
            for name, parameter in self._moving():
                mean = self.mean.get(name, parameter)
                mean.lerp_(now[name].detach(), rate) if rate < 1 else mean.copy_(now[name])
                if self.mean:
                    parameter.copy_(mean + ahead * (now[name] - self.start[name]))

    def _moving(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]


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
