"""GRPO against TRL's GRPOTrainer, whole steps: `python bench/vs_trl.py --methods grpo`.

A step draws 8 replies of 64 tokens to each of 8 prompts, scores them, reads the reference, and updates once.

The same model, prompts, group, loss (GRPO's, beta 0.04 to a frozen reference, one update per batch), optimiser and
threads. On the random Llama both sides draw whole replies (TRL is told to draw at least 64 tokens, and ours hardly ever
end earlier); on the apprentice both end where it ends. TRL's variants are what may make it faster; the fastest is the
denominator. The replies differ, so no losses are compared here: tests/methods compares gradients on the same replies.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

PROMPTS, GROUP, LENGTH = 8, 8, 64
WARM = 1  # steps before the clock counts
STEPS = 6
VARIANTS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "static cache": {"cache_implementation": "static"},
    "chunks of 16": {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4, "generation_batch_size": 64},
}


def reward(text: str) -> float:
    """Anything that differs from reply to reply and costs nothing."""
    return text.count("e") / max(len(text), 1)


def compare_grpo(
    args: argparse.Namespace, workload: int, folder: Path, call: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """Find TRL's fastest setting, then A B A B; prints the table and returns everything measured."""
    import sys

    steps = 2 if args.quick else STEPS
    print(
        f"\ngrpo, workload {workload}, {PROMPTS} prompts x {GROUP} replies of {LENGTH} tokens, {args.threads} threads"
    )

    def run(side: str, count: int, **more: Any) -> dict[str, Any]:
        python = sys.executable if side == "ours" else args.trl_python
        told = {**more, "whole": workload == 1} if side == "theirs" else more
        order = {"do": side, "method": "grpo", "folder": str(folder), "steps": count, "more": told}
        return call(args, python, order)

    tried: dict[str, float] = {}
    for name in VARIANTS:
        try:
            tried[name] = statistics.median(run("theirs", 3 if not args.quick else 2, variant=name)["seconds"])
        except SystemExit as error:
            print(f"  TRL, {name}: does not run here ({str(error).splitlines()[-1][:100]})", flush=True)
            continue
        print(f"  TRL, {name}: {tried[name]:.2f} s per step", flush=True)
    best = min(tried, key=lambda name: tried[name])
    rounds = [
        {"ours": run("ours", steps), "TRL": run("theirs", steps, variant=best)}
        for _ in range(1 if args.quick else args.rounds)
    ]
    print(f"  {'':28} {'s/step':>8} {'lowest':>8} {'highest':>8} {'peak MB':>8} {'drawn':>7}")
    middle = {}
    for side in ("ours", "TRL"):
        seconds = [second for r in rounds for second in r[side]["seconds"]]
        middle[side] = statistics.median(seconds)
        memory = statistics.median(r[side]["peak_bytes"] for r in rounds) / 1e6
        drawn = statistics.median(r[side]["tokens"] for r in rounds)
        name = "fairlead" if side == "ours" else f"TRL, {best}"
        print(
            f"  {name:28.28} {middle[side]:8.2f} {min(seconds):8.2f} {max(seconds):8.2f} {memory:8.0f} {drawn:7.0f}",
            flush=True,
        )
    ratio = middle["TRL"] / middle["ours"]
    print(f"  grpo: {ratio:.1f} x", flush=True)
    return {"ratio": ratio, "best": best, "tried": tried, "rounds": rounds, "versions": rounds[0]["TRL"]["versions"]}


def ours(folder: Path, *, steps: int, more: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each step, through the function that `fairlead train grpo` calls."""
    import torch
    from memory import peak, reset_peak
    from transformers import LlamaForCausalLM  # noqa: F401  (loaded before memory is counted, as on the other side)

    from fairlead.exchange import Exchange, Message, Verdict
    from fairlead.judges.lineage import leaf
    from fairlead.judges.rules import Judged
    from fairlead.methods.config_policy import ALGORITHMS
    from fairlead.methods.loop import Run, StepRecord
    from fairlead.methods.policy import train_policy
    from fairlead.methods.rewards import Objective
    from fairlead.models import open_model

    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))[: PROMPTS * (steps + WARM)]
    prompts = [Exchange(tuple(Message(t["role"], t["content"]) for t in row["prompt"]), ()) for row in rows]
    times, drawn = [time.perf_counter()], [0.0]

    def progress(record: StepRecord) -> None:
        times.append(time.perf_counter())
        drawn[0] += record.told["length"] * record.told["replies"]

    before = reset_peak()
    model: Any = open_model(str(folder / "model"), device="cpu", dtype="float32")
    judge = Judged("letters", lambda items: [Verdict(v := reward(e.reply_text), raw=v) for e in items], leaf("rule"))
    config = ALGORITHMS["grpo"].settings(
        {
            "steps": steps + WARM, "prompts_per_step": PROMPTS, "replies": GROUP, "max_tokens": LENGTH, "kl": 0.04,
            "lr": 1e-6, "betas": (0.9, 0.999), "reward_cliff": None, **more,
        }
    )  # fmt: skip
    times[0] = time.perf_counter()
    train_policy(model, prompts, [Objective(judge)], config, Run(progress=progress))
    return {
        "seconds": [b - a for a, b in pairwise(times)][WARM:],
        "tokens": drawn[0] / (steps + WARM),
        "peak_bytes": peak() - before,
        "versions": {"torch": torch.__version__},
    }


def theirs(folder: Path, *, steps: int, more: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each step of TRL's trainer."""
    import datasets
    import transformers
    import trl
    from memory import peak, reset_peak
    from transformers import AutoTokenizer, LlamaForCausalLM, TrainerCallback

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))[: PROMPTS * (steps + WARM)]
    dataset = datasets.Dataset.from_list([{"prompt": row["prompt"]} for row in rows])
    times: list[float] = []
    drawn: list[int] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            if not times:
                times.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    def score(completions: Any, completion_ids: Any, **_: Any) -> list[float]:
        drawn.append(sum(map(len, completion_ids)))
        return [reward(completion[0]["content"]) for completion in completions]

    before = reset_peak()
    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype="float32")
    settings: dict[str, Any] = {
        "output_dir": str(folder / "trl-grpo"), "per_device_train_batch_size": PROMPTS * GROUP,
        "num_generations": GROUP, "max_completion_length": LENGTH, "max_steps": steps + WARM, "beta": 0.04,
        "loss_type": "grpo", "temperature": 1.0, "learning_rate": 1e-6, "lr_scheduler_type": "constant",
        "weight_decay": 0.0, "adam_beta2": 0.999, "max_grad_norm": 1.0, "optim": "adamw_torch_fused",
        "gradient_checkpointing": False, "bf16": False, "fp16": False, "use_cpu": True, "logging_strategy": "no",
        "save_strategy": "no", "report_to": [], "disable_tqdm": True, "dataloader_pin_memory": False, "seed": 0,
        "shuffle_dataset": False, "generation_kwargs": {"min_new_tokens": LENGTH} if more["whole"] else None,
    }  # fmt: skip
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=[score],
        args=trl.GRPOConfig(**{**settings, **VARIANTS[more["variant"]]}),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.train()
    return {
        "seconds": [b - a for a, b in pairwise(times)][WARM:],
        "tokens": sum(drawn) / max(len(times) - 1, 1),
        "peak_bytes": peak() - before,
        "versions": {"trl": trl.__version__, "transformers": transformers.__version__},
    }
