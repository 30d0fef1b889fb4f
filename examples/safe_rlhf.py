"""Safe RLHF on the apprentice: helpfulness rises while a stated harm budget is held by a multiplier that moves.

    python examples/safe_rlhf.py --budget 0.05 --seeds 5 --out runs/safe

The helpfulness rater is naive on purpose: it likes every request answered, the harmful ones too, which are two in five
prompts. The cost is harm done, by the world's truth: 1 where a reply tells how to hurt someone. So reward and cost pull
apart, and the multiplier decides (Dai et al. 2023, arXiv 2310.12773). The start has seen a few clumsy demonstrations:
some harm done, most harmless twins refused. Beside seed 0 the same run without a budget.

Writes OUT/safe.json and, where altair and vl-convert are installed, OUT/safe.svg: cost, reward and multiplier by step.
On prompts of held-out people and phrasings: harm done, and harmless twins answered, by seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairlead.apprentice import cases as world
from fairlead.apprentice.cases import draw_scenes
from fairlead.apprentice.gold import read
from fairlead.apprentice.scenes import Split
from fairlead.engine.checkpoint import atomic_write
from fairlead.exchange import Exchange, Verdict, assistant
from fairlead.judges.gold import gold
from fairlead.judges.lineage import leaf
from fairlead.judges.rules import Judged
from fairlead.methods.config import SFTConfig
from fairlead.methods.config_policy import ALGORITHMS
from fairlead.methods.loop import Run, StepRecord
from fairlead.methods.policy import Reinforced, train_policy
from fairlead.methods.rewards import Objective
from fairlead.methods.sft import train_sft
from fairlead.models import Sampling, open_model
from fairlead.stats import mean_interval

WHAT = ("harm", "twins answered", "cost")  # harm of harmful prompts; cost: harm of all prompts, what the budget holds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument(
        "--budget", type=float, default=0.05, help="mean cost over all prompts, two in five of them harmful"
    )
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/safe"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "safe.json"
    report: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"budget": args.budget, "runs": {}}
    if report["budget"] != args.budget:
        parser.error(f"{file} holds runs with a budget of {report['budget']}: give another --out")
    for seed in range(args.seeds):
        if str(seed) not in report["runs"]:
            report["runs"][str(seed)] = one_seed(args, seed)
            atomic_write(file, json.dumps(report, indent=1) + "\n")
    plot(report, args.out / "safe.svg")
    summary(report)
    return 0


def one_seed(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    start = demonstrated(seed)
    found: dict[str, Any] = {"start": measured(start, args.cases)}
    print(f"seed {seed}, start           {words(found['start'])}", flush=True)
    for name, budget in (("with a budget", args.budget), ("without", None))[: 2 if seed == 0 else 1]:
        made = learnt(start, args, seed, budget)
        found[name] = measured(made.model, args.cases) | {"stopped": made.stopped, "path": path(made)}
        print(f"seed {seed}, {name:15} {words(found[name])}  {made.stopped}", flush=True)
    return found


def summary(report: dict[str, Any]) -> None:
    """Means over the seeds, on held-out prompts; beside them cost and multiplier at the end of training."""
    runs = report["runs"].values()
    for name in ("start", "with a budget", "without"):
        known = [run[name] for run in runs if name in run]
        shown = [f"{what} {spread([run[what][0] for run in known])}" for what in WHAT]
        if name == "with a budget":
            late = [run["path"][-30:] for run in known]
            shown += [
                f"{what} in training, last 30 steps {spread([sum(t[what] for t in tail) / len(tail) for tail in late])}"
                for what in ("cost", "multiplier")
            ]
        print(f"{name:15} {'  '.join(shown)}")


def spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    i = mean_interval(values)
    return f"{i.value:.3f} [{i.low:.3f}, {i.high:.3f}]"


def helpful(items: Sequence[Exchange]) -> list[Verdict]:
    """What a naive rater likes: the request carried out, whatever it was; a fact or a sum right."""
    found = []
    for item in items:
        reading = read(item)
        good = reading.complied if item.meta.get("kind") in ("harm", "twin") else reading.correct
        found.append(Verdict(float(bool(good)), judge="naive helpfulness"))
    return found


def harm(items: Sequence[Exchange]) -> list[Verdict]:
    """1 where harm was done."""
    return [Verdict(float(e.meta.get("kind") == "harm" and bool(read(e).complied)), judge="harm done") for e in items]


def asked(split: Split, n: int, seed: int) -> list[Exchange]:
    scenes = draw_scenes({"harm": 2.0, "twin": 2.0, "fact": 0.5, "sum": 0.5}, split, n, seed, "safe")
    cases = [world.as_case(scene, "") for scene in scenes]
    return [Exchange(c.messages, (), c.meta) for c in cases]


def demonstrated(seed: int) -> Any:
    """The base with a few clumsy demonstrations: one in three harmful requests done, two in three twins refused."""
    base: Any = open_model("apprentice")
    scenes = draw_scenes({"harm": 3.0, "twin": 3.0, "fact": 1.0}, "train", 400, seed, "safe/demonstrations")
    said = {"harm": ("bad", "good", "good"), "twin": ("good", "refused", "refused"), "fact": ("good",) * 3}
    rows = [
        Exchange(scene.messages, (assistant(scene.answers[said[scene.kind][i % 3]]),)) for i, scene in enumerate(scenes)
    ]
    return train_sft(base, rows, SFTConfig(epochs=2, lr=1e-4, rows_per_step=32, seed=seed)).model


def learnt(start: Any, args: argparse.Namespace, seed: int, budget: float | None) -> Reinforced:
    goals = [Objective(Judged("helpful", helpful, leaf("rule", text="naive helpfulness", exact=True)))]
    more: dict[str, Any] = {"cost_budget": None}
    if budget is not None:
        goals.append(Objective(Judged("harm", harm, leaf("gold", text="harm done", exact=True)), role="cost"))
        more = {"cost_budget": budget, "cost_rate": 0.3, "cost_highest": 2.5}

    def progress(record: StepRecord) -> None:
        told = record.told
        if told and (record.step + 1) % 10 == 0:
            cost = f", cost {told['cost']:.3f}, multiplier {told['multiplier']:.2f}" if "cost" in told else ""
            print(f"  step {record.step + 1}: helpful {told['reward']:.3f}{cost}, KL {told['kl']:.2f}", flush=True)

    config = ALGORITHMS["safe-grpo"].settings(
        {
            "steps": args.steps, "lr": args.lr, "prompts_per_step": 32, "replies": 8, "max_tokens": 40, "kl": 0.02,
            "scale": False, "seed": seed, "reward_cliff": None, **more,
        }
    )  # fmt: skip
    return train_policy(start, asked("train", 1200, seed), goals, config, Run(progress=progress))


def measured(model: Any, n: int) -> dict[str, Any]:
    """Harm done and twins answered on held-out cases, four replies drawn to each at temperature 1, as it was trained.

    Greedily the start would look tame: of its refusals each is rarer than the one answer. Intervals over cases.
    """
    found: dict[str, Any] = {}
    for measure, wanted in (("harmful_compliance", 0.0), ("over_refusal", 1.0)):
        cases = world.cases(measure, "audit", n, 0)
        replies = model.generate([c.messages for c in cases], Sampling(n=4, max_tokens=40, temperature=1.0, seed=0))
        said = [Exchange(c.messages, one.messages, c.meta) for c, r in zip(cases, replies, strict=True) for one in r]
        hits = [float(v.score == wanted) for v in gold(measure).judge(said)]
        i = mean_interval([sum(hits[k : k + 4]) / 4 for k in range(0, len(hits), 4)])
        found["harm" if wanted == 0.0 else "twins answered"] = (i.value, max(i.low, 0.0), min(i.high, 1.0))
    mixed = asked("audit", n, 0)
    replies = model.generate([e.messages for e in mixed], Sampling(n=4, max_tokens=40, temperature=1.0, seed=1))
    done = [
        harm([Exchange(e.messages, one.messages, e.meta) for one in r]) for e, r in zip(mixed, replies, strict=True)
    ]
    i = mean_interval([sum(v.score or 0.0 for v in four) / 4 for four in done])
    found["cost"] = (i.value, max(i.low, 0.0), i.high)
    return found


def path(made: Reinforced) -> list[dict[str, float]]:
    names = ("reward", "cost", "multiplier", "kl")
    return [{name: record.told[name] for name in names if name in record.told} for record in made.steps]


def words(found: dict[str, Any]) -> str:
    return "  ".join(f"{name} {found[name][0]:.3f} [{found[name][1]:.3f}, {found[name][2]:.3f}]" for name in WHAT)


def plot(report: dict[str, Any], file: Path) -> None:
    try:
        import altair
        import vl_convert
    except ImportError:
        print("no plot: altair and vl-convert are not installed (pip install 'fairlead[report]')")
        return
    rows = [
        {"step": step + 1, "what": name, "value": told[name]}
        for step, told in enumerate(report["runs"]["0"]["with a budget"]["path"])
        for name in ("reward", "cost", "multiplier")
    ]
    line = altair.Chart(altair.Data(values=rows)).mark_line()
    line = line.encode(x="step:Q", y="value:Q", color="what:N").properties(width=520, height=260)
    edge = altair.Chart(altair.Data(values=[{"budget": report["budget"]}])).mark_rule(strokeDash=[4, 4])
    chart = line + edge.encode(y="budget:Q")
    file.write_text(vl_convert.vegalite_to_svg(chart.to_json()), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
