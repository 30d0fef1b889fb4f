"""How good are AI labels? Agreement with people, with the truth, and with themselves, each with n and interval.

    python examples/label_quality.py --rows 200 --cases 40 --json quality.json

On published pairs (../shared/data: hh-rlhf, pandalm, llmbar, whichever is there) a critic is asked by the constitution
`hhh`, beside the reader that takes the longer reply. On the apprentice's own world the truth is known: pairs of a reply
that breaks a principle and its mended twin. There the claim of Constitutional AI is measured that labels by written
principles are more consistent than people's: the critic over three wordings of each principle against four simulated
raters, careful ones and careless ones, on the same pairs. No label is used to train anything.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairlead.apprentice.annotators import CAREFUL, CARELESS, Annotator, Biases
from fairlead.apprentice.judged import judged
from fairlead.apprentice.wordings import CORES, mend, sentence
from fairlead.cli.terminal import Terminal
from fairlead.constitution import load
from fairlead.exchange import Exchange, assistant
from fairlead.feedback import agreement as rows_of
from fairlead.feedback.agreement import P, Row
from fairlead.judges.critic import critic
from fairlead.models import open_model
from fairlead.stack.agreement import agree_with_people
from fairlead.stack.labels import Access, LabelSettings, open_reader

PUBLISHED = {
    "hh-rlhf": "hh-rlhf",
    "pandalm": "pandalm",
    "llmbar natural": "llmbar/LLMBar/Natural",
    "llmbar adversarial": "llmbar/LLMBar/Adversarial",
}
RATERS = 4
WORDINGS = 3  # of each principle: so many are held out of the apprentice's training


def published(data: Path, spec: str, rows: int, terminal: Terminal) -> dict[str, Any]:
    """The table of `fairlead label agreement` for each data set that is here."""
    found: dict[str, Any] = {}
    reader = open_reader(Access(spec))
    for name, folder in PUBLISHED.items():
        if not (data / folder).is_dir():
            terminal.say(f"{name}: {data / folder} is not here; left out")
            continue
        found[name] = agree_with_people(
            data / folder, load("hhh"), reader, LabelSettings(), terminal, limit=rows, repeats=1
        )
    return found


def world_pairs(topic: str, n: int, seed: int) -> list[tuple[Exchange, Exchange, str]]:
    """(reply that breaks the principle of a topic, its mended twin, cluster), held-out scenes."""
    rng, pairs = random.Random(f"{topic}/{seed}"), []
    while len(pairs) < n:
        case = judged(rng, split="audit", breaks=True)
        if case.faults != (f"{topic}+",):
            continue
        answer, dress = mend(case.wording.facets, case.scene, case.answer, case.dress, rng)
        meta = {**case.scene.meta, "kind": case.scene.kind}
        better = dress.around(case.scene.answers[answer])
        worse, right = (Exchange(case.scene.messages, (assistant(text),), meta) for text in (case.reply, better))
        pairs.append((worse, right, case.scene.cluster))
    return pairs


def world(spec: str, cases: int, seed: int) -> list[Row]:
    """Agreement with the truth and consistency, of a critic and of simulated raters, over all topics together."""
    model = open_model(spec)
    clusters: list[str] = []
    takes: dict[str, list[list[P]]] = {}
    lengths: list[P] = []
    biases: list[P] = []
    people = {
        "raters, careful": CAREFUL, "raters, careless": CARELESS, "raters, noise 0.5": Biases(noise=0.5),
    }  # fmt: skip
    for topic in CORES:
        pairs = world_pairs(topic, cases, seed)
        rng = random.Random(f"order/{topic}/{seed}")
        turned = [rng.random() < 0.5 for _ in pairs]
        shown = [(b, a) if turn else (a, b) for (a, b, _), turn in zip(pairs, turned, strict=True)]
        clusters += [f"{topic}/{cluster}" for _, _, cluster in pairs]
        lengths += [
            _right(rows_of.longer(a.reply_text, b.reply_text), t) for (a, b), t in zip(shown, turned, strict=True)
        ]
        for unseen in (False, True):
            texts = wordings(topic, unseen, seed)
            who = f"critic, {'unseen' if unseen else 'known'} wordings"
            for k, text in enumerate(texts):
                read = critic(text, model).compare_in_detail(shown)
                _extend(takes, who, k, [_right(item.p, turn) for item, turn in zip(read, turned, strict=True)])
                if not unseen and k == 0:
                    biases += [item.position_bias for item in read]
        counted = critic(wordings(topic, False, seed)[0], Drawn(model), samples=5)
        for k in range(2):  # the same question, its answers drawn anew
            counted.model.seed = k  # type: ignore[attr-defined]
            read = counted.compare_in_detail(shown)
            _extend(takes, "critic, answers drawn", k, [_right(i.p, t) for i, t in zip(read, turned, strict=True)])
        for who, bias in people.items():
            for k in range(RATERS):
                rater = Annotator(who, bias, seed=k)
                choices = [_prefers(rater, a, b) for a, b in shown]
                _extend(takes, who, k, [_right(p, turn) for p, turn in zip(choices, turned, strict=True)])
    truth = [1.0] * len(clusters)
    table = [rows_of.agreement("longer wins", lengths, truth, clusters)]
    for who, reads in takes.items():
        table.append(rows_of.agreement(who, reads[0], truth, clusters))
        what = "repeats" if who == "critic, answers drawn" else "wordings" if who.startswith("critic") else "raters"
        table.append(rows_of.consistency(what, who, reads, clusters))
    position = rows_of.position_bias("critic, known wordings", biases, clusters)
    return table + ([position] if position else [])


def wordings(topic: str, unseen: bool, seed: int) -> list[str]:
    """Different sentences that state one principle; `unseen` ones stand in no training text of the apprentice."""
    rng, texts = random.Random(f"words/{topic}/{unseen}/{seed}"), dict[str, None]()
    while len(texts) < WORDINGS:
        texts[sentence(f"{topic}+", rng, unseen=unseen)] = None
    return list(texts)


class Drawn:
    """A model without its log-probs: its answers are drawn and counted, as those of a managed model are."""

    def __init__(self, model: Any) -> None:
        self._model, self.seed = model, 0
        self.capabilities = model.capabilities - {"logprobs"}

    def generate(self, prompts: Sequence[Any], sampling: Any) -> Any:
        from dataclasses import replace

        return self._model.generate(prompts, replace(sampling, temperature=1.0, seed=self.seed))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _right(p: P, turned: bool) -> P:
    """P(the mended reply is better) from P(the one shown first is)."""
    return None if p is None else p if turned else 1.0 - p


def _prefers(rater: Annotator, a: Exchange, b: Exchange) -> P:
    x, y = rater.utility(a), rater.utility(b)
    return 0.5 if x == y else float(x > y)


def _extend(takes: dict[str, list[list[P]]], who: str, k: int, values: Sequence[P]) -> None:
    rows = takes.setdefault(who, [])
    while len(rows) <= k:
        rows.append([])
    rows[k] += values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--critic", default="apprentice")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rows", type=int, default=200, help="pairs of each published set")
    parser.add_argument("--cases", type=int, default=40, help="pairs of each of the world's six topics")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    terminal = Terminal()
    result: dict[str, Any] = {"world": [asdict(row) for row in world(given.critic, given.cases, given.seed)]}
    _print("the apprentice's world", result["world"])
    result["published"] = published(given.data, given.critic, given.rows, terminal)
    for name, table in result["published"].items():
        _print(f"{name}: {table['pairs']} pairs, {table['prompts']} prompts", table["rows"])
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))


def _print(title: str, rows: Sequence[dict[str, Any]]) -> None:
    sys.stdout.write(f"\n{title}\n")
    for row in rows:
        sys.stdout.write(
            f"  {row['measure']:<14} {row['who']:<26} {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]  "
            f"n = {row['n']}, missing {row['missing']}, ties {row['ties']}\n"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
