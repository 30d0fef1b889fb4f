"""How far does Constitutional AI get without a label? Against the same recipe on gold labels, on the apprentice.

    python examples/constitutional_ai.py --seeds 5 --out runs/cai

For each seed two stacks run as `fairlead align` runs them, without their guard: the recipe `constitutional` (critique
and revision, then DPO on AI comparisons; no label but what the model itself makes of the constitution) and the recipe
`gold`, the same stages on the world's own answers and comparisons. Told for each layer, greedily, on prompts of
held-out phrasings and entities that no stage saw: mean gold utility, by the world's truth; and the measures of the run.

The share is (constitutional - base) / (gold - base): 1 is all that gold labels bring. OUT/results.json grows run by
run, and what is in it is not run again; finished stages are kept in OUT/cache.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairlead.apprentice.cases import prompts
from fairlead.apprentice.gold import gold_utility
from fairlead.engine.checkpoint import atomic_write
from fairlead.exchange import Case, Exchange
from fairlead.models import Sampling, open_model
from fairlead.stack.plan import GuardLayer, Plan
from fairlead.stack.read import parse_plan, read_recipe, read_stack, with_options, with_recipe
from fairlead.stack.run import Finished, Options, run_plan
from fairlead.stats import mean_interval

RECIPES = ("constitutional", "gold")
TOKENS = 40


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=",".join(RECIPES), help="names or YAML files; the last is the denominator")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=600, help="audit prompts that gold utility is the mean over")
    parser.add_argument("--cases", type=int, default=200, help="cases of each measure")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/cai"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "results.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    audit = prompts(None, "audit", args.prompts, 0)
    if "base" not in results:
        results["base"] = measured(open_model("apprentice"), audit)
        atomic_write(file, json.dumps(results, indent=1) + "\n")
    print(f"{'base':20} gold {results['base']['gold']:.3f}", flush=True)
    recipes = args.recipes.split(",")
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for recipe in recipes:
            key = f"{Path(recipe).stem} {seed}"
            if key not in results:
                results[key] = one_run(recipe, seed, audit, args)
                atomic_write(file, json.dumps(results, indent=1) + "\n")
            print(f"{key:20} {words(results[key], results['base'])}", flush=True)
    table(results, [Path(recipe).stem for recipe in recipes])
    return 0


def plan_of(recipe: str, seed: int, cases: int) -> Plan:
    """The recipe as it ships, on the apprentice, without the guard: what is asked is what training taught."""
    document = with_options(
        with_recipe(read_stack(None), read_recipe(recipe)), {("seed",): seed, ("measure", "cases"): cases}
    )
    plan = parse_plan(document)
    return plan.model_copy(update={"layers": tuple(x for x in plan.layers if not isinstance(x, GuardLayer))})


def one_run(recipe: str, seed: int, audit: Sequence[Case], args: argparse.Namespace) -> dict[str, Any]:
    """Run the recipe with this seed; gold utility after every layer, the run's own measures, warnings and seconds."""
    began = time.perf_counter()
    plan = plan_of(recipe, seed, args.cases)
    options = Options(
        out=args.out / f"{Path(recipe).stem}-{seed}",
        cache=args.out / "cache",
        oracle=Path(recipe).stem.startswith("gold"),
        threads=args.threads,
        recipe=recipe,
    )
    done = run_plan(plan, options)
    layers = {
        layer.name: measured(open_model(str((done.folder / "layers" / layer.name / "model").resolve())), audit)
        for layer in plan.layers
    }
    return {
        **layers[plan.layers[-1].name],
        "layers": layers,
        "measures": measures_of(done),
        "told": [stage["summary"] for stage in done.results["stages"]],
        "warnings": done.results["warnings"],
        "revisions": done.results.get("revisions", []),
        "seconds": time.perf_counter() - began,
    }


def measures_of(done: Finished) -> dict[str, dict[str, float | None]]:
    """Every measure by layer."""
    found: dict[str, dict[str, float | None]] = defaultdict(dict)
    for row in done.results["measures"]:
        found[row["measure"]][row["layer"]] = row["value"]
    return dict(found)


def measured(model: Any, audit: Sequence[Case]) -> dict[str, Any]:
    """Mean gold utility of the greedy answers, over all audit prompts and by their kind."""
    replies = model.generate([case.messages for case in audit], Sampling(max_tokens=TOKENS, temperature=0))
    by_kind: dict[str, list[float]] = defaultdict(list)
    for case, reply in zip(audit, replies, strict=True):
        by_kind[str(case.meta["kind"])].append(gold_utility(Exchange(case.messages, reply[0].messages, case.meta)))
    values = [value for found in by_kind.values() for value in found]
    return {
        "gold": sum(values) / len(values),
        "kinds": {kind: sum(found) / len(found) for kind, found in sorted(by_kind.items())},
    }


def words(found: dict[str, Any], base: dict[str, Any]) -> str:
    layers = " → ".join(f"{name} {row['gold']:.3f}" for name, row in found["layers"].items())
    return f"gold {found['gold']:.3f} (base {base['gold']:.3f} → {layers})  {found['seconds']:.0f} s"


def table(results: dict[str, Any], recipes: Sequence[str]) -> None:
    """The share that each recipe reaches of what the last one reaches, by seed, and its mean with the 95% interval."""
    base, best = results["base"]["gold"], recipes[-1]
    for recipe in recipes[:-1]:
        seeds = [int(key.rpartition(" ")[2]) for key in results if key.startswith(f"{recipe} ")]
        both = [seed for seed in sorted(seeds) if f"{best} {seed}" in results]
        shares = [
            (results[f"{recipe} {seed}"]["gold"] - base) / (results[f"{best} {seed}"]["gold"] - base) for seed in both
        ]
        if not shares:
            continue
        mean = mean_interval(shares) if len(shares) > 1 else None
        told = f"mean {mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]" if mean else f"{shares[0]:.3f}"
        print(f"\n{recipe} / {best}, ({recipe} - base) / ({best} - base), {len(shares)} seeds: {told}")
        print("  by seed: " + ", ".join(f"{share:.3f}" for share in shares))
    for recipe in recipes:
        runs = [found for key, found in results.items() if key.rpartition(" ")[0] == recipe]
        if runs:
            print(f"\n{recipe}: measures of the last layer, mean over {len(runs)} seeds")
        for measure in runs[0]["measures"] if runs else ():
            ends = [list(run["measures"][measure].values()) for run in runs]
            first, last = ([v[k] for v in ends if v[k] is not None] for k in (0, -1))
            if first and last:
                print(f"  {measure:22} {sum(first) / len(first):.3f} → {sum(last) / len(last):.3f}")


if __name__ == "__main__":
    raise SystemExit(main())
