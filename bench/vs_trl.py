"""Fairlead against TRL, side by side: `python bench/vs_trl.py --methods dpo,reward,sft`.

Same model, same rows, same loss, same number of optimiser steps of 8 rows, float32, the same threads. Every run is a
process of its own; after a check that both sides read the same tokens and compute the same losses, the fastest of
TRL's settings is found (`vs_trl_theirs.py` holds them all), and then both sides alternate: A B A B. A run's seconds are
those of all its steps and, for DPO, of the reference log-probs of its rows. Peak memory is what the process's resident
memory grew by, the model included. Rates are medians over the rounds, with the lowest and the highest.

`grpo` compares whole steps of reinforcement learning, drawing included (`vs_trl_grpo.py`).

The last lines give, per method on workload 1, the ratio of rates, ours over TRL's: `dpo: 8.3 x`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "shared" / "data"
NAMES = {1: "6.5M Llama on HH-RLHF", 2: "apprentice"}
PAIRS = {1: 160, 2: 640}
CHECKED_STEPS = 4
# Steps of AdamW at this rate make a difference of the last bit grow; a wrong gradient shows in the second loss.
LOSSES_AGREE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="dpo,reward,sft")
    parser.add_argument("--workloads", default="2,1")
    parser.add_argument("--pairs", type=int, help=f"rows of one epoch, 8 per step; by default {PAIRS}, by workload")
    parser.add_argument("--rounds", type=int, default=3, help="times A B")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds hh-rlhf")
    parser.add_argument("--trl-python", default=sys.executable, help="interpreter that has TRL")
    parser.add_argument("--out", type=Path, help="write everything measured as JSON")
    parser.add_argument("--quick", action="store_true", help="2 steps of each, one round: does it run?")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        _one(json.loads(args.one))
        return
    every: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for workload in map(int, args.workloads.split(",")):
            folder = Path(temporary) / str(workload)
            pairs = args.pairs or PAIRS[workload]
            order = {"do": "prepare", "workload": workload, "folder": str(folder), "pairs": pairs}
            _call(args, sys.executable, {**order, "data": str(args.data)})
            for method in args.methods.split(","):
                if method == "grpo":
                    from vs_trl_grpo import compare_grpo

                    every[f"{method} {workload}"] = compare_grpo(args, workload, folder, _call)
                else:
                    every[f"{method} {workload}"] = compare(args, method, workload, folder)
    if args.out is not None:
        args.out.write_text(json.dumps(every, indent=1) + "\n", encoding="utf-8")
    print()
    for name, result in every.items():
        method, workload = name.split()
        where = "" if workload == "1" else f" ({NAMES[int(workload)]})"
        print(f"{method}{where}: {result['ratio']:.1f} x")


def compare(args: argparse.Namespace, method: str, workload: int, folder: Path) -> dict[str, Any]:
    from vs_trl_theirs import VARIANTS

    steps = 2 if args.quick else None
    print(f"\n{method}, {NAMES[workload]}, {args.pairs or PAIRS[workload]} rows, {args.threads} threads", flush=True)

    def ours(*, steps: int | None, check: bool = False) -> dict[str, Any]:
        more = {"do": "ours", "method": method, "folder": str(folder), "steps": steps, "check": check}
        return _call(args, sys.executable, more)

    def theirs(variant: str, *, steps: int | None, check: bool = False) -> dict[str, Any]:
        more = {"do": "theirs", "method": method, "folder": str(folder), "steps": steps, "check": check}
        return _call(args, args.trl_python, {**more, "variant": variant, "order": first["order"]})

    first = ours(steps=CHECKED_STEPS, check=True)
    variants = VARIANTS[method]
    _same(first, theirs(next(iter(variants)), steps=CHECKED_STEPS, check=True))
    tried = {}
    for variant in variants:
        tried[variant] = _rate(theirs(variant, steps=steps), first["tokens"])
        print(f"  TRL, {variant}: {tried[variant]['rows_per_second']:.2f} rows/s", flush=True)
    best = max(tried, key=lambda variant: tried[variant]["rows_per_second"])
    rounds: list[dict[str, dict[str, Any]]] = []
    for _ in range(1 if args.quick else args.rounds):
        a, b = ours(steps=steps), theirs(best, steps=steps)
        rounds.append({"ours": _rate(a, first["tokens"]), "TRL": _rate(b, first["tokens"])})
    rows = {side: [r[side]["rows_per_second"] for r in rounds] for side in ("ours", "TRL")}
    print(f"  {'':34} {'rows/s':>8} {'lowest':>8} {'highest':>8} {'tokens/s':>9} {'peak MB':>8}")
    for side, name in (("ours", "fairlead"), ("TRL", f"TRL, {best}")):
        tokens = statistics.median(r[side]["tokens_per_second"] for r in rounds)
        memory = statistics.median(r[side]["peak_bytes"] for r in rounds) / 1e6
        middle = statistics.median(rows[side])
        print(
            f"  {name:34.34} {middle:8.2f} {min(rows[side]):8.2f} {max(rows[side]):8.2f} {tokens:9,.0f} {memory:8.0f}"
        )
    ratio = statistics.median(rows["ours"]) / statistics.median(rows["TRL"])
    print(f"  {method}: {ratio:.1f} x", flush=True)
    return {"ratio": ratio, "best": best, "tried": tried, "rounds": rounds, "versions": first["versions"]}


def _rate(run: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Rows and tokens per second of one run; every row counts its prompt once per reply, on both sides.

    A step may hold another number of rows (TRL's packing), so a run cut short counts the share of its steps.
    """
    share = run["share"]
    seconds = sum(run["seconds"]) + run["reference_seconds"] * share
    return {
        "rows_per_second": run["rows"] * share / seconds,
        "tokens_per_second": tokens * share / seconds,
        "peak_bytes": run["peak_bytes"],
        "seconds": run["seconds"],
        "reference_seconds": run["reference_seconds"],
    }


def _same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Both sides fed the same tokens in the same order and computed the same losses, or the bench ends here."""
    ids = [ours["ids"][row] for row in ours["order"][: len(theirs["ids"])]]
    for number, (mine, other) in enumerate(zip(ids, theirs["ids"], strict=True)):
        if mine != other:
            raise SystemExit(f"row {number}: TRL reads other tokens\n  ours   {mine}\n  theirs {other}")
    for a, b in zip(ours["losses"], theirs["losses"], strict=True):
        if abs(a - b) > LOSSES_AGREE * abs(b):
            raise SystemExit(f"the losses differ\n  ours   {ours['losses']}\n  theirs {theirs['losses']}")
    shown = ", ".join(f"{a:.5f}/{b:.5f}" for a, b in zip(ours["losses"], theirs["losses"], strict=True))
    print(f"  same tokens; losses ours/TRL: {shown}", flush=True)


def _call(args: argparse.Namespace, python: str, order: dict[str, Any]) -> dict[str, Any]:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        order |= {"out": str(out), "threads": args.threads}
        request = Path(folder) / "order.json"
        request.write_text(json.dumps(order), encoding="utf-8")
        offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
        threads = {"OMP_NUM_THREADS": str(args.threads)}
        command = [python, str(HERE / "vs_trl.py"), "--one", json.dumps(str(request))]
        done = subprocess.run(command, env={**os.environ, **offline, **threads}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{order['do']} failed:\n{done.stdout}\n{done.stderr}")
        result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
        return result


def _one(request: str) -> None:
    order = json.loads(Path(request).read_text(encoding="utf-8"))
    folder = Path(order["folder"])
    if order["do"] == "prepare":
        _prepare(order["workload"], folder, Path(order["data"]), order["pairs"])
        return
    import torch

    torch.set_num_threads(order["threads"])
    if order["method"] == "grpo":
        import vs_trl_grpo

        result = getattr(vs_trl_grpo, order["do"])(folder, steps=order["steps"], more=order.get("more", {}))
    elif order["do"] == "ours":
        import vs_trl_ours

        result = vs_trl_ours.run(order["method"], folder, steps=order["steps"], check=order["check"])
    else:
        import vs_trl_theirs

        result = vs_trl_theirs.run(
            order["method"],
            folder,
            order["order"],
            variant=order["variant"],
            steps=order["steps"],
            check=order["check"],
        )
    Path(order["out"]).write_text(json.dumps(result), encoding="utf-8")


def _prepare(workload: int, folder: Path, data: Path, pairs: int) -> None:
    """The workload, and beside its model the same weights with a scalar head, for TRL's reward trainer and ours."""
    import torch
    import workloads
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    workloads.prepare(workload, folder, data, pairs)
    torch.manual_seed(1)
    model = LlamaForSequenceClassification.from_pretrained(folder / "model", num_labels=1)
    model.config.pad_token_id = AutoTokenizer.from_pretrained(folder / "model").pad_token_id
    model.save_pretrained(folder / "reward")
    torch.save(model.score.weight.detach().clone(), folder / "reward" / "score.pt")


if __name__ == "__main__":
    main()
