"""The first layer and the last side by side on the same prompts: the base, and the product made of it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

from fairlead.report import words
from fairlead.report.run import Run, Told
from fairlead.report.turns import Turn, turns

SHOWN = 8
RULE = (
    "Picked by a rule that looks at no answer: of each measure the first case, then the second, and so on, no prompt "
    "twice."
)


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt, what the first layer answered and what the last one did, and what the judge made of each."""

    title: str
    asked: list[Turn]
    first: list[Turn]
    last: list[Turn]
    before: str
    after: str


def beside(run: Run, hide_text: bool) -> list[Pair]:
    """At most eight prompts that both layers answered; none where there is one layer alone."""
    if run.first == run.last:
        return []
    by_measure = [_cases(run, measure) for measure in run.measures]
    found: list[Pair] = []
    seen: set[str] = set()
    for row in zip_longest(*by_measure):
        for both in row:
            if both is None or len(found) == SHOWN:
                continue
            before, after = both
            assert before.exchange is not None and after.exchange is not None
            prompt = "\0".join(message.text for message in after.exchange.messages)
            if prompt in seen:
                continue
            seen.add(prompt)
            said = turns(after.exchange, hide_text)
            found.append(
                Pair(
                    title=words.title(after.measure),
                    asked=[turn for turn in said if not turn.reply],
                    first=turns(before.exchange, hide_text, reply_only=True),
                    last=turns(after.exchange, hide_text, reply_only=True),
                    before=_outcome(run, before),
                    after=_outcome(run, after),
                )
            )
    return found


def _cases(run: Run, measure: str) -> list[tuple[Told, Told]]:
    """Cases of a measure that both layers answered, in the order asked."""
    found = []
    for item in run.told:
        if item.measure != measure or item.layer != run.first or item.exchange is None or not item.exchange.reply:
            continue
        later = run.told_at(measure, run.last, item.case)
        if later is not None and later.exchange is not None and later.exchange.reply:
            found.append((item, later))
    return found


def _outcome(run: Run, item: Told) -> str:
    """In keeping or not, in two words; empty where the judge said nothing, or the measure is no rate."""
    if item.value is None or run.is_difference(item.measure):
        return ""
    good = (item.value > 0.5) == (run.any_row(item.measure).better == "higher")
    return "in keeping" if good else "not in keeping"
