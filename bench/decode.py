"""Tokens per second of the decoder beside `transformers` generate and vLLM: `python bench/decode.py --out decode.json`.

The 6.5M Llama of `workloads.py` (random weights) and the apprentice, float32, 1 to 256 rows of 64 new tokens, drawn
from the whole distribution at temperature 1; no end token, so every row reaches its length. Prompts are of one length,
so that nobody pads, and new in every round, so that nobody remembers them. Each size is measured twice: every row with
a prompt of its own, and 8 replies to each prompt. Ours reports log-probs, the others are spared them.

`transformers` takes the faster of its dynamic and static cache, found by trying. vLLM (`--vllm-python`, an interpreter
that has its CPU build) runs in a process of its own, without its server. The sides alternate: A B A B, medians with the
lowest and the highest. On a machine that does other work, read the ratio of tokens per second of processor time, with
`--threads 1` (waiting threads burn it).

Before, log-probs are compared with the training path's, in float32 and bfloat16. The last lines give ratios of rates:
`decode llama 64 rows: 2.9 x transformers`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEW, SHARED = 64, 8
PROMPT = {"llama": 64, "apprentice": 24}
Run = Callable[[list[list[int]], int], tuple[float, float]]  # prompts, replies of each -> seconds, processor seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="llama,apprentice")
    parser.add_argument("--rows", default="1,16,64,256")
    parser.add_argument("--prompts", default="own,shared", help="own: one per row; shared: 8 replies to each")
    parser.add_argument("--rounds", type=int, default=5, help="times A B")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--vllm-python", help="interpreter that has vLLM's CPU build")
    parser.add_argument("--out", type=Path, help="write everything measured as JSON")
    parser.add_argument("--quick", action="store_true", help="one round: does it run?")
    parser.add_argument("--vllm", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.vllm:
        serve_vllm(args.vllm)
        return
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "threads": args.threads,
        "exact": {},
        "rows": [],
    }
    for name in args.models.split(","):
        model = made(name)
        result["exact"][name] = exact(name)
        with tempfile.TemporaryDirectory() as folder:
            server = None
            if args.vllm_python:
                model.save_pretrained(folder)
                server = start_vllm(args.vllm_python, folder, args.threads)
            for sharing in args.prompts.split(","):
                for rows in map(int, args.rows.split(",")):
                    if sharing == "own" or rows > 1:
                        result["rows"].append(compare(args, name, model, rows, sharing, server))
            if server is not None:
                server.communicate("")  # the end of its input ends it
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print()
    for row in result["rows"]:
        where = "" if row["prompts"] == "own" else f", {SHARED} per prompt"
        for other, ratio in row["ratio"].items():
            print(f"decode {row['model']} {row['rows']} rows{where}: {ratio:.1f} x {other}")


def made(name: str, dtype: Any = None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
    from workloads import LLAMA

    from fairlead import apprentice

    if name == "apprentice":
        model: Any = AutoModelForCausalLM.from_pretrained(apprentice.path())
    else:
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**LLAMA, bos_token_id=None, eos_token_id=None))
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    return model.eval().to(dtype or torch.float32)


def some(name: str, count: int, vocabulary: int, seed: int) -> list[list[int]]:
    import numpy as np

    prompts: list[list[int]] = np.random.default_rng(seed).integers(5, vocabulary, (count, PROMPT[name])).tolist()
    return prompts


def exact(name: str) -> dict[str, dict[str, float]]:
    """How far the decoder's log-probs are from the training path's, per dtype."""
    import torch

    from fairlead.engine.decode import generate
    from fairlead.engine.layout import Tree
    from fairlead.engine.logprobs import score

    apart = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = made(name, dtype)
        prompts = [tuple(ids[: 3 + i]) for i, ids in enumerate(some(name, 8, model.config.vocab_size, 0))]
        replies = generate(model, prompts, n=4, max_tokens=24, temperature=0.7, rows=12)
        trees = [Tree(p, tuple(reply.tokens for reply in row)) for p, row in zip(prompts, replies, strict=True)]
        drawn = torch.tensor([logp for row in replies for reply in row for logp in reply.logprobs])
        far = (score(model, trees, temperature=0.7).logp_N - drawn).abs()
        key = str(dtype).removeprefix("torch.")
        apart[key] = {"mean": float(far.mean()), "largest": float(far.max())}
        print(f"{name}, {key}: log-probs {far.mean():.1e} from the training path in the mean, {far.max():.1e} at most")
    return apart


def compare(
    args: argparse.Namespace, name: str, model: Any, rows: int, sharing: str, server: subprocess.Popen[str] | None
) -> dict[str, Any]:
    n = min(SHARED, rows) if sharing == "shared" else 1

    def prompts(number: int) -> list[list[int]]:
        return some(name, rows // n, model.config.vocab_size, number)

    theirs = {cache: transformers_run(model, cache) for cache in ("dynamic", "static")}
    tried = {cache: min(run(prompts(0), n)[0] for _ in range(2)) for cache, run in theirs.items()}
    best = min(tried, key=lambda cache: tried[cache])
    sides: dict[str, Run] = {"fairlead": our_run(model, rows), "transformers": theirs[best]}
    if server is not None:
        sides["vLLM"] = lambda prompts, n: ask_vllm(server, prompts, n)
    rounds: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for number in range(1 + (1 if args.quick else args.rounds)):
        for side, run in sides.items():
            seconds = run(prompts(number), n)
            if number:  # the first is for warmth
                rounds[side].append(seconds)
    rates = {side: [rows * NEW / wall for wall, _ in all] for side, all in rounds.items()}
    by_cpu = {side: statistics.median(rows * NEW / cpu for _, cpu in all) for side, all in rounds.items()}
    print(f"\n{name}, {rows} rows, {rows // n} prompts ({best} cache), {args.threads} threads")
    for side, values in rates.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"  {side:14} {middle:9,.0f} tokens/s ({low:,.0f} to {high:,.0f}), {by_cpu[side]:9,.0f} per CPU second")
    sys.stdout.flush()
    ours, ours_cpu = statistics.median(rates["fairlead"]), by_cpu["fairlead"]
    return {
        "model": name,
        "rows": rows,
        "prompts": sharing,
        "cache": best,
        "tokens_per_second": rates,
        "tokens_per_cpu_second": by_cpu,
        "ratio": {side: ours / statistics.median(rates[side]) for side in rates if side != "fairlead"},
        "ratio_by_cpu": {side: ours_cpu / by_cpu[side] for side in rates if side != "fairlead"},
    }


def timed(work: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def our_run(model: Any, rows: int) -> Run:
    from fairlead.engine.decode import generate

    def run(prompts: list[list[int]], n: int) -> tuple[float, float]:
        return timed(lambda: generate(model, prompts, n=n, max_tokens=NEW, rows=rows))

    return run


def transformers_run(model: Any, cache: str) -> Run:
    import torch

    def run(prompts: list[list[int]], n: int) -> tuple[float, float]:
        ids = torch.tensor(prompts)
        made: list[Any] = []

        def work() -> None:
            made.append(
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    num_return_sequences=n,
                    max_new_tokens=NEW,
                    pad_token_id=0,
                    cache_implementation=None if cache == "dynamic" else cache,
                )
            )

        seconds = timed(work)
        assert made[0].shape == (len(prompts) * n, len(prompts[0]) + NEW)
        return seconds

    return run


def start_vllm(python: str, folder: str, threads: int) -> subprocess.Popen[str]:
    env = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
    }
    command = [python, __file__, "--vllm", folder]
    return subprocess.Popen(
        command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def ask_vllm(server: subprocess.Popen[str], prompts: list[list[int]], n: int) -> tuple[float, float]:
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps({"prompts": prompts, "n": n}) + "\n")
    server.stdin.flush()
    for line in server.stdout:  # it logs there as well
        if line.startswith("seconds "):
            wall, cpu = json.loads(line.removeprefix("seconds "))
            return wall, cpu
    raise SystemExit(f"vLLM ended with exit code {server.wait()}; try its interpreter by hand")


def serve_vllm(folder: str) -> None:
    """The child: one request per line of standard input."""
    from vllm import LLM, SamplingParams

    model = LLM(folder, skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=256,
                max_num_seqs=256, disable_log_stats=True)  # fmt: skip
    for line in sys.stdin:
        asked = json.loads(line)
        how = SamplingParams(n=asked["n"], temperature=1.0, max_tokens=NEW, ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
        made: list[Any] = []
        seconds = timed(lambda: made.extend(model.generate(prompts, how, use_tqdm=False)))  # noqa: B023
        assert all(len(reply.token_ids) == NEW for group in made for reply in group.outputs)
        print("seconds", json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
