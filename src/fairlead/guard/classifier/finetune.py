"""Fine-tuning a sentence encoder on labelled texts and contrast pairs. Torch, at training time alone.

Loss of a batch: binary cross-entropy of every known label, from a linear head on the mean of the last hidden states,
plus `contrast` times the supervised contrastive loss of Khosla et al. 2020 (NeurIPS, eq. 2) on the same means. Meanings
of one word come into one batch, so that the loss has to tell them apart. What is kept are averaged weights (Polyak &
Juditsky 1992, exponentially), drawn back towards the start by `keep` (Wortsman et al. 2022, "robust fine-tuning").

Layers below `frozen_layers` stay as they are, so what they make of every text is computed once and kept on disk; two
layers of six cost a fifth of all. A run writes its state after every `save_every` steps and goes on from there,
with the same batches and the same drops.

Axes: B texts of a batch, T tokens, D width, H heads.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fairlead.errors import InputError
from fairlead.guard.classifier.reading import Pair

if TYPE_CHECKING:
    import torch

STATE, META = "tuning.safetensors", "tuning.json"


class Tuning(BaseModel):
    """How to fine-tune. Lengths in tokens; a step is one batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: float = Field(3.0, gt=0)
    batch: int = Field(32, ge=2)
    lr: float = Field(1e-4, gt=0)
    head_lr: float = Field(1e-3, gt=0)
    layer_decay: float = Field(0.8, gt=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    warm_up: float = Field(0.1, ge=0, lt=1)
    contrast: float = Field(0.3, ge=0)
    temperature: float = Field(0.1, gt=0)
    smoothing: float = Field(0.05, ge=0, lt=0.5)
    average: float = Field(0.99, ge=0, lt=1)
    keep: float = Field(0.0, ge=0, lt=1, description="share of the starting weights in the result")
    frozen_layers: int | None = Field(None, ge=0, description="counted from below; two thirds of all where None")
    max_tokens: int = Field(128, ge=8, le=512)
    bfloat16: bool = Field(False, description="products in bfloat16: half the time on CPUs that know it")
    save_every: int = Field(100, ge=1)
    seed: int = Field(0, ge=0)


@dataclass(frozen=True, slots=True)
class Example:
    """`labels` are 1 broken, 0 kept, NaN unknown, one per head; `group` as in `rows.Row`."""

    text: Pair
    labels: NDArray[np.float32]
    group: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Tuned:
    """A folder as transformers writes it, and the head trained with it: logits = x_BD @ weight_HD.T + bias_H."""

    folder: Path
    weight_HD: NDArray[np.float32]
    bias_H: NDArray[np.float32]
    seconds: float
    loss: float


def finetune(
    encoder: Path,
    examples: Sequence[Example],
    tuning: Tuning,
    out: Path,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Tuned:
    """Fine-tune the encoder in `encoder` (a BERT-like folder with tokenizer.json) and write it to `out/encoder`.

    An unfinished run in `out` goes on if it had the same settings and rows. Raises InputError where there is nothing to
    learn, or the folder in the way belongs to another run.
    """
    import torch
    from safetensors.numpy import save_file
    from transformers import AutoModel

    if not examples:
        raise InputError("there are no rows to fine-tune on")
    torch.manual_seed(tuning.seed)
    model = AutoModel.from_pretrained(str(encoder), local_files_only=True)
    if getattr(model.config, "model_type", "") != "bert":
        raise InputError(f"{encoder}: is a {model.config.model_type!r} model; BERT encoders alone can be tuned here")
    layers = len(model.encoder.layer)
    frozen = 2 * layers // 3 if tuning.frozen_layers is None else tuning.frozen_layers
    if frozen >= layers:
        raise InputError(f"all {layers} layers are frozen: nothing is left to tune")
    heads, width = len(examples[0].labels), int(model.config.hidden_size)
    head = torch.nn.Linear(width, heads)
    torch.nn.init.zeros_(head.bias)
    torch.nn.init.normal_(head.weight, std=0.02)
    ids = tokenised(encoder, [e.text for e in examples], tuning.max_tokens)
    below = lower(model, ids, frozen, out.parent, say)
    batches = _batches(examples, [len(i) for i, _ in ids], tuning)
    named = _trainable(model, head, frozen)
    optimizer = torch.optim.AdamW(_groups(named, tuning), weight_decay=tuning.weight_decay)
    start = {n: p.detach().clone() for n, p in named.items()}
    mean = {n: p.detach().clone() for n, p in named.items()}
    run = _Run(out, tuning, len(batches), _identity(examples))
    step = run.resume(named, mean, optimizer)
    began, seconds, loss = time.process_time(), run.seconds, run.loss
    model.train()
    while step < len(batches):
        torch.manual_seed((tuning.seed * 1_000_003 + step) % 2**31)  # the same drops after a resume
        for group in optimizer.param_groups:
            group["lr"] = group["top"] * _schedule(step / len(batches), tuning.warm_up)
        at = batches[step]
        value = _loss(model, head, [below[i] for i in at], [examples[i] for i in at], frozen, tuning)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(named.values()), 1.0)
        optimizer.step()
        step += 1
        rate = min(tuning.average, step / (step + 10))
        with torch.no_grad():
            for n, p in named.items():
                mean[n].lerp_(p, 1 - rate)
        now = float(value.detach())
        loss = now if step == 1 else 0.98 * loss + 0.02 * now
        if step % tuning.save_every == 0 or step == len(batches):
            spent = seconds + time.process_time() - began
            run.save(step, spent, loss, named, mean, optimizer)
            say(f"step {step:,} of {len(batches):,}, loss {loss:.4f}, {spent:.0f} s of CPU")
    with torch.no_grad():
        for n, p in named.items():
            p.copy_(mean[n] if n.startswith("head.") else torch.lerp(mean[n], start[n], tuning.keep))
    folder = out / "encoder"
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder), safe_serialization=True)
    (folder / "tokenizer.json").write_bytes((encoder / "tokenizer.json").read_bytes())
    weight, bias = head.weight.detach().numpy().copy(), head.bias.detach().numpy().copy()
    save_file({"weight_HD": weight, "bias_H": bias}, str(out / "head.safetensors"))
    return Tuned(folder, weight, bias, seconds + time.process_time() - began, loss)


def _loss(
    model: Any, head: Any, below: Sequence[torch.Tensor], examples: Sequence[Example], frozen: int, tuning: Tuning
) -> torch.Tensor:
    import torch
    from torch.nn import functional

    with torch.autocast("cpu", torch.bfloat16, enabled=tuning.bfloat16):
        mean_BD = pooled(model, below, frozen).float()
    known_BH = torch.from_numpy(np.stack([e.labels for e in examples]))
    weight_BH = torch.tensor([[e.weight] for e in examples]) * (~known_BH.isnan()).float()
    y_BH = torch.nan_to_num(known_BH) * (1 - 2 * tuning.smoothing) + tuning.smoothing
    each_BH = functional.binary_cross_entropy_with_logits(head(mean_BD), y_BH, reduction="none")
    loss = (each_BH * weight_BH).sum() / weight_BH.sum().clamp(min=1e-6)
    if tuning.contrast:
        for h in range(known_BH.shape[1]):
            at = ~known_BH[:, h].isnan()
            if int(at.sum()) > 2:
                loss = loss + tuning.contrast / known_BH.shape[1] * _supervised_contrast(
                    mean_BD[at], known_BH[at, h], tuning.temperature
                )
    return loss


def _supervised_contrast(x_BD: torch.Tensor, y_B: torch.Tensor, temperature: float) -> torch.Tensor:
    """Khosla et al. 2020, eq. 2: every other text of the same label is a positive, all others stand in the sum."""
    import torch

    z_BD = torch.nn.functional.normalize(x_BD, dim=1)
    logits_BB = z_BD @ z_BD.T / temperature
    self_BB = torch.eye(len(z_BD), dtype=torch.bool)
    log_p_BB = logits_BB - logits_BB.masked_fill(self_BB, -torch.inf).logsumexp(1, keepdim=True)
    same_BB = (y_B[:, None] == y_B[None, :]) & ~self_BB
    count_B = same_BB.sum(1)
    has = count_B > 0
    if not bool(has.any()):
        return x_BD.sum() * 0.0
    return -((log_p_BB * same_BB).sum(1)[has] / count_B[has]).mean()


def lower(
    model: Any, ids: Sequence[tuple[list[int], list[int]]], layers: int, cache: Path, say: Callable[[str], None]
) -> list[torch.Tensor]:
    """The hidden states (T, D) of every text under the first `layers` layers, without dropout, from disk where they lie
    there already. Kept in half precision."""
    import hashlib

    import torch
    from safetensors.torch import load_file, save_file

    key = hashlib.sha256(json.dumps([ids, layers]).encode())
    for name, p in sorted(model.state_dict().items()):
        if _layer(name) is None or (_layer(name) or 0) < layers:
            key.update(p.numpy().tobytes())
    file = cache / f"lower-{key.hexdigest()[:16]}.safetensors"
    sizes = [len(tokens) for tokens, _ in ids]
    if file.exists():
        return list(torch.split(load_file(str(file))["hidden"], sizes))
    was, order = model.training, sorted(range(len(ids)), key=sizes.__getitem__)
    model.eval()
    out: list[torch.Tensor] = [torch.empty(0)] * len(ids)
    with torch.no_grad():
        for k in range(0, len(order), 64):
            at = order[k : k + 64]
            longest = max(sizes[i] for i in at)
            ids_BT, types_BT = (torch.zeros((len(at), longest), dtype=torch.long) for _ in range(2))
            for b, i in enumerate(at):
                ids_BT[b, : sizes[i]], types_BT[b, : sizes[i]] = torch.tensor(ids[i][0]), torch.tensor(ids[i][1])
            hidden_BTD = model.embeddings(input_ids=ids_BT, token_type_ids=types_BT)
            mask = _mask([sizes[i] for i in at], hidden_BTD)
            for layer in model.encoder.layer[:layers]:
                hidden_BTD = layer(hidden_BTD, mask)
            for b, i in enumerate(at):
                out[i] = hidden_BTD[b, : sizes[i]].half()
            if k // 64 % 40 == 39:
                say(f"lower layers: {k + len(at):,} of {len(order):,} texts")
    model.train(was)
    cache.mkdir(parents=True, exist_ok=True)
    save_file({"hidden": torch.cat(out)}, f"{file}.new")
    Path(f"{file}.new").replace(file)
    return out


def pooled(model: Any, below: Sequence[torch.Tensor], layers: int) -> torch.Tensor:
    """Mean of the last hidden states over a text's tokens (B, D), from what the first `layers` layers made of them."""
    import torch

    sizes = [len(h) for h in below]
    hidden_BTD = torch.nn.utils.rnn.pad_sequence([h.float() for h in below], batch_first=True)
    mask = _mask(sizes, hidden_BTD)
    for layer in model.encoder.layer[layers:]:
        hidden_BTD = layer(hidden_BTD, mask)
    sizes_B1 = torch.tensor(sizes)[:, None]
    shown_BT1 = (torch.arange(hidden_BTD.shape[1]) < sizes_B1)[:, :, None].to(hidden_BTD.dtype)
    mean: torch.Tensor = (hidden_BTD * shown_BT1).sum(1) / sizes_B1
    return mean


def _mask(sizes: Sequence[int], like: torch.Tensor) -> torch.Tensor | None:
    """What attention may see (B, 1, 1, T), added to its scores; None where all texts are equally long."""
    import torch

    if min(sizes) == max(sizes):
        return None
    hidden_BT = torch.arange(like.shape[1]) >= torch.tensor(sizes)[:, None]
    return torch.zeros(hidden_BT.shape).masked_fill(hidden_BT, torch.finfo(like.dtype).min)[:, None, None, :]


def tokenised(encoder: Path, texts: Sequence[Pair], longest: int) -> list[tuple[list[int], list[int]]]:
    """Token ids and types of every pair; a pair without an answer is one text."""
    from fairlead.guard.classifier.encoder import open_tokenizer

    tokenizer = open_tokenizer(encoder, longest)
    found = tokenizer.encode_batch([(a, b) if b else a for a, b in texts])
    return [(list(e.ids), list(e.type_ids)) for e in found]


def _batches(examples: Sequence[Example], lengths: Sequence[int], tuning: Tuning) -> list[list[int]]:
    """Batches of all epochs. Rows of a group keep together in eights, so that contrasts meet; lengths are alike."""
    rng = random.Random(tuning.seed)
    out: list[list[int]] = []
    total = round(tuning.epochs * len(examples) / tuning.batch)
    while len(out) < max(1, total):
        by_group: dict[str, list[int]] = {}
        for i in rng.sample(range(len(examples)), len(examples)):
            by_group.setdefault(examples[i].group, []).append(i)
        bits = [held[k : k + 8] for held in by_group.values() for k in range(0, len(held), 8)]
        rng.shuffle(bits)
        order = [i for bit in bits for i in bit]
        span = tuning.batch * 16  # sort by length within sixteen batches: less padding, still mixed
        epoch: list[list[int]] = []
        for k in range(0, len(order), span):
            near = sorted(order[k : k + span], key=lambda i: lengths[i] // 4)
            epoch += [near[b : b + tuning.batch] for b in range(0, len(near), tuning.batch)]
        rng.shuffle(epoch)
        out += [b for b in epoch if len(b) > 1]
    return out[: max(1, total)]


def _schedule(done: float, warm_up: float) -> float:
    """Share of the top learning rate: up in a line, then down to a twentieth in a line."""
    return done / warm_up if done < warm_up else 0.05 + 0.95 * (1 - done) / (1 - warm_up)


def _trainable(model: Any, head: Any, frozen: int) -> dict[str, Any]:
    """Parameters by name. Word embeddings stay as they are: they know words that the rows do not hold."""
    found = {}
    for name, p in model.named_parameters():
        layer = _layer(name)
        train = layer is not None and layer >= frozen
        p.requires_grad_(train)
        if train:
            found[name] = p
    return found | {f"head.{n}": p for n, p in head.named_parameters()}


def _layer(name: str) -> int | None:
    parts = name.split(".")
    at = parts.index("layer") if "layer" in parts else -1
    return int(parts[at + 1]) if at >= 0 and parts[at + 1].isdigit() else None


def _groups(named: dict[str, Any], tuning: Tuning) -> list[dict[str, Any]]:
    layers = {n: _layer(n) for n in named}
    last = max((layer for layer in layers.values() if layer is not None), default=0)
    groups = []
    for name, p in named.items():
        layer = layers[name]
        top = tuning.head_lr if layer is None else tuning.lr * tuning.layer_decay ** (last - layer)
        groups.append({"params": [p], "lr": top, "top": top})
    return groups


def _identity(examples: Sequence[Example]) -> str:
    import hashlib

    digest = hashlib.sha256()
    for e in examples:
        digest.update(json.dumps([*e.text, [None if np.isnan(y) else float(y) for y in e.labels], e.weight]).encode())
    return digest.hexdigest()


class _Run:
    """The state of a run on disk: safetensors and JSON, written whole or not at all."""

    def __init__(self, out: Path, tuning: Tuning, steps: int, rows: str) -> None:
        self.out, self.about = out, {"tuning": tuning.model_dump(), "steps": steps, "rows": rows}
        self.seconds, self.loss = 0.0, 0.0

    def save(self, step: int, seconds: float, loss: float, named: Any, mean: Any, optimizer: Any) -> None:
        from safetensors.torch import save_file

        self.out.mkdir(parents=True, exist_ok=True)
        state = {f"w/{n}": p.detach() for n, p in named.items()} | {f"a/{n}": p for n, p in mean.items()}
        for n, p in named.items():
            held = optimizer.state[p]
            state |= {f"m/{n}": held["exp_avg"], f"v/{n}": held["exp_avg_sq"], f"t/{n}": held["step"]}
        body = {**self.about, "step": step, "seconds": seconds, "loss": loss}
        save_file(state, str(self.out / f"{STATE}.new"), metadata={"step": str(step)})
        (self.out / f"{META}.new").write_text(json.dumps(body))
        (self.out / f"{STATE}.new").replace(self.out / STATE)
        (self.out / f"{META}.new").replace(self.out / META)

    def resume(self, named: Any, mean: Any, optimizer: Any) -> int:
        if not (self.out / META).exists() or not (self.out / STATE).exists():
            return 0
        import torch
        from safetensors import safe_open

        body = json.loads((self.out / META).read_text())
        if any(body.get(key) != value for key, value in self.about.items()):
            raise InputError(f"{self.out} holds a run with other settings or rows: give another folder, or remove it")
        with safe_open(str(self.out / STATE), "pt") as file:
            if file.metadata().get("step") != str(body["step"]):
                return 0  # stopped between the two files: begin again
            with torch.no_grad():
                for n, p in named.items():
                    p.copy_(file.get_tensor(f"w/{n}"))
                    mean[n].copy_(file.get_tensor(f"a/{n}"))
                    optimizer.state[p] = {
                        "step": file.get_tensor(f"t/{n}"),
                        "exp_avg": file.get_tensor(f"m/{n}"),
                        "exp_avg_sq": file.get_tensor(f"v/{n}"),
                    }
        self.seconds, self.loss = float(body["seconds"]), float(body["loss"])
        return int(body["step"])
