"""Learning from human feedback as in InstructGPT, on the apprentice: demonstrations, comparisons, reward model, RL.

    python examples/rlhf.py --methods ppo,ppo-ptx,grpo,rloo,reinforce++,dpo --seeds 5 --out runs/rlhf

For each seed: SFT on a few demonstrations; replies of that model to training prompts, four to each, put in order by a
simulated rater (the world's truth plus noise); a reward model from those rankings; then every method from the same
start on the same comparisons: PPO, GRPO, RLOO, REINFORCE++ by the reward model, DPO on the pairs themselves. `ppo-ptx`
mixes pretraining rows in (Ouyang et al. 2022).

Told for each, on prompts of held-out phrasings and entities, greedily: gold utility (the truth, which no method saw),
the share of the way from the base to the best attainable, sums (the alignment tax, and what the mix gives back), KL to
the SFT model, length, seconds. OUT/results.json grows run by run, and what is in it is not run again.

The best attainable is the best that any run of a seed came to, those by the truth itself among them: `truth-sft` (the
right answers to every prompt that the methods saw, imitated) and `truth-rl` (RLOO from the same start, rewarded by the
truth). Not every answer is in a model of this size, so that is below 1; the share of the way to 1 stands beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.apprentice import corpus
from fairlead.apprentice.annotators import CAREFUL, annotator
from fairlead.apprentice.cases import cases, gold_replies, prompts
from fairlead.apprentice.gold import gold_utility
from fairlead.engine.checkpoint import atomic_write
from fairlead.exchange import Case, Exchange, Preference, Ranking, Verdict, assistant
from fairlead.judges.gold import gold
from fairlead.judges.lineage import Lineage, leaf
from fairlead.judges.reward_model import RewardModel
from fairlead.methods.config import DPOConfig, SFTConfig
from fairlead.methods.config_policy import ALGORITHMS
from fairlead.methods.config_reward import RewardConfig
from fairlead.methods.kl import kl_to_reference
from fairlead.methods.loop import Run, StepRecord
from fairlead.methods.policy import train_policy
from fairlead.methods.preference import train_dpo
from fairlead.methods.reward import train_reward
from fairlead.methods.rewards import Objective
from fairlead.methods.sampling import draw
from fairlead.methods.sft import train_sft
from fairlead.models import Sampling, open_model
from fairlead.stats import mean_interval

METHODS = ("ppo", "ppo-ptx", "grpo", "rloo", "reinforce++", "dpo")
TRUTH = ("truth-sft", "truth-rl")  # the best attainable, beside which the methods stand
TOKENS = 40
COMMON: dict[str, Any] = {"max_tokens": TOKENS, "unfinished": -3.0, "lr": 5e-5, "kl_burst": 0.5}
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {"steps": 60, "prompts_per_step": 128, "passes": 2, "minibatches": 2, "kl": 0.1, "value_rate": 4.0},
    "grpo": {"steps": 60, "prompts_per_step": 32, "replies": 8, "kl": 0.08, "lr": 8e-5},
    "rloo": {"steps": 60, "prompts_per_step": 32, "replies": 8, "kl": 0.05, "lr": 1e-4},
    "reinforce++": {"steps": 60, "prompts_per_step": 128, "kl": 0.02, "passes": 2},
}
IMITATE = SFTConfig(epochs=3, lr=2e-4, rows_per_step=32)
PTX = {"ptx": 0.5, "ptx_rows": 64}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--demonstrations", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--cases", type=int, default=300, help="audit prompts; as many sums")
    parser.add_argument("--out", type=Path, default=Path("runs/rlhf"))
    parser.add_argument("--settings", default="{}", help="more settings of every RL method, as JSON")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "results.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    base: Any = open_model("apprentice")
    audit = prompts(None, "audit", args.cases, 0)
    sums = cases("sums", "audit", args.cases, 0)
    if "base" not in results:
        results["base"] = measured(base, audit, sums)
    print(f"{'base':14} {words(results['base'])}", flush=True)
    for seed in range(args.seeds):
        wanted = [name for name in (*TRUTH, *args.methods.split(",")) if f"{name} {seed}" not in results]
        if not wanted:
            continue
        start = demonstrated(base, args, seed)
        rankings = ranked(start, args, seed)
        began = time.perf_counter()
        reward = train_reward(start, rankings, RewardConfig(epochs=3, lr=2e-4, seed=seed, head_seed=seed)).model
        seconds = time.perf_counter() - began
        results[f"sft {seed}"] = measured(start, audit, sums)
        results[f"reward {seed}"] = agreement(reward, start, audit) | {"seconds": seconds}
        print(f"{f'sft {seed}':14} {words(results[f'sft {seed}'])}", flush=True)
        print(f"{f'reward {seed}':14} {results[f'reward {seed}']}", flush=True)
        for name in wanted:
            began = time.perf_counter()
            made, told = learnt(name, start, reward, rankings, args, seed)
            found = measured(made, audit, sums) | told | {"seconds": time.perf_counter() - began}
            asked = [start.render(case.messages) for case in audit]
            kl = kl_to_reference(made, start, asked, 300, seed, longest=TOKENS)
            results[f"{name} {seed}"] = found | {"kl": kl.value}
            atomic_write(file, json.dumps(results, indent=1) + "\n")
            print(f"{f'{name} {seed}':14} {words(results[f'{name} {seed}'])}", flush=True)
    table(results, args.methods.split(","), args.seeds)
    return 0


# ---------------------------------------------------------------------------------------------- the stages


def demonstrated(base: Any, args: argparse.Namespace, seed: int) -> Any:
    """SFT on a few replies of the kind that is wanted."""
    rows = right_answers(args.demonstrations, seed)
    return train_sft(base, rows, IMITATE.model_copy(update={"seed": seed})).model


def right_answers(n: int, seed: int) -> list[Exchange]:
    return [Exchange(case.messages, (assistant(text),)) for case, text in gold_replies(None, "train", n, seed)]


def training_prompts(args: argparse.Namespace, seed: int) -> list[Case]:
    return prompts(None, "train", args.prompts, 100 + seed)


def ranked(start: Any, args: argparse.Namespace, seed: int) -> list[Ranking]:
    """Four replies to each training prompt, in a careful rater's order."""
    rater = annotator("careful", CAREFUL, seed=seed)
    asked = training_prompts(args, seed)
    drawn = draw(
        start,
        [c.messages for c in asked],
        n=4,
        max_tokens=TOKENS,
        temperature=1.0,
        seed=seed,
        metas=[c.meta for c in asked],
    )
    rows = []
    for case, found in zip(asked, drawn, strict=True):
        distinct = {e.reply_text: e for e in found.exchanges}
        if len(distinct) < 2:
            continue
        replies = list(distinct.values())
        order = sorted(range(len(replies)), key=lambda i: -rater.utility(replies[i]))
        rows.append(Ranking(case.messages, tuple(e.reply for e in replies), tuple(order)))
    print(f"  seed {seed}: {len(rows):,} rankings of {sum(len(r.replies) for r in rows):,} replies", flush=True)
    return rows


def learnt(
    name: str, start: Any, reward: RewardModel, rankings: Sequence[Ranking], args: argparse.Namespace, seed: int
) -> tuple[Any, dict[str, Any]]:
    """The model that a method makes of the start, and what the run said of itself."""
    if name == "dpo":
        pairs = [
            Preference(row.messages, row.replies[a], row.replies[b])
            for row in rankings
            for a, b in itertools.combinations(row.order, 2)
        ]
        made = train_dpo(start, pairs, DPOConfig(epochs=1, lr=5e-5, rows_per_step=32, seed=seed, kl_samples=0))
        return made.model, {}
    if name == "truth-sft":
        rows = right_answers(args.demonstrations, seed) + right_answers(args.prompts, 100 + seed)
        return train_sft(open_model("apprentice"), rows, IMITATE.model_copy(update={"seed": seed})).model, {}
    algorithm = "rloo" if name == "truth-rl" else name.removesuffix("-ptx")
    more = PTX if name.endswith("-ptx") else {}
    config = ALGORITHMS[algorithm].settings(
        {**COMMON, **SETTINGS[algorithm], **more, "seed": seed, **json.loads(args.settings)}
    )
    asked = [Exchange(c.messages, (), c.meta) for c in training_prompts(args, seed)]

    def progress(record: StepRecord) -> None:
        step = record.step // config.updates + 1
        if record.told and step % 20 == 0:
            t = record.told
            print(
                f"    {name} step {step}: reward {t['reward']:.2f}, KL {t['kl']:.2f}, length {t['length']:.1f}",
                flush=True,
            )

    run = train_policy(
        start, asked, [Objective(Truth() if name == "truth-rl" else reward)], config, Run(progress=progress),
        critic=reward if algorithm == "ppo" else None, pretraining=pretraining(seed) if more else (),
    )  # fmt: skip
    return run.model, {"stopped": run.stopped, "reward": run.metrics()["reward"]}


def pretraining(seed: int) -> list[Exchange]:
    """Rows of the corpus that the base was raised on, as exchanges."""
    return [
        Exchange(row.messages[:-1], row.messages[-1:])
        for row in itertools.islice(corpus.rows(1000 + seed), 3000)
        if len(row.messages) >= 2 and row.learnt[-1] == len(row.messages) - 1
    ]


# ----------------------------------------------------------------------------------------------- measuring


def answers(model: Any, asked: Sequence[Case]) -> list[Exchange]:
    replies = model.generate([c.messages for c in asked], Sampling(max_tokens=TOKENS, temperature=0))
    return [Exchange(c.messages, r[0].messages, c.meta) for c, r in zip(asked, replies, strict=True)]


def measured(model: Any, audit: Sequence[Case], sums: Sequence[Case]) -> dict[str, Any]:
    """Gold utility and length on the audit prompts, sums right."""
    said = answers(model, audit)
    right = [v.score for v in gold("sums").judge(answers(model, sums))]
    utility = [gold_utility(e) for e in said]
    return {
        "gold": sum(utility) / len(utility),
        "sums": sum(r == 1.0 for r in right) / len(right),
        "length": sum(len(e.reply_text.split()) for e in said) / len(said),
    }


def agreement(reward: RewardModel, start: Any, audit: Sequence[Case]) -> dict[str, float]:
    """How often the reward model prefers the reply that gold prefers, of two drawn to each audit prompt."""
    drawn = draw(
        start,
        [c.messages for c in audit],
        n=2,
        max_tokens=TOKENS,
        temperature=1.0,
        seed=9,
        metas=[c.meta for c in audit],
    )
    pairs = [f.exchanges for f in drawn if len(f.exchanges) == 2]
    raws = [v.raw for v in reward.judge([e for pair in pairs for e in pair])]
    hits = [
        float((a > b) == (gold_utility(x) > gold_utility(y)))
        for (x, y), a, b in zip(pairs, raws[::2], raws[1::2], strict=True)
        if gold_utility(x) != gold_utility(y) and a is not None and b is not None
    ]
    return {"accuracy": sum(hits) / len(hits), "pairs": float(len(hits))}


@dataclass(frozen=True, slots=True)
class Truth:
    """The world's truth as a reward: what no real task has, here for the best attainable alone."""

    name: str = "truth"

    @property
    def lineage(self) -> Lineage:
        return leaf("gold", text="harbour truth: utility", exact=True)

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        scores = [gold_utility(e) for e in exchanges]
        return [Verdict(score, raw=4 * score, judge=self.name) for score in scores]


def share(results: dict[str, Any], name: str, seed: int, *, of_one: bool = False) -> float:
    """Of the way from the base to the best attainable (of this seed), or to 1."""
    low = results["base"]["gold"]
    runs = [results[f"{one} {seed}"]["gold"] for one in (*TRUTH, *METHODS) if f"{one} {seed}" in results]
    best = 1.0 if of_one else max(runs)
    return float((results[f"{name} {seed}"]["gold"] - low) / (best - low))


def words(found: dict[str, Any]) -> str:
    more = "".join(f"  {name} {found[name]:.2f}" for name in ("kl", "seconds") if name in found)
    said = f"gold {found['gold']:.3f}  sums {found['sums']:.3f}  length {found['length']:.1f}"
    return said + more + (f"  {found['stopped']}" if found.get("stopped") else "")


def table(results: dict[str, Any], methods: Sequence[str], seeds: int) -> None:
    """Means over the seeds with the 95% interval of the mean; only seeds of which all of a row is there."""
    print(f"\n{'':14}{'share of attainable':>24}{'share of 1':>24}{'sums':>24}{'length':>8}{'KL':>7}{'seconds':>9}")
    for name in (*TRUTH, "sft", *methods):
        known = [s for s in range(seeds) if all(f"{one} {s}" in results for one in (name, *TRUTH))]
        if not known:
            continue
        runs = [results[f"{name} {seed}"] for seed in known]
        cells = [
            spread([share(results, name, seed) for seed in known]),
            spread([share(results, name, seed, of_one=True) for seed in known]),
            spread([r["sums"] for r in runs]),
        ]
        kl = f"{sum(r['kl'] for r in runs) / len(runs):.2f}" if "kl" in runs[0] else ""
        seconds = f"{sum(r['seconds'] for r in runs) / len(runs):.0f}" if "seconds" in runs[0] else ""
        length = f"{sum(r['length'] for r in runs) / len(runs):.1f}"
        print(f"{name:14}{''.join(f'{cell:>24}' for cell in cells)}{length:>8}{kl:>7}{seconds:>9}")
    taxes(results, seeds)


def taxes(results: dict[str, Any], seeds: int) -> None:
    """Sums lost between SFT and PPO, and how much of it the pretraining mix gives back, by seed."""
    known = [s for s in range(seeds) if all(f"{one} {s}" in results for one in ("sft", "ppo", "ppo-ptx"))]
    if not known:
        return
    lost = {name: [results["base"]["sums"] - results[f"{name} {s}"]["sums"] for s in known]
            for name in ("sft", "ppo", "ppo-ptx")}  # fmt: skip
    back = [without - mixed for without, mixed in zip(lost["ppo"], lost["ppo-ptx"], strict=True)]
    said = "; ".join(f"{name} {spread(values)}" for name, values in lost.items())
    print(f"\nsums lost against the base: {said}; given back by the mix {spread(back)}")


def spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    i = mean_interval(values)
    return f"{i.value:.3f} [{i.low:.3f}, {i.high:.3f}]"


if __name__ == "__main__":
    raise SystemExit(main())
