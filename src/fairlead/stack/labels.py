"""AI labels of pairs in bulk: a constitution and a critic become a function over rows, and a job runs it.

Puts together what may not know each other: `feedback.bulk` streams rows and keeps labels, `methods.ai_labels` reads
pairs by principles, `feedback.fleet` is the model behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import orjson
from pydantic import BaseModel, ConfigDict, Field

from fairlead.constitution.schema import Constitution
from fairlead.errors import InputError
from fairlead.exchange import to_json
from fairlead.feedback.answers import Answers, Dry, Remembered
from fairlead.feedback.bulk import Outcome, Pace, RowFunction
from fairlead.feedback.files import BadRow
from fairlead.feedback.fleet import open_fleet
from fairlead.feedback.shards import JobFolder
from fairlead.feedback.stream import Survey
from fairlead.feedback.twos import TwoReplies, read_two
from fairlead.feedback.write import write_whole
from fairlead.judges.critic import HowToCompare, critic
from fairlead.judges.lineage import lineage_hash, merge
from fairlead.judges.protocol import Comparer
from fairlead.methods.ai_labels import LabelConfig, PairLabel, as_preference, is_near_tie, label_pairs
from fairlead.models import Budget, Price
from fairlead.models.protocol import Model
from fairlead.models.remote import Estimate, Limits
from fairlead.models.toolong import TOO_LONG
from fairlead.stack.estimate import NOTHING
from fairlead.stack.identity import code_hash, digest

CODE = (
    "judges",
    "methods/ai_labels",
    "methods/panel",
    "feedback/twos",
    "feedback/shapes_pairs",
    "constitution/prompts",
)
LIMITS = Limits(attempts=4, deadline=300.0)  # of a call to one server: there may be others to ask
WORKERS, CHUNK = 4, 16  # threads for each server, rows in a call
LOCAL = Pace(1, 64)
TOO_SIMILAR = "the two replies are the same"


class LabelSettings(BaseModel):
    """How a critic reads a pair, and what becomes of its reading.

    how            "template" shows both replies; "reasoned" has the critic write down its reasons first; "pointwise"
                   compares two separate judgements
    samples        answers per question where the critic has no log-probs
    max_tokens     room for such an answer
    reason_tokens  room for the reasons
    label          principles drawn, clamp, near ties, seed
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    how: HowToCompare = "template"
    samples: int = Field(default=5, ge=1)
    max_tokens: int = Field(default=16, ge=1)
    reason_tokens: int = Field(default=256, ge=1)
    label: LabelConfig = LabelConfig()


@dataclass(frozen=True, slots=True)
class Access:
    """How a critic's model is reached, in values that another process can be given.

    spec     as `open_model` takes it; `PROVIDER/NAME@URL,URL2` is one model on two servers
    cache    where its answers are kept; None keeps none
    budget   as `Budget.parse` reads it
    timeout  seconds of one call to a server
    """

    spec: str
    cache: Path | None = None
    budget: str | None = None
    prices: Mapping[str, Price] | None = None
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Reader:
    """The open model behind a critic. `fleet` is asked; what it answered is in `answers`, where there is a cache."""

    access: Access
    fleet: Any
    budget: Budget | None = None
    answers: Answers | None = None

    @property
    def spec(self) -> str:
        return self.access.spec

    @property
    def remote(self) -> bool:
        return hasattr(self.fleet, "spent")

    @property
    def identity(self) -> str:
        """Who answers, wherever it is served: a remote model's provider and name, local weights by their hash."""
        return self.spec.partition("@")[0] if self.remote else str(self.fleet.lineage)

    @property
    def pace(self) -> Pace:
        return Pace(WORKERS * len(self.fleet), CHUNK) if self.remote else LOCAL

    def model(self, take: int = 0) -> Model:
        """The model to ask; repeats of a question differ in their `take`."""
        return _kept(self.fleet, self.answers, take, True)

    def dry(self) -> tuple[Dry, Model]:
        """A model that notes what would be asked, answers in the cache left out, and asks nothing."""
        dry = Dry(self.fleet)
        return dry, _kept(dry, self.answers, 0, False)


def _kept(model: Any, answers: Answers | None, take: int, keep: bool) -> Model:
    wrapped: Any = model if answers is None else Remembered(model, answers, take=take, keep=keep)
    return cast("Model", wrapped)


def open_reader(access: Access, say: Callable[[str], None] = lambda text: None, *, share: int = 1) -> Reader:
    """Open a critic's model. `share`: of so many that are opened, each has its part of the budget."""
    budget = Budget.parse(access.budget) if access.budget else None
    if budget is not None and share > 1:
        usd, tokens = budget.usd, budget.tokens
        budget = Budget(usd=usd / share) if usd is not None else Budget(tokens=max(1, (tokens or 0) // share))
    limits = LIMITS if access.timeout is None else LIMITS.model_copy(update={"timeout": access.timeout})
    fleet = open_fleet(access.spec, budget=budget, limits=limits, prices=access.prices, say=say)
    reader = Reader(access, fleet, budget)
    if access.cache is None:
        return reader
    file = access.cache / "answers" / f"{digest({'model': reader.identity})[:32]}.sqlite"
    return Reader(access, fleet, budget, Answers(file))


# ---------------------------------------------------------------------------------------------- the function


def comparers_of(constitution: Constitution, model: Model, settings: LabelSettings) -> list[Comparer]:
    """One critic for each principle, in their order."""
    return [
        critic(principle, model, samples=settings.samples, comparer=settings.how, max_tokens=settings.max_tokens,
               reason_tokens=settings.reason_tokens)
        for principle in constitution.principles
    ]  # fmt: skip


def labeller(constitution: Constitution, model: Model, settings: LabelSettings) -> RowFunction:
    """Rows of two replies to labels. A label hangs on the row's texts alone: not on its place, nor on its neighbours.

    A value holds `p` (P(first better), the first being the reply whose hash is lower), `preference` (the better reply
    first; None for a near tie that is left out), `said` (P(first better) by the file, None where it says nothing), and
    how it was read.
    """
    comparers = comparers_of(constitution, model, settings)
    config = settings.label

    def label(rows: Sequence[Any]) -> list[Outcome]:
        read = [_pair(row) for row in rows]
        good = [two for two in read if isinstance(two, TwoReplies)]
        try:
            keys = [two.key for two in good]
            labels = label_pairs([two.pair for two in good], constitution.principles, comparers, config, keys=keys)
        except InputError as error:
            if TOO_LONG not in str(error):
                raise
            return [Outcome(None, two if isinstance(two, str) else TOO_LONG) for two in read]
        waiting = iter(labels)
        return [Outcome(None, two) if isinstance(two, str) else _outcome(two, next(waiting), config) for two in read]

    return label


@dataclass(frozen=True, slots=True)
class MakeLabeller:
    """Makes the function in another process, with its part of the budget and without the cache.

    The cache is one file, which processes of several machines must not share; what a worker labelled is in the job's
    folder all the same.
    """

    constitution: Constitution
    access: Access
    settings: LabelSettings
    share: int

    def __call__(self) -> RowFunction:
        reader = open_reader(replace(self.access, cache=None), share=self.share)
        return labeller(self.constitution, reader.model(), self.settings)


def _pair(row: Any) -> TwoReplies | str:
    """The pair of a row, or why there is none to compare."""
    try:
        two = read_two(row)
    except BadRow as error:
        return f"no pair: {error}"
    return TOO_SIMILAR if two.first == two.second else two


def _outcome(two: TwoReplies, label: PairLabel, config: LabelConfig) -> Outcome:
    if label.p is None:
        return Outcome(None, label.reason or "no label")
    preference = None if is_near_tie(label, config) else as_preference(two.pair, label)
    value = {
        "p": label.p,
        "said": two.p_first,
        "preference": to_json(preference),
        "principles": list(label.principles),
        "shown_first": label.shown_first,
        "shown_second": label.shown_second,
        "flipped": label.flipped,
        "answers": label.answers,
        "unreadable": label.unreadable,
        "cut": label.cut,
    }
    return Outcome(value)


# --------------------------------------------------------------------------------------------------- the job


def facts(found: Survey, constitution: Constitution, reader: Reader, settings: LabelSettings) -> dict[str, Any]:
    """What determines the labels: a folder with other facts holds another job."""
    return {
        "function": "AI labels of pairs",
        "code": code_hash(*CODE),
        "input": {"sha256": found.sha256},
        "constitution": {"name": constitution.name, "sha256": constitution.sha256},
        "critic": reader.identity,
        "settings": settings.model_dump(mode="json"),
    }


def estimate(found: Survey, folder: JobFolder, make: Callable[[Model], RowFunction], reader: Reader) -> Estimate:
    """What the rest of a job will ask and cost, from rendering a sample of its rows. Local models cost nothing."""
    if not reader.remote:
        return NOTHING
    sample = [raw.value() for raw in found.sample if not folder.has(raw.index)]
    left = folder.rows - folder.kept
    rows = [value for value in sample if not isinstance(value, BadRow)]
    if not rows or not left:
        return NOTHING
    dry, model = reader.dry()
    make(model)(rows)
    total = NOTHING
    for sampling in dict.fromkeys(sampling for _, sampling in dry.asked):
        total += reader.fleet.estimate([prompt for prompt, asked in dry.asked if asked == sampling], sampling)
    share = left / len(sample)
    calls, read, written = (round(n * share) for n in (total.calls, total.prompt_tokens, total.completion_tokens))
    return Estimate(calls, read, written, None if total.usd is None else total.usd * share)


def totals(folder: JobFolder) -> dict[str, Any]:
    """What the labels of the finished shards came to, read through once."""
    labelled, reasons = folder.counts()
    counts: Counter[str] = Counter(pairs=sum(entry["rows"] for entry in folder.index.values()))
    counts["unlabelled"] = sum(reasons.values())
    biases = [0.0, 0]
    for line in folder.labels():
        value = line["value"]
        if value is None:
            continue
        counts["near_ties" if value["preference"] is None else "labelled"] += 1
        counts["ties"] += value["p"] == 0.5
        counts["order_flips"] += bool(value["flipped"])
        for name in ("answers", "unreadable", "cut"):
            counts[name] += value[name]
        if value["shown_first"] is not None:
            biases = [biases[0] + value["shown_first"] - value["shown_second"], biases[1] + 1]
    return {
        "rows": folder.rows,
        "on_disk": folder.kept,
        "labelled": labelled,
        "unlabelled": dict(reasons.most_common()),
        "counts": dict(counts),
        "position_bias": biases[0] / biases[1] if biases[1] else None,
    }


def write_preferences(folder: JobFolder) -> Path:
    """The labels as preferences that training reads, `preferences.jsonl`: rows without one are not in it."""
    file = folder.path / "preferences.jsonl"

    def lines() -> Iterator[bytes]:
        for line in folder.labels():
            if line["value"] is not None and line["value"]["preference"] is not None:
                yield orjson.dumps(line["value"]["preference"], option=orjson.OPT_APPEND_NEWLINE)

    write_whole(file, lines())
    return file


def lineage_of(constitution: Constitution, reader: Reader, settings: LabelSettings) -> str:
    """Who stands on the train side where these labels are learnt from."""
    return lineage_hash(merge(c.lineage for c in comparers_of(constitution, reader.fleet, settings)))
