"""What runs where, reckoned: `python bench/scaling.py` prints the tables of docs/scaling.md; nothing here is measured.

    --write            put the tables into docs/scaling.md, between their marks
    --check            exit 1 where docs/scaling.md holds others
    --plot OUT         OUT.svg: throughput against the split of the GPUs, where altair and vl-convert are installed

Memory is arithmetic over the models' sizes, by `fairlead.stack.memory` where that knows. Throughput is a small
simulation of steps one after the other: rollouts with replies of random length on k of N GPUs, training on the others.
What both assume stands in `Assumed`.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fairlead.stack.memory import Footprint, footprint

GB = 1e9
PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"


@dataclass(frozen=True)
class Shape:
    """The sizes of a model of the Llama kind, as its published config.json has them. `bias`: on q, k and v."""

    source: str
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    words: int
    tied: bool
    bias: bool = False

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(in, out) of one layer's linear maps: q, k, v, o, gate, up, down."""
        q, kv = self.heads * self.head, self.kv_heads * self.head
        d, i = self.width, self.inner
        return [(d, q), (d, kv), (d, kv), (q, d), (d, i), (d, i), (i, d)]

    @property
    def parameters(self) -> int:
        biases = (self.heads + 2 * self.kv_heads) * self.head if self.bias else 0
        layer = sum(a * b for a, b in self.matrices) + biases + 2 * self.width
        return self.layers * layer + self.width + self.words * self.width * (1 if self.tied else 2)

    def adapter(self, rank: int) -> int:
        """Parameters of LoRA on every linear map."""
        return self.layers * sum(rank * (a + b) for a, b in self.matrices)

    def kv_bytes(self, width: int) -> int:
        """Bytes of keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head * width


SHAPES = {
    "0.5B": Shape("Qwen2.5-0.5B", 24, 896, 4864, 14, 2, 64, 151_936, tied=True, bias=True),
    "1.2B": Shape("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128_256, tied=True),
    "8B": Shape("Llama-3.1-8B", 32, 4096, 14_336, 32, 8, 128, 128_256, tied=False),
    "32B": Shape("Qwen2.5-32B", 64, 5120, 27_648, 40, 8, 128, 152_064, tied=False, bias=True),
    "70B": Shape("Llama-3.1-70B", 80, 8192, 28_672, 64, 8, 128, 128_256, tied=False),
}


@dataclass(frozen=True)
class Assumed:
    """All that the tables take for granted. The card's three numbers: NVIDIA's data sheet of the H100 SXM (dense)."""

    card_gb: float = 80.0
    flops: float = 989e12
    bandwidth: float = 3.35e12  # bytes per second
    usable: float = 0.9  # share of a memory that is filled: the rest goes to the driver, NCCL and fragments
    rank: int = 16  # of LoRA
    rows: int = 64  # replies decoded side by side by the local decoder; a laptop decodes a quarter of that
    prompt: int = 256  # tokens
    median: float = 400.0  # tokens of a reply: log-normal
    sigma: float = 0.9  # of the logarithm: the mean is 1.5 times the median, one reply in 200 is 10 times it
    longest: int = 2048  # where a reply is cut
    prompts: int = 8  # of a step, for each GPU of all
    group: int = 8  # replies to each
    slots: int = 256  # replies that a vLLM replica decodes side by side
    train_share: float = 0.35  # of the card's arithmetic, reached in training
    decode_share: float = 0.6  # of the card's bandwidth, reached in decoding
    prefill_share: float = 0.5  # of the card's arithmetic, reached in decoding many rows
    launch_s: float = 0.004  # of a decoding step that is neither
    refresh_gbs: float = 10.0  # GB/s at which new weights reach a replica; all at once
    settle_s: float = 2.0  # to stop a replica, drop its prefix cache, and go on
    steps: int = 20
    seed: int = 0

    @property
    def row(self) -> int:
        """Tokens of a prompt with the longest reply, which no micro-batch cuts: the smallest that can be had."""
        return self.prompt + self.longest


# ------------------------------------------------------------------------------------------------- memory


def reckoned(shape: Shape, width: int, tokens: int, *, trained: int | None = None) -> Footprint:
    """`stack.memory.footprint` of a model that is only its sizes. `width`: bytes per number."""
    weights = SimpleNamespace(
        numel=lambda: shape.parameters, element_size=lambda: width, device=SimpleNamespace(type="cuda")
    )
    config = SimpleNamespace(
        num_hidden_layers=shape.layers, hidden_size=shape.width, intermediate_size=shape.inner, vocab_size=shape.words
    )
    return footprint(SimpleNamespace(parameters=lambda: iter([weights]), config=config), tokens, trained=trained)


@dataclass(frozen=True)
class Need:
    """Bytes that one training GPU needs, by what they hold."""

    parts: dict[str, float]
    at_start: float  # two whole copies, while the weights are split and when they are gathered

    @property
    def total(self) -> float:
        return max(sum(self.parts.values()), self.at_start)


def need(
    shape: Shape, *, width: int, gpus: int, ppo: bool = False, lora: bool = False, decodes: int = 0,
    split_reference: bool = False, given: Assumed = Assumed(),
) -> Need:  # fmt: skip
    """What reinforcement learning needs on each of `gpus` that train (FSDP2 where there are several).

    ppo              a critic of the policy's size that trains as it does, and a reward model of that size at rest
    lora             adapters over the reference's own weights, for policy and critic; the base stays whole on each GPU
    decodes          replies that the same GPU decodes side by side; their keys and values are let go before training
    split_reference  what it would be if models at rest were split too, and built in parts. The house does not do that
    """
    whole = shape.parameters * width
    trained = shape.adapter(given.rank) if lora else None
    made = reckoned(shape, width, given.row, trained=trained)
    own = (made.weights - whole) + made.gradients + made.moments  # what is split: the copy, or the adapters
    rest = gpus if split_reference else 1
    cache = decodes * given.row * shape.kv_bytes(width)
    parts = {
        "policy, gradients, moments": own / gpus,
        "reference": whole / rest,
        "at work": float(max((made.activations or 0) + made.logits, cache)),
    }
    if ppo:
        parts["critic, gradients, moments"] = own / gpus
        parts["reward model"] = whole / rest
    start = 2 * whole if gpus > 1 and not lora and not split_reference else 0.0
    return Need(parts, start)


def memory_table(given: Assumed = Assumed()) -> str:
    """Bytes by part, on one process that splits nothing."""
    rows = []
    for name, shape in SHAPES.items():
        for width, dtype in ((4, "float32"), (2, "bfloat16")):
            whole = shape.parameters * width
            made = reckoned(shape, width, given.row)
            adapters = reckoned(shape, width, given.row, trained=shape.adapter(given.rank))
            own = adapters.weights - whole + adapters.gradients + adapters.moments
            cache = given.rows * given.row * shape.kv_bytes(width)
            critic = whole + made.gradients + made.moments
            at_work = (made.activations, made.logits, cache)
            cells = (whole, made.gradients, made.moments, whole, critic, whole, own, *at_work)
            rows.append([name, dtype, *map(_gb, cells)])
    head = ["model", "numbers", "weights", "gradients", "moments", "reference", "critic", "reward model"]
    return _table([*head, "LoRA", "activations", "logits", "keys, values"], rows)


# name, training processes, GB each, bytes of a number, what is decoded on them as a share of `rows`
MACHINES: tuple[tuple[str, int, float, int, float], ...] = (
    ("laptop, 16 GB, CPU", 1, 16.0, 4, 0.25),
    ("one GPU of 24 GB", 1, 24.0, 2, 1.0),
    ("one GPU of 80 GB", 1, 80.0, 2, 1.0),
    ("8 GPUs of 80 GB: 6 train", 6, 80.0, 2, 0.0),
    ("64 GPUs of 80 GB: 48 train", 48, 80.0, 2, 0.0),
)
WAYS: tuple[tuple[str, dict[str, bool]], ...] = (
    ("GRPO, LoRA", {"lora": True}),
    ("GRPO", {}),
    ("PPO, LoRA", {"lora": True, "ppo": True}),
    ("PPO", {"ppo": True}),
)


def where_table(given: Assumed = Assumed(), *, split_reference: bool = False) -> str:
    """GB per training process, in bold where they fit."""
    rows = []
    for machine, gpus, room, width, decodes in MACHINES:
        for way, options in WAYS:
            cells = []
            for shape in SHAPES.values():
                asked: dict[str, Any] = {"width": width, "gpus": gpus, "decodes": int(decodes * given.rows)}
                total = need(shape, **asked, **options, split_reference=split_reference, given=given).total
                cells.append(f"**{_gb(total)}**" if total <= given.usable * room * GB else _gb(total))
            if not split_reference or gpus > 1:
                rows.append([machine, way, *cells])
    return _table(["machine", "way", *SHAPES], rows)


def replica_gpus(shape: Shape, given: Assumed = Assumed()) -> int:
    """GPUs of one vLLM replica: a power of two that holds the weights in half of its memory."""
    fits = 0.5 * given.card_gb * GB
    return 2 ** max(0, math.ceil(math.log2(shape.parameters * 2 / fits)))


def replica_table(given: Assumed = Assumed()) -> str:
    rows = []
    for name, shape in SHAPES.items():
        gpus = replica_gpus(shape, given)
        weights = shape.parameters * 2
        left = given.usable * gpus * given.card_gb * GB - weights
        each = given.row * shape.kv_bytes(2)
        refresh = weights / (given.refresh_gbs * GB) + given.settle_s
        rows.append(
            [name, str(gpus), _gb(weights), f"{shape.kv_bytes(2) / 1e3:,.0f}", f"{left / each:,.0f}", f"{refresh:.1f}"]
        )
    return _table(["model", "GPUs", "weights, GB", "KB per token", "longest replies at once", "refresh, s"], rows)


# --------------------------------------------------------------------------------------------- throughput


def lengths(rng: random.Random, count: int, given: Assumed) -> list[int]:
    """Tokens of so many replies."""
    return [
        max(1, min(given.longest, round(rng.lognormvariate(math.log(given.median), given.sigma)))) for _ in range(count)
    ]


def decoding_s(shape: Shape, gpus: int, rows: int, context: float, given: Assumed) -> float:
    """Seconds of one token for `rows` replies whose contexts add up to `context` tokens, on a replica of `gpus`."""
    read = (shape.parameters * 2 + context * shape.kv_bytes(2)) / (gpus * given.bandwidth * given.decode_share)
    reckon = 2 * shape.parameters * rows / (gpus * given.flops * given.prefill_share)
    return max(read, reckon) + given.launch_s


def replica_s(shape: Shape, gpus: int, replies: Sequence[int], given: Assumed) -> float:
    """Seconds in which one replica says replies of these lengths: its slots are refilled as replies end.

    From one end of a reply to the next, the number of rows is fixed and their contexts grow by a token a step.
    """
    prefill = (
        2 * shape.parameters * given.prompt * len(replies) / given.group / (gpus * given.flops * given.prefill_share)
    )
    waiting = iter(replies)
    ends: list[tuple[int, int]] = []  # of each running reply: the step at which it ends, and its length
    step, context, clock = 0, 0.0, prefill

    def start() -> None:
        nonlocal context
        length = next(waiting, None)
        if length is not None:
            heapq.heappush(ends, (step + length, length))
            context += given.prompt

    for _ in range(given.slots):
        start()
    while ends:
        rows, ahead = len(ends), ends[0][0] - step
        clock += ahead * decoding_s(shape, gpus, rows, context + rows * ahead / 2, given)
        context += rows * ahead
        step += ahead
        while ends and ends[0][0] == step:
            context -= given.prompt + heapq.heappop(ends)[1]
            start()
    return clock


def training_s(shape: Shape, gpus: int, replies: Sequence[int], given: Assumed) -> float:
    """Seconds of an update: 6 operations per parameter and token to train, 2 for the reference, 2 to recompute the
    log-probs. A group's prompt is packed once."""
    tokens = sum(replies) + len(replies) / given.group * given.prompt
    return 10 * shape.parameters * tokens / (gpus * given.flops * given.train_share)


@dataclass(frozen=True)
class Split:
    """k of N GPUs draw. Replies per second, and the share of the time that each side waits."""

    k: int
    sync: float
    ahead: float  # one step off
    rollouts_wait: float  # in the asynchronous run
    training_waits: float


def simulate(shape: Shape, total: int, k: int, given: Assumed = Assumed()) -> Split:
    """Steps one after the other (synchronous), and with rollouts one step ahead (asynchronous).

    Synchronous: draw, train, refresh, draw. One step off: the rollouts of a step use the weights after the step before
    the last, so they run while the last one trains; a refresh stops the replicas, not the training.
    """
    rng = random.Random(given.seed)
    each = replica_gpus(shape, given)
    replicas = k // each
    refresh = shape.parameters * 2 / (given.refresh_gbs * GB) + given.settle_s
    count = total * given.prompts * given.group
    draws, trains = [], []
    for _ in range(given.steps):
        replies = lengths(rng, count, given)
        draws.append(max(replica_s(shape, each, replies[r::replicas], given) for r in range(replicas)))
        trains.append(training_s(shape, total - k, replies, given))
    sync = sum(draws) + sum(trains) + refresh * given.steps
    drawn = trained = before = 0.0  # when the last rollouts, the last update and the one before it were done
    for draw, train in zip(draws, trains, strict=True):
        drawn = max(drawn, before) + refresh + draw
        before, trained = trained, max(drawn, trained) + train
    return Split(
        k, given.steps * count / sync, given.steps * count / trained,
        1 - (sum(draws) + refresh * given.steps) / trained, 1 - sum(trains) / trained,
    )  # fmt: skip


def splits(shape: Shape, total: int, given: Assumed = Assumed()) -> list[Split]:
    """Every split into whole replicas and whole eighths of the GPUs."""
    each = replica_gpus(shape, given)
    stride = max(each, total // 8)
    return [simulate(shape, total, k, given) for k in range(stride, total, stride) if k % each == 0]


RUNS = (("8B", 8), ("8B", 64), ("70B", 64))


def split_table(given: Assumed = Assumed()) -> str:
    rows = []
    for name, total in RUNS:
        found = splits(SHAPES[name], total, given)
        best, ahead = max(s.sync for s in found), max(s.ahead for s in found)
        rows += [
            [name, str(total), str(s.k), _best(s.sync, best), _best(s.ahead, ahead), f"{s.ahead / s.sync:.2f}",
             f"{s.rollouts_wait:.0%}", f"{s.training_waits:.0%}"]
            for s in found
        ]  # fmt: skip
    return _table(
        ["model", "GPUs", "for rollouts", "synchronous, replies/s", "one step off, replies/s", "ratio", "rollouts wait",
         "training waits"], rows,
    )  # fmt: skip


def tail_table(given: Assumed = Assumed()) -> str:
    """What the long tail costs: seconds until a step's replies are there, over those of replies of the mean length."""
    rows = []
    for name, total in RUNS:
        shape, each, k = SHAPES[name], replica_gpus(SHAPES[name], given), total // 2
        rng = random.Random(given.seed)
        took, ratios, late = [], [], []
        for _ in range(given.steps):
            replies = lengths(rng, total * given.prompts * given.group, given)
            shares = [replies[r :: k // each] for r in range(k // each)]
            took.append(max(replica_s(shape, each, share, given) for share in shares))
            even = round(statistics.mean(replies))
            ratios.append(took[-1] / max(replica_s(shape, each, [even] * len(share), given) for share in shares))
            late.append(sum(r == given.longest for r in replies) / len(replies))
        cells = f"{statistics.mean(took):.1f}", f"{statistics.mean(ratios):.2f}", f"{statistics.mean(late):.1%}"
        rows.append([name, str(total), str(k), *cells])
    head = ["model", "GPUs", "that draw", "seconds per step", "over even replies", "replies cut"]
    return _table(head, rows)


# ------------------------------------------------------------------------------------------------- output

TABLES: dict[str, Callable[[], str]] = {
    "assumed": lambda: _table(["assumed", "value"], [[f"`{k}`", f"{v:g}"] for k, v in vars(Assumed()).items()]),
    "sizes": lambda: _table(
        ["model", "sizes of", "parameters", "LoRA of rank 16"],
        [[n, s.source, f"{s.parameters:,}", f"{s.adapter(Assumed.rank):,}"] for n, s in SHAPES.items()],
    ),
    "memory": memory_table,
    "where": where_table,
    "where-split": lambda: where_table(split_reference=True),
    "replicas": replica_table,
    "splits": split_table,
    "tail": tail_table,
}


def _gb(size: float | None) -> str:
    value = (size or 0) / GB
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _best(value: float, best: float) -> str:
    return f"**{value:.1f}**" if value == best else f"{value:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def filled(page: str) -> str:
    """The page with each table between its marks as it is reckoned now. Raises ValueError for a mark without one."""

    def one(match: re.Match[str]) -> str:
        if match[1] not in TABLES:
            raise ValueError(f"docs/scaling.md asks for a table {match[1]!r}; there are {', '.join(TABLES)}")
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w-]+) -->\n.*?<!-- end -->", one, page, flags=re.DOTALL)


def plot(out: Path) -> None:
    """Replies per second against the share of GPUs that draw, as SVG."""
    try:
        import altair as alt
        import vl_convert  # noqa: F401
    except ImportError:
        print("no plot: altair and vl-convert are not installed (pip install 'fairlead[report]')", file=sys.stderr)
        return
    data = [
        {"run": f"{name} on {total} GPUs", "share": s.k / total, "replies/s": value, "way": way}
        for name, total in RUNS
        for s in splits(SHAPES[name], total)
        for way, value in (("synchronous", s.sync), ("one step off", s.ahead))
    ]
    lines = (
        alt.Chart(alt.Data(values=data), width=200, height=160)
        .mark_line(point=True)
        .encode(
            x=alt.X("share:Q", title="share of the GPUs that draw", axis=alt.Axis(format="%")),
            y=alt.Y("replies/s:Q", title="replies per second (simulated)"),
            color=alt.Color("way:N", title=None),
        )
        .facet(alt.Facet("run:N", title=None), columns=3)
        .resolve_scale(y="independent")
    )
    lines.save(out.with_suffix(".svg"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    if args.plot:
        plot(args.plot)
    if args.write or args.check:
        page = PAGE.read_text(encoding="utf-8")
        fresh = filled(page)
        if args.write:
            PAGE.write_text(fresh, encoding="utf-8")
        elif fresh != page:
            print("docs/scaling.md holds other tables: python bench/scaling.py --write", file=sys.stderr)
            return 1
        return 0
    for name, table in TABLES.items():
        print(f"{name}\n\n{table()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
