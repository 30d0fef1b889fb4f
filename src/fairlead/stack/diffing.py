"""What a change of constitution changes beyond its text: the labels a critic gives, and the measures of two runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead import stats
from fairlead.constitution.schema import Constitution, Principle
from fairlead.errors import InputError, MissingResource
from fairlead.exchange import Exchange, Message, assistant, system, user
from fairlead.judges.critic import critic
from fairlead.measures.compare import SideEffect, compare, judge_all
from fairlead.measures.measure import Outcome
from fairlead.measures.result import MeasureResult
from fairlead.methods.sampling import draw
from fairlead.models.protocol import Model
from fairlead.stack.folder import read_lines

SUREST = 1e-3  # as in labels for training: no verdict counts as surer
TIE = 0.005  # a label this near to one half says nothing of which is better


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replies to one prompt; `cluster` is what its intervals are clustered by: the prompt."""

    first: Exchange
    second: Exchange
    cluster: str


@dataclass(frozen=True, slots=True)
class Labels:
    """How the labels of the same comparisons differ.

    flips     share of labelled pairs of which the other reply is now the better one, with its 95% interval
    moved     mean of |P after - P before|
    unlabelled  pairs that one of the two gave no label, for want of a verdict
    ties      pairs on which at least one of the two takes no side; they are no flips
    """

    pairs: int
    flips: stats.Interval | None
    flipped: int
    moved: float | None
    unlabelled: int
    ties: int
    flipped_prompts: tuple[str, ...]


def example_pairs(*constitutions: Constitution) -> list[Pair]:
    """The good and bad replies that examples give to the same prompt of the same principle, each pair once."""
    found: dict[tuple[str, str, str], Pair] = {}
    for p in (p for c in constitutions for p in c.principles):
        for good in p.good:
            for bad in p.bad:
                if (good.system, good.user) == (bad.system, bad.user):
                    said = _said(good.system, good.user)
                    pair = Pair(_exchange(said, good.reply), _exchange(said, bad.reply), good.user)
                    found.setdefault((good.user, good.reply, bad.reply), pair)
    return list(found.values())


def example_prompts(*constitutions: Constitution) -> list[tuple[Message, ...]]:
    """What the examples of both ask, each once."""
    every = [e for c in constitutions for p in c.principles for e in (*p.good, *p.bad)]
    return list(dict.fromkeys(_said(e.system, e.user) for e in every))


def drawn_pairs(model: Model, prompts: Sequence[tuple[Message, ...]], *, seed: int = 0) -> tuple[list[Pair], int]:
    """(two different replies of the model to each prompt, the prompts that gave no two)."""
    tokens = 256 if "max_tokens" in model.capabilities else None
    warm = 1.0 if "temperature" in model.capabilities else None
    pairs = []
    for got in draw(model, prompts, n=2, max_tokens=tokens, temperature=warm, seed=seed):
        if len(got.exchanges) == 2 and got.exchanges[0].reply_text.split() != got.exchanges[1].reply_text.split():
            first, second = got.exchanges
            pairs.append(Pair(first, second, first.messages[-1].text))
    return pairs, len(prompts) - len(pairs)


def label_changes(before: Constitution, after: Constitution, pairs: Sequence[Pair], reader: Model) -> Labels:
    """The label of every pair under either text, by the same critic: P(first better) over all principles together.

    As `draw: whole` labels for training: log-odds of the two replies' P(kept), weighted by severity over its mean.
    A principle that both have in the same words is read once.
    """
    exchanges = [item for pair in pairs for item in (pair.first, pair.second)]
    known: dict[str, list[float | None]] = {}
    for p in (*before.principles, *after.principles):
        if p.text not in known:
            known[p.text] = [verdict.score for verdict in critic(p, reader).judge(exchanges)] if exchanges else []
    old, new = (_labels(c.principles, known, len(pairs)) for c in (before, after))
    both = [(x, y, pair) for x, y, pair in zip(old, new, pairs, strict=True) if x is not None and y is not None]
    sided = [abs(x - 0.5) > TIE and abs(y - 0.5) > TIE for x, y, _ in both]
    flips = [side and (x > 0.5) != (y > 0.5) for side, (x, y, _) in zip(sided, both, strict=True)]
    return Labels(
        len(pairs),
        stats.rate([float(flip) for flip in flips], [pair.cluster for *_, pair in both]) if both else None,
        sum(flips),
        math.fsum(abs(x - y) for x, y, _ in both) / len(both) if both else None,
        len(pairs) - len(both),
        len(both) - sum(sided),
        tuple(dict.fromkeys(pair.cluster for flip, (_, _, pair) in zip(flips, both, strict=True) if flip)),
    )


def _labels(principles: Sequence[Principle], known: Mapping[str, Sequence[float | None]], n: int) -> list[float | None]:
    mean = sum(p.severity for p in principles) / len(principles)
    labels: list[float | None] = []
    for i in range(n):
        scores = [(p.severity / mean, known[p.text][2 * i], known[p.text][2 * i + 1]) for p in principles]
        lead = 0.0
        for weight, first, second in scores:
            if first is None or second is None:
                labels.append(None)
                break
            lead += weight * (math.log(max(first, SUREST)) - math.log(max(second, SUREST)))
        else:
            labels.append(1.0 / (1.0 + math.exp(-max(-50.0, min(50.0, lead)))))
    return labels


def _said(before: str | None, asked: str) -> tuple[Message, ...]:
    return ((system(before),) if before else ()) + (user(asked),)


def _exchange(said: tuple[Message, ...], reply: str) -> Exchange:
    return Exchange(said, (assistant(reply),))


# ------------------------------------------------------------------------------------------------ two runs


def run_changes(before: Path, after: Path) -> tuple[list[SideEffect], list[str]]:
    """(every measure of the two products on the cases both were asked, what could not be compared and why)."""
    first, second = _product(before), _product(after)
    told = [
        f"{id}: measured in {before if id in first else after} alone" for id in sorted(first.keys() ^ second.keys())
    ]
    effects = []
    for id in (id for id in first if id in second):
        if first[id].lineage != second[id].lineage:
            told.append(f"{id}: judged by {first[id].judge} and by {second[id].judge}, which are not the same judge")
            continue
        effect = compare(first[id], second[id])
        if effect.n == 0:
            told.append(f"{id}: the two runs share no case")
        else:
            effects.append(effect)
    return judge_all(effects), told


def check_runs(runs: tuple[Path, Path], constitutions: tuple[Constitution, Constitution]) -> list[str]:
    """Raises InputError where a run did not go by its constitution. Returns what else the two runs differ in, in words:
    what changed between them may come from that."""
    bodies = [_results(folder) for folder in runs]
    for folder, body, constitution in zip(runs, bodies, constitutions, strict=True):
        went_by = body.get("constitution") or {}
        if went_by.get("sha256") != constitution.sha256:
            raise InputError(
                f"{folder} went by a constitution {went_by.get('name', '?')!r} of another content than "
                f"{constitution.name!r} ({str(went_by.get('sha256', '?'))[:12]}, not {constitution.sha256[:12]}): "
                "give a run of each of the two that are compared"
            )
    first, second = bodies
    return [
        f"the runs differ in {key} too ({first.get(key)}, {second.get(key)}): a change may come from that"
        for key in ("model", "recipe", "seed")
        if first.get(key) != second.get(key)
    ]


def _results(folder: Path) -> dict[str, Any]:
    import orjson

    path = folder / "results.json"
    if not path.is_file():
        raise MissingResource(f"{path}: not found; give the folder of a finished run")
    try:
        body = orjson.loads(path.read_bytes())
    except ValueError as problem:
        raise InputError(f"{path}: is not JSON: {problem}") from None
    if not isinstance(body, dict):
        raise InputError(f"{path}: is not the results of a run")
    return body


def _product(folder: Path) -> dict[str, MeasureResult]:
    body = _results(folder)
    try:
        layer = body["layers"][-1]
        outcomes: dict[str, list[Outcome]] = {}
        for row in _rows(folder / "exchanges" / f"{layer}.jsonl"):
            outcomes.setdefault(row["measure"], []).append(
                Outcome(row["case"], row["cluster"], row["status"], row["value"], row["score"], row["reason"])
            )
        rows = [row for row in body["measures"] if row["layer"] == layer]
        return {row["measure"]: _result(row, str(folder), tuple(outcomes.get(row["measure"], ()))) for row in rows}
    except (KeyError, IndexError, TypeError, ValueError) as problem:
        raise InputError(f"{folder}: is not the folder of a run as `align` or `measure` writes it: {problem}") from None


def _result(row: Mapping[str, Any], name: str, outcomes: tuple[Outcome, ...]) -> MeasureResult:
    """A row of `results.json` with the cases behind it; `name` stands in the place of the layer."""
    below = row["low"] < 0 or any((outcome.value or 0.0) < 0 for outcome in outcomes)
    return MeasureResult(
        row["measure"], row["principle"], name, row["value"], row["low"], row["high"], row["n"], row["missing"],
        row["better"], row["judge"], row["lineage"], row["evidence"], difference=below, outcomes=outcomes,
    )  # fmt: skip


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    return read_lines(path) if path.is_file() else ()
