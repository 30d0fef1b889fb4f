"""Reasoning from rewards that can be checked, and no labels: the apprentice learns sums that its base cannot do.

    python examples/verifiable_rewards.py --task sums --steps 150
    python examples/verifiable_rewards.py --task totals --steps 150 --seeds 5

Two tasks of the harbour. `sums`: a + b where b is larger than any the base was taught, and the sum is not. `totals`:
what two things cost together, prices known by heart. The reward is a verifier that reads the number a reply settles
on; the policy is trained on some pairs of operands and asked about others, greedily, in a wording of its own for
`totals`. Beside it stand the base's pass@1 and pass@16: what was there to be found by drawing often enough.

Writes OUT/TASK.json: rates with 95% intervals (Wilson; over seeds the spread of their means).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fairlead.apprentice.cases import draw_scenes
from fairlead.apprentice.scenes import Split
from fairlead.exchange import Exchange, user
from fairlead.judges.verifiers import numeric
from fairlead.methods.config_policy import ALGORITHMS
from fairlead.methods.loop import Run, StepRecord
from fairlead.methods.policy import train_policy
from fairlead.methods.rewards import Objective
from fairlead.models import Sampling, open_model
from fairlead.stats import mean_interval, wilson

PHRASES = ("what is {a} + {b} ?", "how much is {a} + {b} ?", "add {a} + {b} .")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("sums", "totals"), default="sums")
    parser.add_argument("--algorithm", default="dapo", choices=sorted(ALGORITHMS))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cases", type=int, default=200, help="unseen cases")
    parser.add_argument("--out", type=Path, default=Path("runs/verifiable"))
    parser.add_argument("--settings", default="{}", help="more settings of the algorithm, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(torch.get_num_threads())
    base: Any = open_model("apprentice")
    train, unseen = tasks(args.task, args.cases)
    print(f"{args.task}: {len(train)} training prompts, {len(unseen)} unseen cases, no pair of operands in both")
    before = {"greedy": greedy(base, unseen), **drawn(base, unseen, 16)}
    print(f"base      {words(before)}", flush=True)
    found = []
    for seed in range(args.seeds):
        began = time.perf_counter()
        made = learnt(base, train, args, seed)
        after = {"greedy": greedy(made, unseen), **drawn(made, unseen, 16)}
        after["seconds"] = time.perf_counter() - began
        found.append(after)
        print(f"seed {seed}    {words(after)}  {after['seconds']:.0f} s", flush=True)
    if len(found) > 1:
        i = mean_interval([one["greedy"][0] for one in found])
        print(f"greedy over {len(found)} seeds: {i.value:.3f} [{i.low:.3f}, {i.high:.3f}]")
    args.out.mkdir(parents=True, exist_ok=True)
    report = {"task": args.task, "settings": vars(args) | {"out": str(args.out)}, "base": before, "seeds": found}
    (args.out / f"{args.task}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def learnt(base: Any, train: Sequence[Exchange], args: argparse.Namespace, seed: int) -> Any:
    """One run, its reward told every tenth step."""

    def progress(record: StepRecord) -> None:
        if record.told and (record.step + 1) % 10 == 0:
            told = record.told
            print(
                f"  step {record.step + 1}: reward {told['reward']:.3f}, KL {told['kl']:.2f}, "
                f"length {told['length']:.1f}, groups alike {told['groups_flat']:.0f} of {told['groups']:.0f}, "
                f"{record.seconds:.2f} s",
                flush=True,
            )

    settings = {
        "steps": args.steps, "lr": args.lr, "prompts_per_step": 32, "replies": 8, "max_tokens": 40, "seed": seed,
        "resample": 0, "entropy": 0.01, "overlong": None,
        **json.loads(args.settings),
    }  # fmt: skip
    config = ALGORITHMS[args.algorithm].settings(settings)
    made = train_policy(base, train, [Objective(numeric())], config, Run(progress=progress))
    if made.stopped:
        print(f"  stopped: {made.stopped}")
    return made.model


# ------------------------------------------------------------------------------------------------- the tasks


def tasks(name: str, cases: int) -> tuple[list[Exchange], list[Exchange]]:
    """Training prompts and unseen cases; the pairs of operands are disjoint."""
    if name == "totals":
        return totals("train", 600), totals("audit", cases)
    pairs = [(a, b) for a in range(2, 60) for b in range(40, 60) if a + b < 100]
    random.Random(0).shuffle(pairs)
    held, learnt = pairs[:cases], pairs[cases:]
    rng = random.Random(1)
    return [addition(a, b, rng) for a, b in learnt], [addition(a, b, rng) for a, b in held]


def addition(a: int, b: int, rng: random.Random) -> Exchange:
    return Exchange((user(rng.choice(PHRASES).format(a=a, b=b)),), (), {"reference": str(a + b)})


def totals(split: Split, n: int) -> list[Exchange]:
    scenes = draw_scenes({"total": 1.0}, split, n, 0, "verifiable")
    return [Exchange(scene.messages, (), {"reference": scene.meta["truth"]}) for scene in scenes]


# ------------------------------------------------------------------------------------------------- measuring


def right(cases: Sequence[Exchange], groups: Sequence[Any]) -> list[list[bool]]:
    """Whether each reply settles on the right number; one inner list per case."""
    judge = numeric()
    return [
        [verdict.score == 1.0 for verdict in judge.judge([Exchange(c.messages, r.messages, c.meta) for r in group])]
        for c, group in zip(cases, groups, strict=True)
    ]


def greedy(model: Any, cases: Sequence[Exchange]) -> tuple[float, float, float]:
    """Share answered right by greedy decoding, with its interval."""
    groups = model.generate([c.messages for c in cases], Sampling(max_tokens=40, temperature=0))
    hits = sum(row[0] for row in right(cases, groups))
    interval = wilson(hits, len(cases))
    return hits / len(cases), interval.low, interval.high


def drawn(model: Any, cases: Sequence[Exchange], n: int) -> dict[str, float]:
    """pass@1 and pass@n, of n draws per case at temperature 1."""
    groups = model.generate([c.messages for c in cases], Sampling(n=n, max_tokens=40, temperature=1.0, seed=7))
    rows = right(cases, groups)
    return {"pass@1": sum(map(sum, rows)) / (n * len(rows)), f"pass@{n}": sum(map(any, rows)) / len(rows)}


def words(found: dict[str, Any]) -> str:
    value, low, high = found["greedy"]
    return f"greedy {value:.3f} [{low:.3f}, {high:.3f}]  pass@1 {found['pass@1']:.3f}  pass@16 {found['pass@16']:.3f}"


if __name__ == "__main__":
    raise SystemExit(main())
