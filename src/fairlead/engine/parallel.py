"""Data parallelism: the processes that torchrun started, what they tell each other, and how a step is dealt out.

Every process runs the same program on the same rows. A step's trees are shared out by size; each process goes through
its own micro-batches, and what they found is added up: gradients, counts, statistics. Losses divide by the counts of
the whole step, so gradients are *summed* over processes, never averaged: 1x4, 2x2 and 4x1 (processes x micro-batches)
then give equal gradients. Alone, everything here returns its input at once and joins nothing.

Weights split over the processes (FSDP2) are in `sharded.py`. Nothing is pickled: processes exchange tensors and text.
"""

from __future__ import annotations

import atexit
import gc
import hashlib
import heapq
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from fairlead.engine import logprobs
from fairlead.engine.forward import context_of, evaluating, vocabulary_of
from fairlead.engine.layout import Tree, check, pack

log = logging.getLogger(__name__)

BUCKET = 32_000_000  # bytes of gradients added up in one call: large enough for a network, small beside a model
WAIT = timedelta(minutes=30)  # how long a process waits for the others: one of them may be writing a large model
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class World:
    """This process among those that train together, and the device it computes on."""

    rank: int
    size: int
    device: torch.device


_world: World | None = None


def world() -> World:
    """This process's place. The first call joins the others where torchrun (or the caller) started several.

    Call it before weights are put on a GPU: it makes "cuda" mean this process's own. Raises ValueError where
    torchrun's environment is incomplete or names a GPU that is not there.
    """
    global _world
    if _world is None:
        _world = _join()
    return _world


def first() -> bool:
    """Whether this process is the one that writes, logs and shows progress."""
    return world().rank == 0


def _join() -> World:
    cuda = torch.cuda.is_available()
    joined = dist.is_available() and dist.is_initialized()
    if not joined and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World(0, 1, torch.device("cuda" if cuda else "cpu"))
    missing = [] if joined else [name for name in TORCHRUN if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set; start several processes "
            "with `torchrun --nproc-per-node N script.py`, or unset WORLD_SIZE for one"
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if cuda and local >= torch.cuda.device_count():
        raise ValueError(
            f"process {local} of this machine has no GPU of its own: there are {torch.cuda.device_count()}. Start at "
            "most that many processes here (torchrun --nproc-per-node), or hide the GPUs to train on the CPU"
        )
    if cuda:
        torch.cuda.set_device(local)
    if not joined:
        # Small counts and text go over gloo even where gradients go over nccl: they need no turn on the GPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=WAIT)
        atexit.register(_leave)
    here = World(
        dist.get_rank(),
        dist.get_world_size(),
        torch.device("cuda", local) if cuda else torch.device("cpu"),
    )
    if here.rank:
        logging.getLogger(__name__.partition(".")[0]).setLevel(logging.ERROR)  # process 0 says it for all
    return here


def _leave() -> None:
    """Leave the group and end its threads, while Python still runs.

    A gloo thread takes Python's lock to let go of a tensor. Where it comes to that only when the interpreter is ending,
    CPython ends the thread in the middle of a C++ destructor, and the process aborts after all its work is done
    (PyTorch's issue 190489). The threads end with the last reference to their group: what training left behind in
    cycles is collected first, and `sharded.shard` lets no mesh keep the group.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


# ------------------------------------------------------------------------------------ what they tell each other


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum over the processes, elementwise, the same bits on each: token counts, statistics of a step's batch.

    Every process must call it at the same point with the same shape. Returns a new tensor (alone, the input).
    """
    if world().size == 1:
        return values
    summed = values.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed)
    return summed


def wait() -> None:
    """Return when every process has come here."""
    total(torch.zeros(1))


def from_first(value: torch.Tensor | None) -> torch.Tensor | None:
    """Process 0's tensor (or None) on every process, on the CPU; what the others pass is not looked at."""
    here = world()
    if here.size == 1:
        return value
    about = torch.full((16,), -1, dtype=torch.long)
    if here.rank == 0 and value is not None:
        about[:2] = torch.tensor([_DTYPES.index(value.dtype), value.ndim])
        about[2 : 2 + value.ndim] = torch.tensor(value.shape)
    dist.broadcast(about, 0)
    kind, ndim = about[:2].tolist()
    if kind < 0:
        return None
    given = value.detach().cpu().contiguous() if here.rank == 0 and value is not None else None
    got = torch.empty(about[2 : 2 + ndim].tolist(), dtype=_DTYPES[kind]) if given is None else given
    _broadcast(got)
    return got


_DTYPES = (
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool,
)  # fmt: skip


def texts(text: str) -> list[str]:
    """What each process says, by rank, on every process."""
    here = world()
    if here.size == 1:
        return [text]
    raw = torch.tensor(list(text.encode()), dtype=torch.uint8)
    lengths = torch.zeros(here.size, dtype=torch.long)
    lengths[here.rank] = len(raw)
    lengths = total(lengths)
    table = torch.zeros(here.size, max(1, int(lengths.max())), dtype=torch.uint8)
    table[here.rank, : len(raw)] = raw
    rows = total(table)
    return [bytes(row[:n].tolist()).decode() for row, n in zip(rows, lengths.tolist(), strict=True)]


def same(text: str, what: str) -> None:
    """Raise ValueError, on every process, where `text` is not the same on all of them."""
    marks = texts(hashlib.sha256(text.encode()).hexdigest())
    others = [rank for rank, mark in enumerate(marks) if mark != marks[0]]
    if others:
        raise ValueError(
            f"processes {', '.join(map(str, others))} have another {what} than process 0; every process must be "
            "started with the same program, data and settings"
        )


@contextmanager
def writing(path: Path | str) -> Iterator[bool]:
    """Whether this process is to write `path`: where all name the same one, process 0 does and the others wait.

    Processes that name different paths each write their own. Raises OSError on the others where process 0 failed.
    """
    here = world()
    if here.size == 1 or len(set(texts(str(path)))) > 1:
        yield True
        return
    failed = True
    try:
        yield here.rank == 0
        failed = False
    finally:
        failures = int(total(torch.tensor([int(failed)])))
    if failures:  # not here, or an exception would be under way
        raise OSError(f"{path}: another process could not write it; its own message says why")


def share_weights(module: nn.Module) -> None:
    """Give every process the trainable weights and the buffers of process 0, bit for bit.

    Frozen weights are left alone: they may be shared with other modules, or in a format of their own.
    """
    if world().size > 1:
        for tensor in (*(p for p in module.parameters() if p.requires_grad), *module.buffers()):
            _broadcast(tensor.data)


def _broadcast(tensor: torch.Tensor) -> None:
    """Overwrite with process 0's bytes, whatever the dtype."""
    if tensor.numel():
        flat = tensor.contiguous().view(-1).view(torch.uint8)
        dist.broadcast(flat, 0)
        if not tensor.is_contiguous():
            tensor.copy_(flat.view(tensor.dtype).view(tensor.shape))


# ------------------------------------------------------------------------------------------ how a step is dealt


def share(sizes: Sequence[int], processes: int) -> list[list[int]]:
    """Rows for each process, so that their sizes add up to nearly the same: the next largest to whoever has least.

    A function of the sizes alone, so every process finds the same. (Graham 1969: at most 4/3 of the best maximum.)
    """
    loads = [(0, process) for process in range(processes)]
    shares: list[list[int]] = [[] for _ in range(processes)]
    for row in sorted(range(len(sizes)), key=lambda row: (-sizes[row], row)):
        load, process = heapq.heappop(loads)
        shares[process].append(row)
        heapq.heappush(loads, (load + sizes[row], process))
    return shares


def deal(trees: Sequence[Tree], token_budget: int, rank: int | None = None) -> list[tuple[list[int], float]]:
    """This process's micro-batches of a step: the trees of each, and its weight.

    Trees are never split, and every process gets the same number of micro-batches: the collectives of a pass must
    meet. Where one has fewer to do, the smallest tree of the step fills in with weight 0: it is computed, and nothing
    comes of it. Alone this is `layout.pack`. Raises ValueError for a tree above the budget, as `pack` does.
    """
    here = world()
    if here.size == 1:
        return [(group, 1.0) for group in pack(trees, token_budget)]
    sizes = [tree.tokens for tree in trees]
    if max(sizes) > token_budget:
        pack(trees, token_budget)  # refuses, and names the row
    dealt = [
        [[rows[i] for i in group] for group in pack([trees[row] for row in rows], token_budget)]
        for rows in share(sizes, here.size)
    ]
    mine = dealt[here.rank if rank is None else rank]
    smallest = min(range(len(trees)), key=lambda row: (sizes[row], row))
    filling = max(map(len, dealt)) - len(mine)
    return [(group, 1.0) for group in mine] + [([smallest], 0.0)] * filling


def score(
    model: nn.Module,
    trees: Sequence[Tree],
    token_budget: int = 8192,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> logprobs.ReplyLogprobs:
    """`logprobs.score` with the trees shared out over the processes; every process gets all results, on the CPU.

    Every process must give the same trees. A model whose weights are split (sharded.py) may be scored too.
    """
    if world().size == 1 or not trees:
        return logprobs.score(model, trees, token_budget, temperature=temperature, entropy=entropy)
    check(trees, context=context_of(model), vocabulary=vocabulary_of(model))
    counts = [_scored(tree) for tree in trees]
    ends = torch.tensor([sum(count) for count in counts]).cumsum(0).tolist()
    logp_N = entropy_N = torch.empty(0)
    with torch.no_grad(), evaluating(model):
        for rows, weight in deal(trees, logprobs.scoring_budget(model, trees, token_budget)):
            got = logprobs.reply_logprobs(model, [trees[r] for r in rows], temperature=temperature, entropy=entropy)
            if not logp_N.numel():
                logp_N = torch.zeros(ends[-1], dtype=got.logp_N.dtype)
                entropy_N = torch.zeros_like(logp_N)
            if weight:
                place_N = torch.cat([torch.arange(ends[row] - sum(counts[row]), ends[row]) for row in rows])
                logp_N[place_N] = got.logp_N.cpu()
                if got.entropy_N is not None:
                    entropy_N[place_N] = got.entropy_N.cpu()
    # Each place was filled by one process and is 0 on the others, so the sum is that value to the bit.
    count_R = torch.tensor([n for count in counts for n in count])
    reply_N = torch.repeat_interleave(torch.arange(len(count_R)), count_R)
    return logprobs.ReplyLogprobs(total(logp_N), reply_N, count_R, total(entropy_N) if entropy else None)


def _scored(tree: Tree) -> list[int]:
    masks = tree.masks or (None,) * len(tree.replies)
    return [len(reply) if mask is None else sum(mask) for reply, mask in zip(tree.replies, masks, strict=True)]


# ------------------------------------------------------------------------------------------------- gradients


def add_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Add up the gradients of whole (not split) parameters over the processes, in place, the same bits on each.

    A parameter that some process has no gradient for counts as zero there; one that none has keeps None, so that an
    optimiser passes over it as it would alone. 16-bit gradients are added in float32.
    """
    if world().size == 1 or not parameters:
        return
    some = total(torch.tensor([int(p.grad is not None) for p in parameters])).tolist()
    under_way: deque[tuple[Any, torch.Tensor, list[torch.Tensor]]] = deque()
    for bucket in _buckets([p for p, n in zip(parameters, some, strict=True) if n]):
        wide = torch.promote_types(bucket[0].dtype, torch.float32)
        flat = torch.cat([grad.reshape(-1).to(wide) for grad in bucket])
        under_way.append((dist.all_reduce(flat, async_op=True), flat, bucket))
        if len(under_way) > 1:  # the next is packed while this one travels
            _settle(*under_way.popleft())
    while under_way:
        _settle(*under_way.popleft())


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[torch.Tensor]]:
    """Runs of neighbouring gradients of one dtype and device, of about `BUCKET` bytes."""
    bucket: list[torch.Tensor] = []
    room = 0
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        grad = parameter.grad
        size = grad.numel() * grad.element_size()
        if bucket and (size > room or (grad.dtype, grad.device) != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket = []
        if not bucket:
            room = BUCKET
        bucket.append(grad)
        room -= size
    if bucket:
        yield bucket


def _settle(work: Any, flat: torch.Tensor, bucket: list[torch.Tensor]) -> None:
    work.wait()
    for grad, part in zip(bucket, torch.split(flat, [grad.numel() for grad in bucket]), strict=True):
        grad.copy_(part.view(grad.shape))


def is_split(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies in parts on the processes (a DTensor, see sharded.py)."""
    return hasattr(tensor, "to_local")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a split tensor; any other tensor itself."""
    part: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> float:
    """The norm of the whole gradient, which is scaled down in place where it is longer than `limit`.

    The same number on every process. Split gradients (sharded.py) are measured by their parts.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    split = [local(grad) for grad in grads if is_split(grad)]
    if world().size == 1 or not split:
        return float(nn.utils.clip_grad_norm_(list(parameters), limit))
    whole = [grad for grad in grads if not is_split(grad)]
    ours, everyones = (float(nn.utils.get_total_norm(group)) ** 2 if group else 0.0 for group in (split, whole))
    norm: float = (float(total(torch.tensor([ours], dtype=torch.float64))) + everyones) ** 0.5
    if limit < norm < float("inf"):
        for grad in (*split, *whole):
            grad.mul_(limit / (norm + 1e-6))  # as torch's clip_grad_norm_ does
    return norm
