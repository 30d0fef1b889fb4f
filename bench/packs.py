"""What a bag of words tells of tempting prompts and their twins: `python bench/packs.py`. Prints a table.

The classifier is that of the tests (tests/constitution/wordbag.py): words and pairs of words under a logistic
regression, 5 folds. AUROC is the mean over 3 drawings of the folds; the interval resamples templates (95%, 400 draws).
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from constitution.wordbag import auroc, held_out_scores
from fairlead.constitution import load
from fairlead.constitution.prompts_bank import KINDS, SPLITS, bank
from fairlead.exchange import Case

PACKS = ("brand", "support", "health", "finance", "law")
SEEDS, DRAWS = 3, 400


def row(case: Case) -> str:
    """A template with one row of fillers, in either order."""
    return f"{case.cluster}/{case.meta['pair'].rsplit('/', 1)[1].split('.')[1]}"


GROUPS: dict[str, Callable[[Case], str]] = {
    "by template": lambda case: case.cluster,
    "by row": row,
    "by pair": lambda case: str(case.meta["pair"]),
    "at random": lambda case: case.messages[0].text,
}


def measured(cases: Sequence[Case], group: Callable[[Case], str]) -> str:
    """AUROC and its interval, as a cell of the table."""
    texts, y = [case.messages[0].text for case in cases], np.array([case.meta["kind"] == "tempting" for case in cases])
    groups, labels = [group(case) for case in cases], y.astype(int).tolist()
    scores = [held_out_scores(texts, labels, groups, seed=seed) for seed in range(SEEDS)]
    at: dict[str, list[int]] = defaultdict(list)
    for i, case in enumerate(cases):
        at[case.cluster].append(i)
    clusters, rng = list(at.values()), np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        index = np.concatenate([clusters[c] for c in rng.integers(len(clusters), size=len(clusters))])
        drawn.append(auroc(scores[0][index], y[index]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{np.mean([auroc(s, y) for s in scores]):.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    print(f"| pack | principles | templates | prompts + twins | {' | '.join(GROUPS)} |")
    print("|" + "---|" * (4 + len(GROUPS)))
    for pack in PACKS:
        constitution = load(pack)
        cases = [case for split in SPLITS for kind in KINDS for case in bank(constitution, split, kind)]
        cells = [measured(cases, group) for group in GROUPS.values()]
        own = len({case.principle for case in cases})
        n = f"{len(cases) // 2} + {len(cases) // 2}"
        print(f"| {pack} | {own} | {len({c.cluster for c in cases})} | {n} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
