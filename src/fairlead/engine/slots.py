"""The loop around the tight decoder: slots for replies, taken by the next in the queue as soon as one ends.

Axes: J jobs (replies to be made), B slots, N slots given out at once, U prompts prefilled together, V vocabulary, t
steps; those of `llama.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fairlead.engine import counter, llama
from fairlead.engine.dense import prepare
from fairlead.engine.forward import Head, bounded
from fairlead.engine.kv import room
from fairlead.engine.sampling import Choice, choose

PREFILL_TOKENS = 4096  # prompts prefilled at once, in padded tokens
PREFILL_CPU = 1024  # there: no slower, and activations stay in the processor's caches
COMPACT = 0.75  # the cache is made smaller when less than this share of its rows or of its length is of use

I64 = npt.NDArray[np.int64]


class Ended(NamedTuple):
    """A reply: which job it was, its tokens, their log-probs, and those of the draws where they were cut."""

    job: int
    tokens: list[int]
    logprobs: list[float]
    cuts: list[float]


def replies(
    w: llama.Llama,
    head: Head,
    prompts: Sequence[Sequence[int]],
    prompt_J: I64,
    limit_J: I64,
    stream_J: counter.U64,
    how: Choice,
    eos: set[int],
    rows: int,
    each_step: Callable[[], None] = lambda: None,
) -> Iterator[Ended]:
    """Replies as they end. Jobs start in their order, in which prompts must not get longer. Needs no_grad.

    prompt_J    which prompt each job replies to; jobs of one prompt stand together
    limit_J     tokens it may have
    stream_J    its random numbers
    each_step   called before each forward pass of all rows; what it raises ends the call
    """
    device = w.embedding.device
    wide = torch.promote_types(w.embedding.dtype, torch.float32)
    B, V, J = min(rows, len(prompt_J)), len(head.weight_VD), len(prompt_J)
    product = prepare(head.weight_VD.to(wide), None if head.bias_V is None else head.bias_V.to(wide), rows=B)
    at = _slots(B, int(limit_J.max()), how.cuts(V))
    most = max(len(prompts[prompt]) + limit for prompt, limit in zip(prompt_J.tolist(), limit_J.tolist(), strict=True))
    kv = w.cache(B, room(len(prompts[prompt_J[0]]) + 1), room(most))
    ends_V = np.isin(np.arange(V), list(eos))

    def draw(slots: I64, hidden: torch.Tensor) -> I64:
        """Draw the next token of these slots; returns those that ended with it."""
        step = at.step_B[slots]
        uniform = torch.from_numpy(counter.uniforms(at.stream_B[slots], step)).to(device)
        chosen = choose(bounded(head, product(hidden.to(wide))), how, uniform)
        at.last_B[slots] = at.token_Bt[slots, step] = tokens = chosen.token_B.cpu().numpy()
        at.logp_Bt[slots, step] = chosen.logp_B.cpu().numpy()
        if chosen.cut_B is not None:
            at.cut_Bt[slots, step] = chosen.cut_B.cpu().numpy()
        at.step_B[slots] = step + 1
        over: I64 = slots[ends_V[tokens] | (step + 1 >= at.limit_B[slots])]
        return over

    chunks = _prefilled(w, prompts, prompt_J)
    begun, chunk = 0, None
    while True:
        free = np.flatnonzero(~at.busy_B)
        while len(free) and begun < J:
            if chunk is None or begun == chunk.end:
                chunk = next(chunks)
            jobs = np.arange(begun, min(begun + len(free), chunk.end))
            new, free, begun = free[: len(jobs)], free[len(jobs) :], begun + len(jobs)
            source_N = torch.from_numpy(chunk.row_J[jobs - chunk.begin]).to(device)
            kv.place(torch.from_numpy(new).to(device), chunk.kv, source_N)
            at.busy_B[new], at.job_B[new], at.step_B[new] = True, jobs, 0
            at.position_B[new] = [len(prompts[prompt]) for prompt in prompt_J[jobs]]
            at.limit_B[new], at.stream_B[new] = limit_J[jobs], stream_J[jobs]
            over = draw(new, chunk.last_UD[source_N])
            yield from _ended(at, over)
            free = np.concatenate([over, free])
        live = np.flatnonzero(at.busy_B)
        if not len(live):
            return
        needed = int(at.position_B[live].max()) + 1
        dropped = len(live) < COMPACT * len(at.busy_B)
        if dropped or needed > kv.length or room(needed) < COMPACT * kv.length:
            kv.resize(room(needed), torch.from_numpy(live).to(device) if dropped else None)
            if dropped:
                at, live = _only(at, live), np.arange(len(live))
        last, place = (torch.from_numpy(values.copy()).to(device) for values in (at.last_B, at.position_B))
        each_step()
        hidden_BD = llama.step(w, last, place, kv)
        at.position_B[live] += 1
        yield from _ended(at, draw(live, hidden_BD if len(live) == len(hidden_BD) else hidden_BD[live]))


@dataclass(slots=True)
class _Slots:
    """What each slot is at. Idle ones run along at position 0."""

    busy_B: npt.NDArray[np.bool_]
    job_B: I64
    position_B: I64  # of the next token to be fed
    step_B: I64  # tokens drawn
    last_B: I64
    limit_B: I64
    stream_B: counter.U64
    token_Bt: I64
    logp_Bt: npt.NDArray[np.float64]
    cut_Bt: npt.NDArray[np.float64]


def _slots(B: int, most: int, cuts: bool) -> _Slots:
    job_B, position_B, step_B, last_B, limit_B = (np.zeros(B, dtype=np.int64) for _ in range(5))
    return _Slots(
        np.zeros(B, dtype=np.bool_),
        job_B,
        position_B,
        step_B,
        last_B,
        limit_B,
        stream_B=np.zeros(B, dtype=np.uint64),
        token_Bt=np.zeros((B, most), dtype=np.int64),
        logp_Bt=np.zeros((B, most)),
        cut_Bt=np.zeros((B, most if cuts else 0)),
    )


def _only(at: _Slots, slots: I64) -> _Slots:
    return _Slots(*(getattr(at, field.name)[slots] for field in fields(at)))


def _ended(at: _Slots, slots: I64) -> Iterator[Ended]:
    for slot in slots.tolist():
        length = int(at.step_B[slot])
        tokens, logps, cuts = (row[slot, :length].tolist() for row in (at.token_Bt, at.logp_Bt, at.cut_Bt))
        at.busy_B[slot], at.position_B[slot] = False, 0
        yield Ended(int(at.job_B[slot]), tokens, logps, cuts)


class _Chunk(NamedTuple):
    """Prompts prefilled together, for the jobs from `begin` to before `end`: row_J says which job has which.

    kv          keys and values (L, 2, U, K, P, h)
    last_UD     hidden states at the prompts' ends
    """

    begin: int
    end: int
    row_J: I64
    kv: torch.Tensor
    last_UD: torch.Tensor


def _prefilled(w: llama.Llama, prompts: Sequence[Sequence[int]], prompt_J: I64) -> Iterator[_Chunk]:
    tokens = PREFILL_CPU if w.embedding.device.type == "cpu" else PREFILL_TOKENS
    begin = 0
    while begin < len(prompt_J):
        first = int(prompt_J[begin])  # the longest of those that are left
        row, end = {first: 0}, begin + 1
        while end < len(prompt_J):
            prompt = int(prompt_J[end])
            if prompt not in row and len(prompts[first]) * (len(row) + 1) > tokens:
                break
            row.setdefault(prompt, len(row))
            end += 1
        row_J = np.array([row[prompt] for prompt in prompt_J[begin:end].tolist()], dtype=np.int64)
        yield _Chunk(begin, end, row_J, *llama.prefill(w, [prompts[prompt] for prompt in row]))
        begin = end
