"""Does cost grow linearly in tokens? `python bench/linear.py --out docs/benchmarks/linear`.

Two plots of packed tokens per second, forward and backward, on the 6.5M Llama of `workloads.py` with random tokens:

    1   micro-batches of 512 to 4,096 packed tokens, preference pairs of 256 tokens: a flat line is linear cost
    2   1 to 8 replies per prompt: tokens as the engine packs them (the prompt once), and the same work counted as rows
        (the prompt once per reply), which is what a trainer that does not share prompts would have to process

Writes `OUT.json`, and `OUT.svg` and `OUT.png` where altair and vl-convert are installed (`[report]`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from workloads import LLAMA

from fairlead.engine.layout import Tree
from fairlead.engine.logprobs import reply_logprobs

BUDGETS = (512, 1024, 2048, 4096)
REPLIES = (1, 2, 4, 8)
PROMPT, REPLY = 128, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("linear"))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one repeat of the small sizes: does it run?")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA, bos_token_id=None, eos_token_id=None)).eval()
    repeats, most = (1, 1024) if args.quick else (args.repeats, BUDGETS[-1])
    rows: list[dict[str, Any]] = []
    for budget in BUDGETS:
        if budget <= most:
            trees = made(budget // (PROMPT + 2 * REPLY), 2)
            rows.append(
                {"plot": "tokens per micro-batch", "x": budget, "counted": "packed", **rate(model, trees, repeats)}
            )
    for replies in REPLIES:
        trees = made(max(1, most // (PROMPT + replies * REPLY)), replies)
        got = rate(model, trees, repeats)
        as_rows = sum(len(tree.prompt) * replies + sum(map(len, tree.replies)) for tree in trees)
        share = as_rows / sum(tree.tokens for tree in trees)
        rows.append({"plot": "replies per prompt", "x": replies, "counted": "packed", **got})
        alike = {name: value * share for name, value in got.items()}
        rows.append({"plot": "replies per prompt", "x": replies, "counted": "as rows", **alike})
    for row in rows:
        print(f"{row['plot']:24} {row['x']:5} {row['counted']:8} {row['tokens_per_second']:10,.0f} tokens/s")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    plot(rows, args.out)


def made(trees: int, replies: int) -> list[Tree]:
    """Trees of equal size, so that the number of tokens is all that differs between points."""
    generator = np.random.default_rng(0)

    def some(length: int) -> tuple[int, ...]:
        return tuple(generator.integers(0, LLAMA["vocab_size"], length).tolist())

    return [Tree(some(PROMPT), tuple(some(REPLY) for _ in range(replies))) for _ in range(trees)]


def rate(model: LlamaForCausalLM, trees: list[Tree], repeats: int) -> dict[str, float]:
    """Packed tokens per second: the median, the slowest and the fastest of `repeats`."""
    tokens = sum(tree.tokens for tree in trees)

    def once() -> float:
        began = time.perf_counter()
        reply_logprobs(model, trees).logp_N.sum().backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)
        return tokens / (time.perf_counter() - began)

    once()
    rates = sorted(once() for _ in range(repeats))
    return {"tokens_per_second": statistics.median(rates), "low": rates[0], "high": rates[-1]}


def plot(rows: list[dict[str, Any]], out: Path) -> None:
    try:
        import altair
        import vl_convert
    except ImportError as error:
        print(f"no plot: {error.name} is not installed (pip install 'fairlead[report]')")
        return
    charts = []
    for name in dict.fromkeys(row["plot"] for row in rows):
        base = altair.Chart(altair.Data(values=[row for row in rows if row["plot"] == name])).encode(
            x=altair.X("x:O", title=name, axis=altair.Axis(labelAngle=0)),
            color=altair.Color("counted:N", title="a prompt counts"),
        )
        top = altair.Y("tokens_per_second:Q", title="tokens/s, forward and backward", scale=altair.Scale(zero=True))
        lines = base.mark_line(point=True).encode(y=top)
        spread = base.mark_rule().encode(y="low:Q", y2="high:Q")
        charts.append((lines + spread).properties(width=280, height=220))
    spec = altair.hconcat(*charts).to_json()
    out.with_suffix(".svg").write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
    out.with_suffix(".png").write_bytes(vl_convert.vegalite_to_png(spec, scale=2))


if __name__ == "__main__":
    main()
