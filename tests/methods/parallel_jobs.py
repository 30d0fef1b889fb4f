"""What the processes of test_parallel.py and test_resume.py do: importable, so that they can be started."""

from __future__ import annotations

import copy
import math
import os
import random
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save, save_file
from tests.methods.trainable import Tiny, demonstrations, pairs, tiny_model

from engine.helpers import all_in_float64, keep_float64
from fairlead.engine import checkpoint, parallel
from fairlead.engine.checkpoint import save_model, weights_hash
from fairlead.engine.logprobs import reply_logprobs
from fairlead.errors import InputError
from fairlead.exchange import Preference, Ranking, Rated, Stepped, assistant, user
from fairlead.methods.config import BCOConfig, DPOConfig, IPOConfig, KTOConfig, Lora, ORPOConfig, SFTConfig
from fairlead.methods.config_reward import ProcessConfig, RewardConfig
from fairlead.methods.loggers import JsonLines
from fairlead.methods.loop import Run, StepRecord, TrainingStopped, Updates, batches
from fairlead.methods.losses import sft_nll
from fairlead.methods.preference import train_dpo, train_pairs
from fairlead.methods.process import stepped_rows, train_process_reward
from fairlead.methods.resume import resumable
from fairlead.methods.reward import train_reward
from fairlead.methods.rows import compared_rows, exchange_rows, rated_rows
from fairlead.methods.sft import train_sft
from fairlead.methods.unpaired import train_kto

# Micro-batches of this size make the two processes' counts differ in some steps.
SFT = SFTConfig(epochs=2, rows_per_step=3, lr=3e-3, tokens_per_batch=40)
DPO = DPOConfig(epochs=2, rows_per_step=3, lr=1e-3, beta=0.3, nll=0.2, tokens_per_batch=60, kl_samples=4)


def model_() -> Tiny:
    model = tiny_model()
    keep_float64(model.module)
    return model


@dataclass
class Spy:
    """A logger that remembers, and a progress callback."""

    steps: list[int] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    closed: int = 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        assert math.isfinite(metrics["loss"])
        self.steps.append(step)

    def close(self) -> None:
        self.closed += 1

    def progress(self, record: StepRecord) -> None:
        self.told.append(record.step + 1)


def train(method: str, folder: str, shard: bool, stop_after: int = 0) -> dict[str, Any]:
    """Train by a method's own function; process 0 saves the model, and the run resumes where it can.

    `stop_after`: process 0 dies when it hears of this step, as a bug in a callback would have it.
    """
    where, spy, model = Path(folder), Spy(), model_()

    def progress(record: StepRecord) -> None:
        spy.progress(record)
        if record.step + 1 == stop_after:
            raise RuntimeError("stopped")

    loggers = (JsonLines(where / "log.jsonl"), spy)
    run = Run(where / "cache", where / "unfinished", every=1, progress=progress, loggers=loggers)
    if method == "sft":
        tuned = train_sft(model, demonstrations(8), SFT.model_copy(update={"shard": shard}), run)
        trained, records, kl = tuned.model, tuned.records, None
    else:
        preferred = train_dpo(model, pairs(8), DPO.model_copy(update={"shard": shard}), run)
        trained, records, kl = preferred.model, preferred.records, preferred.kl
    module: Any = trained.module  # type: ignore[attr-defined]
    with parallel.writing(where / "model") as mine:
        if mine:
            save_model(module, model.tokenizer, where / "model")
    return {
        "hash": weights_hash(module),
        "records": [(r.loss, r.grad_norm, r.rows, r.tokens, dict(r.sums)) for r in records],
        "told": spy.told,
        "logged": spy.steps,
        "closed": spy.closed,
        "kl": None if kl is None else kl.value,
        "apart": parallel.world().size == 1 or "fairlead.engine.sharded" in sys.modules,
        "sharded": "fairlead.engine.sharded" in sys.modules,
    }


def moving() -> list[dict[str, Any]]:
    """A reference that follows the policy: on pairs, on pairs whose loss is the whole step's, and on thumbs."""
    more: Any = {"reference": "ema", "reference_every": 2, "kl_samples": 0}
    aot = {"losses": {"sigmoid": 1.0, "aot": 0.5}, "reference": "reset", "reference_rate": 0.6}
    thumb = KTOConfig(epochs=2, rows_per_step=3, lr=3e-3, tokens_per_batch=60, **more)
    trained: list[Any] = [
        train_pairs(model_(), pairs(8), DPO.model_copy(update=more)),
        train_pairs(model_(), pairs(8), DPO.model_copy(update=more | aot)),
        train_kto(model_(), [Rated(p.messages, p.chosen, i % 3 != 0) for i, p in enumerate(pairs(8))], thumb),
    ]
    return [
        {
            "hash": weights_hash(got.model.module),
            "norms": [float(p.detach().norm()) for p in got.model.module.parameters()],
            "records": [(r.loss, r.grad_norm, r.sums["chosen_drift"]) for r in got.records],
        }
        for got in trained
    ]


def mixed(shard: bool) -> dict[str, Any]:
    """A mixture of experts, whose routers' loss holds the whole step against its parts."""
    from tests.methods.test_balance import MIXED, mixture

    config = MIXED.model_copy(update={"rows_per_step": 3, "tokens_per_batch": 40, "shard": shard})
    with all_in_float64():
        tuned = train_sft(mixture(), demonstrations(8), config)
    module: Any = tuned.model.module  # type: ignore[attr-defined]
    return {
        "hash": weights_hash(module),
        "norms": [float(p.detach().norm()) for p in module.parameters()],
        "records": [(r.loss, r.grad_norm, r.sums["router_loss"]) for r in tuned.records],
    }


def rated(method: str, shard: bool) -> dict[str, Any]:
    """Methods that hold each reward against a statistic of the whole step, here with the step in one micro-batch."""
    words = ["yes", "no", "the boat is blue", "i keep that one", "a secret"]
    rows = [
        Rated((user(f"what is {'the ' * (i % 3)}boat ? {i}"),), (assistant(words[i % 5]),), good=i % 3 != 0)
        for i in range(8)
    ]
    kind = {"kto": KTOConfig, "bco": BCOConfig}[method]
    config = kind(epochs=2, rows_per_step=4, lr=3e-3, tokens_per_batch=1000, kl_samples=0, shard=shard)
    got = train_kto(model_(), rows, config)
    module: Any = got.model.module
    return {
        "hash": weights_hash(module),
        "norms": [float(p.detach().norm()) for p in module.parameters()],
        "records": [(r.loss, r.grad_norm, r.sums["baseline"]) for r in got.records],
    }


def rewarded(folder: str, shard: bool) -> dict[str, Any]:
    """A reward model: body and head together; all processes save it to the same folder."""
    config = RewardConfig(epochs=1, rows_per_step=3, lr=3e-3, tokens_per_batch=60, length=0.3, shard=shard)
    got = train_reward(model_(), pairs(8), config)
    got.model.save(Path(folder) / "reward")
    body: Any = got.model.model.module  # type: ignore[attr-defined]
    return {"body": weights_hash(body), "head": got.model.head.weight_D.tolist(), "loss": [r.loss for r in got.records]}


def thumbs() -> list[Rated]:
    words = ["yes", "no no", "the boat is blue", "a secret"]
    return [Rated((user(f"what {'the ' * i}? {i}"),), (assistant(words[i]),), good=i % 2 == 0) for i in range(4)]


def comparisons() -> list[Any]:
    replies = [(assistant(text),) for text in ("yes", "no no", "the boat is blue", "a secret")]
    return [*pairs(3), Ranking((user("the boat ?"),), tuple(replies), (2, 0, 3, 1))]


def solutions() -> list[Stepped]:
    words = ("the boat is blue", "yes", "no no", "a secret")
    return [Stepped((user(f"how {i} ?"),), words[: 1 + i], (1.0, 0.0, 0.9, 0.0)[: 1 + i]) for i in range(4)]


_LORA: dict[str, Any] = {"lora": Lora(rank=2, alpha=4)}
# Two steps on all of four rows: method, rows, settings. Adapters have a gradient all over in the second step only.
STEPS: dict[str, tuple[Any, Any, Any]] = {
    "ipo": (train_pairs, pairs(4), IPOConfig(kl_samples=0)),
    "orpo per token": (train_pairs, pairs(4), ORPOConfig(nll_mean="tokens", kl_samples=0)),
    "aot": (train_pairs, pairs(4), DPOConfig(loss="aot", kl_samples=0)),
    "dpo, adapters": (train_pairs, pairs(4), DPOConfig(kl_samples=0, **_LORA)),
    "orpo, adapters": (train_pairs, pairs(4), ORPOConfig(kl_samples=0, **_LORA)),
    "kto, adapters": (train_kto, thumbs(), KTOConfig(kl_samples=0, **_LORA)),
    "sft, noise and adapters": (train_sft, demonstrations(4), SFTConfig(neftune=5.0, **_LORA)),
    "reward of rankings": (train_reward, comparisons(), RewardConfig(length=0.3, centre=0.05)),
    "reward, adapters": (train_reward, comparisons(), RewardConfig(centre=0.05, **_LORA)),
    "process reward, adapters": (train_process_reward, solutions(), ProcessConfig(**_LORA)),
}


def largest(model: Tiny, rows: Any) -> int:
    """Tokens of the largest row: as a budget it makes about as many micro-batches as there are rows."""
    kind = type(rows[0])
    if kind is Stepped:
        made = stepped_rows(model, rows, "\n")[0]
    else:
        made = {Rated: rated_rows, Preference: compared_rows}.get(kind, exchange_rows)(model, rows)
    return max(tree.tokens for tree in made.trees)


def last_gradients(folder: str, shard: bool) -> dict[str, Any]:
    """The gradient of the last step of every method in `STEPS`, saved by name; micro-batches and losses are told."""
    told: dict[str, Any] = {}
    kept: dict[str, torch.Tensor] = {}
    counts: list[int] = []
    clip, update = parallel.clip_gradients, Updates._update

    def clipped(parameters: Any, limit: float) -> float:
        kept.clear()
        for number, parameter in enumerate(parameters):
            grad: Any = parameter.grad
            kept[f"{number:03}"] = (grad.full_tensor() if parallel.is_split(grad) else grad).clone().contiguous()
        return clip(parameters, limit)

    def counted(self: Updates, batch: Any) -> None:
        counts.append(self._count)
        update(self, batch)

    parallel.clip_gradients, Updates._update = clipped, counted  # type: ignore[method-assign]
    try:
        for name, (train, rows, config) in STEPS.items():
            counts.clear()
            settings = {"steps": 2, "epochs": None, "rows_per_step": 4, "lr": 1e-2, "warmup": 0.0, "shard": shard}
            model = model_()
            got = train(model, rows, config.model_copy(update={**settings, "tokens_per_batch": largest(model, rows)}))
            save_file(kept, Path(folder) / f"{name}-{parallel.world().rank}.st")
            told[name] = {"counts": [*counts], "losses": [r.loss for r in got.records]}
    finally:
        parallel.clip_gradients, Updates._update = clip, update  # type: ignore[method-assign]
    return told


def unlike() -> str:
    """Processes that were given different data."""
    try:
        train_sft(model_(), demonstrations(8 - parallel.world().rank), SFT)
    except InputError as error:
        return str(error)
    return "not noticed"


def not_a_number(folder: str, row: int) -> dict[str, Any]:
    """The loss of one row is NaN in the second step, on whichever process it falls."""
    model = model_()
    config = SFTConfig(steps=3, rows_per_step=8, lr=1e-3, tokens_per_batch=30)
    rows = exchange_rows(model, demonstrations(8), places=[f"d.jsonl:{i}" for i in range(8)])
    module = copy.deepcopy(model.module)
    updates = Updates(module, rows, config, Run(checkpoint=Path(folder), every=1000))
    seen: list[str] = []
    try:
        with resumable(updates, "some-run"):
            for batch in batches(rows, config):
                seen = [weights_hash(module)] if batch.step == 0 else seen
                bad = math.nan if batch.step == 1 and row in batch.rows and batch.weight else 1.0
                updates.step(bad * sft_nll(reply_logprobs(module, batch.trees).logp_N, tokens=batch.step_tokens), batch)
                seen += [weights_hash(module)] if batch.last else []
    except TrainingStopped as error:
        return {"error": str(error), "unchanged": weights_hash(module) == seen[-1], "done": updates.done}
    return {"error": "not noticed"}


def noisy(folder: str, shard: bool, kill_at: int = 0, victim: int = 0) -> dict[str, Any]:
    """A training that draws on every generator and carries a running mean; killed by a real SIGKILL where asked.

    The kill comes before event `kill_at` on files of process `victim`: files opened, folders made, renamed and removed,
    tensor files half written. Returns the number of such events and the hash of the trained weights.
    """
    events = Events(Path(folder), kill_at if parallel.world().rank == victim else 0)
    model = model_()
    config = SFTConfig(steps=4, rows_per_step=3, lr=3e-3, tokens_per_batch=40, shard=shard)
    rows = exchange_rows(model, demonstrations(7))
    seed = 11 + parallel.world().rank
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    module = copy.deepcopy(model.module)
    spy = Spy()
    updates = Updates(module, rows, config, Run(checkpoint=Path(folder), every=1, progress=spy.progress))
    with resumable(updates, "noisy"):
        for batch in batches(rows, config, start=updates.done):
            noise = torch.rand(()).item() + random.random() + random.gauss(0, 1)
            noise += np.random.rand() + np.random.randn()  # noqa: NPY002
            noise += updates.extra.get("mean", 0.0)
            loss = sft_nll(reply_logprobs(module, batch.trees).logp_N, tokens=batch.step_tokens)
            updates.extra["mean"] = 0.5 * updates.extra.get("mean", 0.0) + 0.1 * noise
            updates.step(loss * (1 + 0.2 * noise), batch)
    return {"events": events.count, "hash": weights_hash(module), "told": spy.told}


class Events:
    """Counts what this process does to files in a folder, and kills it before one of those."""

    KINDS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")

    def __init__(self, folder: Path, kill_at: int) -> None:
        self.folder, self.kill_at, self.count = str(folder), kill_at, 0
        sys.addaudithook(self._audit)
        checkpoint.save_file = self._torn  # safetensors writes from Rust, which audits nothing

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        # Folders are emptied through descriptors, with bare names.
        if event in self.KINDS and (self.folder in str(args[0]) or event in ("os.remove", "os.rmdir")):
            self._happens()

    def _torn(self, tensors: dict[str, torch.Tensor], file: Path) -> None:
        body = save(tensors)
        with file.open("wb") as handle:
            handle.write(body[: len(body) // 2])
            handle.flush()
            self._happens()
            handle.write(body[len(body) // 2 :])

    def _happens(self) -> None:
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
