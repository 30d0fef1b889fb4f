"""What one GPU does: `PYTHONPATH=src python bench/gpu.py`, in under 10 minutes.

It needs torch (2.11 or newer), transformers and numpy, nothing else, so it runs from a clone on a bare GPU image.

Llama-shaped random weights in bfloat16, 0.5B and 1.2B parameters, vocabularies of 32k and 128k:

    exact    gradients on this GPU: attention by `torch.nn.attention.varlen` and the tight pass, against the model's own
             rows, both against float32; a wrong kernel shows here before it shows as speed
    train    one optimiser step of SFT, DPO and a reward model: packed and prefix-shared, against the same engine on
             padded rows (the model's own forward with SDPA), and against TRL's trainers (`--trl`)
    decode   tokens/s of 1 to 256 replies side by side, against what reading the weights and the cache allows, and
             against transformers' continuous batching
    grpo     a whole step, 8 replies of 128 tokens to each of 8 prompts, against TRL's GRPOTrainer without vLLM

Model FLOPs are counted once per packed token: 6 per weight of the layers, 12 per attended query-key pair and channel,
and 6 per weight of the LM head on reply positions only; the padded path is held to the same useful FLOPs. The DPO
reference pass is timed apart. TRL runs in a process of its own, by the interpreter given: `--trl PYTHON` of an
environment that has it, or `--trl` alone for this one. What comes after `--minutes` is listed as skipped; `--parts`
takes some parts alone. Prints a table and writes it, with all numbers, beside `--out`. `--smoke` runs the whole of it
on tiny models, on a CPU too: it shows that the bench works, not how fast anything is.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gpu_rl
import numpy as np
import torch
import transformers
from gpu_clock import clear, clock, peak, reset_peak
from torch.nn.functional import logsigmoid
from transformers import LlamaConfig, LlamaForCausalLM

from fairlead.engine.decode import generate
from fairlead.engine.forward import hidden_states, path_of
from fairlead.engine.layout import Tree, pack
from fairlead.engine.logprobs import batch_of, reply_logprobs

# Dense bfloat16 peak in TFLOP/s and memory bandwidth in GB/s, from the makers' data sheets; the first match counts.
DEVICES = {
    "H200": (989, 4800),
    "H100 PCIe": (756, 2000),
    "H100 NVL": (835, 3900),
    "H100": (989, 3350),
    "GH200": (989, 4000),
    "B200": (2250, 8000),
    "A100": (312, 1935),
    "L40S": (362, 864),
    "A10": (125, 600),
    "L4": (121, 300),
    "RTX 4090": (165, 1008),
}
SIZES: dict[str, dict[str, int]] = {
    "0.5B": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "1.2B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """How much of everything. A step is `rows` rows, in micro-batches of at most `budget` packed tokens."""

    models: tuple[tuple[str, int], ...]
    rows: int
    budget: int
    prompt: int
    reply: int
    steps: int
    decode_rows: tuple[int, ...]
    decode_tokens: int
    grpo_prompts: int = 8
    grpo_tokens: int = 128


FULL = Work((("0.5B", 32_000), ("0.5B", 128_000), ("1.2B", 32_000), ("1.2B", 128_000)), 64, 16_384, 320, 160, 3,
            (1, 16, 64, 256), 128)  # fmt: skip
SMOKE = Work((("tiny", 512),), 16, 512, 20, 10, 1, (1, 4), 4, 2, 4)
PARTS, METHODS = ("train", "decode", "grpo"), ("dpo", "sft", "reward")
TRL_VOCABULARY = 32_000  # TRL is timed at this one alone (and in a smoke run), so that all fits into ten minutes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny models, also on a CPU")
    parser.add_argument("--trl", nargs="?", const=sys.executable, metavar="PYTHON", help="also TRL's trainers")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of train,decode,grpo")
    parser.add_argument("--peak", type=float, help="dense bfloat16 peak of this GPU in TFLOP/s, where it is not known")
    parser.add_argument("--bandwidth", type=float, help="its memory bandwidth in GB/s")
    parser.add_argument("--minutes", type=float, default=9.0, help="start nothing new after so long")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.smoke:
        raise SystemExit("no CUDA device here: this bench needs a GPU (--smoke runs it on tiny models anywhere)")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
    known = next((values for key, values in DEVICES.items() if key in name), (None, None))
    peak_tflops, bandwidth = args.peak or known[0], args.bandwidth or known[1]
    work = SMOKE if args.smoke else FULL
    about = {"device": name, "peak_tflops": peak_tflops, "bandwidth_gbs": bandwidth, "torch": torch.__version__,
             "transformers": transformers.__version__, "work": asdict(work)}  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    began = time.monotonic()

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        print("  ".join(f"{key} {_shown(value)}" for key, value in row.items()), flush=True)
        args.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")

    print(f"{name}: {peak_tflops or '?'} TFLOP/s, {bandwidth or '?'} GB/s; torch {torch.__version__}", flush=True)
    add(exact(device))
    parts = args.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"--parts {args.parts}: there is no {', '.join(sorted(unknown))}; {', '.join(PARTS)} are")

    def timely(what: str, measure: Callable[..., dict[str, Any]], *given: Any) -> None:
        late = time.monotonic() - began > 60 * args.minutes
        add({"skipped": f"{what}: out of time"} if late else measure(*given))

    for size, vocabulary in work.models:
        torch.manual_seed(0)
        model, name = llama(size, vocabulary, device), f"{size} {vocabulary}"
        about_it = (model, size, vocabulary)
        for method in METHODS if "train" in parts else ():
            for way in ("packed", "padded"):
                timely(f"{method} {way} {name}", train, *about_it, method, way, work, peak_tflops)
        for count in work.decode_rows if "decode" in parts else ():
            prompts = asked(work, vocabulary, count)
            timely(f"decode {count} {name}", decode, *about_it, count, work, bandwidth)
            timely(f"continuous {count} {name}", gpu_rl.continuous, *about_it, prompts, work.decode_tokens)
        if "grpo" in parts:
            prompts = asked(work, vocabulary, work.grpo_prompts)
            timely(f"grpo {name}", gpu_rl.grpo, *about_it, prompts, work.grpo_tokens, work.budget, work.steps)
        del model, about_it
        clear(device)
        theirs = (METHODS if "train" in parts else ()) + (("grpo",) if "grpo" in parts else ())
        for method in theirs if args.trl and (args.smoke or vocabulary == TRL_VOCABULARY) else ():
            timely(f"TRL {method} {name}", by_trl, args.trl, method, size, vocabulary, work)
    args.out.with_suffix(".md").write_text(table(about, rows), encoding="utf-8")


def by_trl(python: str, method: str, size: str, vocabulary: int, work: Work) -> dict[str, Any]:
    """The row that gpu_trl.py gives, from a process of its own."""
    order: dict[str, Any] = {"method": method, "size": size, "config": {**SIZES[size], **_config(vocabulary)}}
    if method == "grpo":
        rows: Any = asked(work, vocabulary, work.grpo_prompts)
        order |= {"group": gpu_rl.GROUP, "beta": gpu_rl.BETA, "tokens": work.grpo_tokens, "steps": work.steps,
                  "split": 1 if size == "tiny" else 4}  # fmt: skip
    else:
        rows = [(tree.prompt, *tree.replies) for tree in pairs(work, vocabulary)]
    script = Path(__file__).with_name("gpu_trl.py")
    done = subprocess.run(
        [python, str(script)], input=json.dumps({**order, "rows": rows}), capture_output=True, text=True, check=False
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1][:160]
        return {"grpo" if method == "grpo" else "train": "TRL" if method == "grpo" else method, "model": size,
                "vocabulary": vocabulary, "way": "TRL", "failed": why}  # fmt: skip
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def asked(work: Work, vocabulary: int, count: int) -> list[tuple[int, ...]]:
    """So many prompts, from the first again where there are fewer."""
    prompts = [tree.prompt for tree in pairs(work, vocabulary)]
    return [prompts[i % len(prompts)] for i in range(count)]


def llama(size: str, vocabulary: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> LlamaForCausalLM:
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**SIZES[size], **_config(vocabulary))).to(dtype)
    return model.eval()


def _config(vocabulary: int) -> dict[str, Any]:
    return {"vocab_size": vocabulary, "max_position_embeddings": 4096, "tie_word_embeddings": True,
            "bos_token_id": None, "eos_token_id": None}  # fmt: skip


def pairs(work: Work, vocabulary: int) -> list[Tree]:
    """Preference pairs whose lengths spread as those of real ones do: log-normal, the prompt longer than a reply."""
    generator = np.random.default_rng(0)

    def some(middle: int) -> tuple[int, ...]:
        length = int(np.clip(middle * generator.lognormal(0.0, 0.6), 4, 4 * middle))
        return tuple(generator.integers(0, vocabulary, length).tolist())

    return [Tree(some(work.prompt), (some(work.reply), some(work.reply))) for _ in range(work.rows)]


# ------------------------------------------------------------------------------------------------- train


def train(
    model: LlamaForCausalLM, size: str, vocabulary: int, method: str, way: str, work: Work, peak_tflops: float | None
) -> dict[str, Any]:
    """Median seconds of one optimiser step, and what follows from it."""
    device = model.device
    trees = pairs(work, vocabulary)
    if method == "sft":
        trees = [Tree(tree.prompt, tree.replies[:1]) for tree in trees]
    packed = None if way == "packed" else False
    score = torch.nn.Linear(model.config.hidden_size, 1, bias=False, device=device, dtype=model.dtype)
    groups = [[trees[row] for row in group] for group in pack(trees, max(work.budget, max(t.tokens for t in trees)))]
    parameters = [*model.parameters(), *score.parameters()]
    try:
        optimiser = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
        reference, reference_seconds = [], 0.0
        if method == "dpo":
            with torch.no_grad():
                reference_seconds, reference = clock(
                    device, lambda: [reply_logprobs(model, group, packed=packed).sum_R() for group in groups]
                )

        def step() -> None:
            for number, group in enumerate(groups):
                if method == "reward":
                    batch = batch_of(model, group, keep_last=True)
                    last_RD = hidden_states(model, batch, rows=batch.last_R, packed=packed)
                    chosen_B, rejected_B = score(last_RD).view(-1, 2).float().unbind(1)
                    loss = -logsigmoid(chosen_B - rejected_B).sum() / len(trees)
                else:
                    got = reply_logprobs(model, group, packed=packed)
                    if method == "sft":
                        loss = -got.logp_N.sum() / sum(len(tree.replies[0]) for tree in trees)
                    else:
                        gain_B2 = (got.sum_R() - reference[number]).view(-1, 2)
                        loss = -logsigmoid(0.1 * (gain_B2[:, 0] - gain_B2[:, 1])).sum() / len(trees)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        step()
        reset_peak(device)
        seconds = sorted(clock(device, step)[0] for _ in range(work.steps))[work.steps // 2]
    except torch.OutOfMemoryError:
        return {"train": method, "model": size, "vocabulary": vocabulary, "way": way, "failed": "out of memory"}
    finally:
        model.zero_grad(set_to_none=True)
        optimiser = None
        clear(device)
    flops = 3 * sum(forward_flops(model.config, tree, method) for tree in trees)
    return {
        "train": method,
        "model": size,
        "vocabulary": vocabulary,
        "way": way,
        "kernel": path_of(model).reason if way == "packed" else "the model's own rows, SDPA",
        "step_seconds": seconds,
        "reference_seconds": reference_seconds,
        "rows_per_second": len(trees) / (seconds + reference_seconds),
        "tokens_per_second": sum(tree.tokens for tree in trees) / seconds,
        "tflops": flops / seconds / 1e12,
        "mfu": flops / seconds / 1e12 / peak_tflops if peak_tflops else None,
        "peak_gb": peak(device),
    }


def forward_flops(config: LlamaConfig, tree: Tree, method: str) -> float:
    """Useful FLOPs of one forward pass over a tree, every packed token counted once."""
    D, F, L = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    h = D // config.num_attention_heads
    layer = D * (D + 2 * config.num_key_value_heads * h) + D * D + 3 * D * F
    replies = [len(reply) for reply in tree.replies]
    P = len(tree.prompt)
    attended = P * (P + 1) / 2 + sum(n * P + n * (n + 1) / 2 for n in replies)
    head = 2 * config.vocab_size * D * sum(replies) if method != "reward" else 0
    return 2.0 * layer * L * tree.tokens + 4.0 * D * L * attended + head


# ------------------------------------------------------------------------------------------------- exact


def exact(device: torch.device) -> dict[str, Any]:
    """How far log-probs and gradients in bfloat16 lie from float32: by the engine's path, and by the model's own rows.

    The engine may be no worse than twice as far as the model itself, or its path is wrong.
    """
    work = Work((), 6, 0, 96, 48, 0, (), 0)
    torch.manual_seed(1)
    narrow = llama("tiny" if device.type == "cpu" else "0.5B", 512, device)
    wide = llama("tiny" if device.type == "cpu" else "0.5B", 512, device, torch.float32)
    wide.load_state_dict({name: value.float() for name, value in narrow.state_dict().items()})
    trees = pairs(work, 512)
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, model, packed in (("truth", wide, False), ("engine", narrow, None), ("rows", narrow, False)):
        model.zero_grad(set_to_none=True)
        logp_N = reply_logprobs(model, trees, packed=packed).logp_N
        (logp_N * torch.linspace(-1, 1, len(logp_N), device=device)).sum().backward()
        gradient = torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])
        found[name] = (logp_N.detach().float(), gradient)
    far = {
        f"{name}_{what}": float((found[name][i] - found["truth"][i]).norm() / found["truth"][i].norm())
        for name in ("engine", "rows")
        for i, what in enumerate(("logp", "gradient"))
    }
    good = all(far[f"engine_{what}"] <= 2 * far[f"rows_{what}"] for what in ("logp", "gradient"))
    if not good:
        raise SystemExit(f"the engine's path is wrong on this device: {far}; {path_of(narrow).reason}")
    return {"exact": path_of(narrow).reason, **far}


# ------------------------------------------------------------------------------------------------- decode


def decode(
    model: LlamaForCausalLM, size: str, vocabulary: int, count: int, work: Work, bandwidth: float | None
) -> dict[str, Any]:
    """Tokens/s of `count` replies side by side. The limit reads every weight, and the cache so far, once per token."""
    device = model.device
    prompts = asked(work, vocabulary, count)

    def run() -> int:
        replies = generate(model, prompts, max_tokens=work.decode_tokens, rows=count)
        return sum(len(reply.tokens) for group in replies for reply in group)

    run()
    prefill, _ = clock(device, lambda: generate(model, prompts, max_tokens=1, rows=count))
    seconds, tokens = clock(device, run)
    config = model.config
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    width = config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * width * 2
    cache = per_token * sum(len(prompt) + work.decode_tokens / 2 for prompt in prompts)
    limit = count * bandwidth * 1e9 / (weights + cache) if bandwidth else None
    rate = (tokens - count) / max(seconds - prefill, 1e-9)
    return {"decode": count, "model": size, "vocabulary": vocabulary, "way": "ours", "tokens_per_second": rate,
            "limit": limit, "share": rate / limit if limit else None, "prefill_seconds": prefill}  # fmt: skip


# ------------------------------------------------------------------------------------------------- the table


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def table(about: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    return "\n".join(_lines(about, rows)) + "\n"


def _lines(about: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"# {about['device']}\n"
    yield f"torch {about['torch']}, transformers {about['transformers']}; peak {about['peak_tflops']} TFLOP/s bfloat16,"
    yield f"{about['bandwidth_gbs']} GB/s. `bench/gpu.py` says what is counted.\n"
    for kind, columns in (
        ("train", ("model", "vocabulary", "way", "rows_per_second", "tokens_per_second", "mfu", "peak_gb")),
        ("decode", ("model", "vocabulary", "way", "tokens_per_second", "limit", "share")),
        (
            "grpo",
            (
                "model",
                "vocabulary",
                "step_seconds",
                "draw_seconds",
                "reference_seconds",
                "update_seconds",
                "replies_per_second",
                "peak_gb",
            ),
        ),
    ):
        yield f"| {kind} | " + " | ".join(columns) + " |"
        yield "|---" * (len(columns) + 1) + "|"
        for row in rows:
            if kind in row:
                cells = [row.get("failed", "?") if c not in row else _shown(row[c]) for c in columns]
                yield f"| {row[kind]} | " + " | ".join(cells) + " |"
        yield ""


if __name__ == "__main__":
    main()
