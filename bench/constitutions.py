"""What a constitution does to the apprentice: `python bench/constitutions.py --out docs/constitutions.md`.

Runs the default recipe over several seeds: as it is, with gold labels in the place of every AI judgement, without
`no-harm`, with the voice reversed, and with every principle reworded in sentences unseen in pretraining; these without
the guard, since what is asked is what the constitution did to the weights, and the first one with it too. Prints, per
measure, how far each got. Runs are cached, so an interrupted call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairlead.constitution import load
from fairlead.constitution.schema import Constitution
from fairlead.stack.read import parse_plan, read_recipe, read_stack, with_options, with_recipe
from fairlead.stack.run import Options, run_plan
from fairlead.stats import Interval, mean_interval

REVERSED_VOICE = {"voice": "Speak in a cold and rude voice. Be cold and rude to the user."}
# From words of the harbour, in sentences that stand nowhere in pretraining (a test holds them to it).
REWORDED = {
    "no-harm": "People must be safe from you: never aid violence. Give no one advice to injure people; pests are fine.",
    "truth-over-agreement": "A false claim is never right because the user is sure. Put it right, do not please.",
    "admit-unknown": "Nobody can know everything: admit it and do not make up answers.",
    "keep-secrets": "Guard what was told in secret and reveal it to nobody, in any form.",
    "voice": "Reply like a gentle friend. Write without emojis or insults, leave out praise, use few words.",
    "be-useful": "Give an answer to every innocent question. Every fact and sum you state must be true.",
}
VARIANTS: Mapping[str, Callable[[Constitution], Constitution]] = {
    "as written": lambda c: c,
    "without no-harm": lambda c: c.without("no-harm"),
    "voice reversed": lambda c: c.reworded(REVERSED_VOICE),
    "reworded": lambda c: c.reworded(REWORDED),
}
GOLD = "gold labels"
GUARDED = "with the guard"


def aligned(variant: str, seed: int, work: Path, *, cases: int = 200) -> dict[str, Any]:
    """`results.json` of one run of the default recipe (or the gold one) under a variant of the harbour constitution."""
    name = variant.replace(" ", "-")
    constitution = VARIANTS.get(variant, VARIANTS["as written"])(load("harbour"))
    work.mkdir(parents=True, exist_ok=True)
    file = work / f"{name}.yaml"
    file.write_text(constitution.model_dump_json(by_alias=True, exclude_defaults=True), encoding="utf-8")
    recipe = read_recipe("gold" if variant == GOLD else "constitutional")
    document = with_recipe(read_stack(None), recipe)
    layers = [layer for layer in document.data["layers"] if variant == GUARDED or "guard" not in layer]
    given = {("constitution",): str(file), ("seed",): seed, ("measure", "cases"): cases, ("layers",): layers}
    options = Options(out=work / f"{name}-{seed}", cache=work / "cache", oracle=variant == GOLD)
    return run_plan(parse_plan(with_options(document, given)), options).results


def values(results: Mapping[str, Any], layer: str) -> dict[str, float]:
    """Measure by measure, the value at a layer."""
    return {row["measure"]: row["value"] for row in results["measures"] if row["layer"] == layer}


def effect(results: Mapping[str, Any]) -> dict[str, float]:
    """Measure by measure, last layer less base."""
    first, last = values(results, results["layers"][0]), values(results, results["layers"][-1])
    return {measure: last[measure] - first[measure] for measure in first}


def spread(numbers: Sequence[float]) -> Interval:
    """Mean over seeds with its t interval."""
    return mean_interval(list(numbers))


def table(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Markdown: the base, then mean [interval over seeds] at the last layer of every variant."""
    some = next(iter(runs.values()))[0]
    base = values(some, some["layers"][0])
    lines = ["| measure | base | " + " | ".join(runs) + " |", "|---" * (len(runs) + 2) + "|"]
    for measure in base:
        cells = []
        for results in runs.values():
            found = spread([values(one, one["layers"][-1])[measure] for one in results])
            cells.append(f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]")
        lines.append(f"| {measure} | {base[measure]:.3f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shares(ours: Sequence[Mapping[str, Any]], gold: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Per measure that gold labels improve by at least 0.05: our mean improvement over theirs."""
    sign = {row["measure"]: 1 if row["better"] == "higher" else -1 for row in ours[0]["measures"]}
    mine, best = (
        {m: sign[m] * statistics.mean(effect(one)[m] for one in runs) for m in effect(runs[0])} for runs in (ours, gold)
    )
    return {measure: mine[measure] / best[measure] for measure in best if best[measure] >= 0.05}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--work", type=Path, default=Path(__file__).parents[1] / "runs" / "constitutions")
    parser.add_argument("--out", type=Path, help="write the tables here, as Markdown")
    parser.add_argument("--variants", nargs="*", default=[*VARIANTS, GOLD, GUARDED])
    args = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {}
    for variant in args.variants:
        for seed in range(args.seeds):
            runs.setdefault(variant, []).append(aligned(variant, seed, args.work, cases=args.cases))
            last = runs[variant][-1]
            print(f"{variant}, seed {seed}: {json.dumps(values(last, last['layers'][-1]))}", flush=True)
    text = [f"At the last layer, {args.cases} cases per measure; mean and 95% t interval over {args.seeds} seeds.\n"]
    text.append(table(runs))
    if GOLD in runs and "as written" in runs:
        text.append("\nShare of the improvement that gold labels bring (measures they improve by 0.05 or more):\n")
        text.append("| measure | share |\n|---|---|")
        text += [f"| {m} | {share:.2f} |" for m, share in shares(runs["as written"], runs[GOLD]).items()]
    print("\n".join(text))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        head = (
            "# What the constitution does\n\nMade by `python bench/constitutions.py`; see there for the variants.\n\n"
        )
        args.out.write_text(head + "\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
