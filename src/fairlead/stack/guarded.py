"""What a guard did while its layer was measured: heard while the cases are asked, kept with what they came to.

Counts are per conversation: measures that ask the same prompt share its reply, and it counts once. A run that finds
everything in the cache so tells the same as the one that asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from fairlead.guard.guard import GuardedModel
from fairlead.guard.log import GuardLog, Record
from fairlead.judges.lineage import case_key
from fairlead.measures.measure import Asking, Audit, Measure
from fairlead.models.protocol import Prompt, Reply
from fairlead.stack.stages.prompt import PromptedModel

Row: TypeAlias = dict[str, Any]  # one reply: prompt, released, decisions, failed, withheld


def guard_of(model: Any) -> GuardedModel | None:
    """The outermost guard of a layer's model, through the prompts before it."""
    while isinstance(model, PromptedModel):
        model = model.model
    return model if isinstance(model, GuardedModel) else None


@dataclass
class Ears:
    """Who asked what, and what the guard did about it."""

    log: GuardLog | None
    calls: list[Sequence[Prompt]] = field(default_factory=list)
    asked: dict[str, set[str]] = field(default_factory=dict)  # measure id -> keys of its prompts

    def called(self, prompts: Sequence[Prompt]) -> None:
        """A call of the model begins; its records will carry its number."""
        self.calls.append(prompts)

    def noting(self, measure: Measure) -> Measure:
        """The measure, with the prompts it asks noted."""
        keys = self.asked.setdefault(measure.id, set())

        def ask(_: Measure, cases: Sequence[Any], audit: Audit) -> Asking:
            going = measure.ask(measure, cases, audit)
            replies: list[Reply] | None = None
            while True:
                try:
                    prompts = next(going) if replies is None else going.send(replies)
                except StopIteration as done:
                    return done.value  # type: ignore[no-any-return]
                keys.update(case_key(prompt) for prompt in prompts)
                replies = yield prompts

        return replace(measure, ask=ask)

    def rows(self) -> dict[str, list[Row]]:
        """The guard's rows by measure; no measure where there is no guard."""
        if self.log is None:
            return {}
        found = {}
        for record in self.log.records:
            key = case_key(self.calls[record.call][record.prompt])
            found[key] = _row(key, record)
        return {id: [found[key] for key in sorted(keys & found.keys())] for id, keys in self.asked.items()}


@contextmanager
def listening(model: Any) -> Iterator[Ears]:
    """Hear everything that the guard of this model does, and nothing of what it did before."""
    guard = guard_of(model)
    if guard is None:
        yield Ears(None)
        return
    before, guard.log = guard.log, GuardLog(every=True)
    try:
        yield Ears(guard.log)
    finally:
        guard.log = before


def _row(key: str, record: Record) -> Row:
    return {
        "prompt": key,
        "released": record.released,
        "decisions": [[d.principle or d.check, d.outcome] for d in record.decisions],
        "failed": [list(item) for item in record.failed],
        "withheld": list(record.withheld),
    }


def unanswered(rows: Iterable[Row]) -> bool:
    """Whether a critic's server left a check without an answer: that is asked again the next time."""
    return any("did not answer" in why for row in rows for _, _, why in row["failed"])


def summary(layers: Mapping[str, Iterable[Row]]) -> dict[str, Any] | None:
    """`results["guard"]`: the counts over all guarded layers, or None without any."""
    rows = [row for found in layers.values() for row in {row["prompt"]: row for row in found}.values()]
    if not rows:
        return None
    total = GuardLog()
    for row in rows:
        total.released[row["released"]] += 1
        total.withheld.update(row["withheld"])
        for principle, outcome in row["decisions"]:
            total.decisions[principle, outcome] += 1
        for check, how, _ in row["failed"]:
            total.failed[check, how] += 1
    return total.summary()


def warnings(layers: Mapping[str, Iterable[Row]]) -> list[str]:
    """One sentence for each check that failed at a layer: how often, what followed, and the first reason."""
    told = []
    for layer, found in layers.items():
        rows = {row["prompt"]: row for row in found}
        failed: dict[tuple[str, str], dict[str, str]] = {}
        for key in sorted(rows):
            for check, how, why in rows[key]["failed"]:
                failed.setdefault((check, how), {}).setdefault(key, why)
        for (check, how), reasons in sorted(failed.items()):
            then = "refused" if how == "closed" else "let through"
            first = next(iter(reasons.values()))
            told.append(
                f"{layer}: the check {check} failed on {len(reasons):,} of {len(rows):,} replies, "
                f"which were {then} ({first})"
            )
    return told
