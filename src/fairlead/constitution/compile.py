"""The constitution compiled into a system prompt within a token budget: the same constitution gives the same bytes.

The principles stand by severity, each with its whole text or not at all, then the priorities between them, then as many
examples as the budget has room for. Nothing of a run or a request is in it, so a provider can cache it as a prefix;
what belongs to one request follows after it. Examples come after all the texts, so a reworded principle changes no
byte before its own place. One exception is counted as left out: a budget that only the brief form fits changes the
form from the first line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TypeAlias

from jinja2 import Environment, StrictUndefined, Template

from fairlead.constitution.prompts import template
from fairlead.constitution.schema import Constitution, Example, Principle
from fairlead.errors import InputError

Count: TypeAlias = Callable[[str], int]

BYTES_PER_TOKEN = 2
ESTIMATE = f"estimated from above, a token for every {BYTES_PER_TOKEN} bytes"

# strict: a misspelt variable must not become ""
_JINJA = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)


def upper_estimate(text: str) -> int:
    """Tokens of a text whose tokenizer is not known: one for every two bytes of UTF-8.

    Today's tokenizers need one for about four bytes of English and for two to four of other scripts.
    """
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A system prompt, what it takes, and what was left out of it.

    tokens    what `text` takes, as `counted` says
    left_out  in words, "" where nothing is
    starts    by principle id, the index in `text` at which its words begin; what stands before it does not depend on it
    """

    text: str
    tokens: int
    counted: str
    examples: int
    of_examples: int
    left_out: str = ""
    starts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Shown:
    number: int
    example: Example


def in_order(constitution: Constitution) -> tuple[Principle, ...]:
    """The principles by severity, the worst to break first; of equals in the order they are written."""
    return tuple(sorted(constitution.principles, key=lambda p: -p.severity))


def compiled(
    constitution: Constitution, budget: int | None = None, count: Count = upper_estimate, *, counted: str = ESTIMATE
) -> Compiled:
    """The fullest system prompt that takes at most `budget` tokens; the whole where there is no budget.

    budget   tokens, of the system prompt's text alone
    count    the tokens of a text, by the model's tokenizer where that is known
    counted  who counts, for print

    Raises InputError where the texts of the principles do not fit even in the brief form.
    """
    principles = in_order(constitution)
    examples = [_Shown(n, example) for n, p in enumerate(principles, 1) for example in p.good]
    whole = partial(_rendered, "system", constitution, principles)
    if budget is None or count(whole(examples)) <= budget:
        return _told(whole(examples), principles, count, counted, len(examples), len(examples), "")
    if count(whole([])) <= budget:
        kept: list[_Shown] = []
        for shown in examples:  # in order, each that still fits; whether it does depends on nothing after it
            if count(whole([*kept, shown])) <= budget:
                kept.append(shown)
        left = f"{len(examples) - len(kept)} of {_examples(len(examples))}"
        return _told(whole(kept), principles, count, counted, len(kept), len(examples), left)
    brief = _rendered("system_brief", constitution, principles, [])
    if count(brief) > budget:
        raise InputError(
            f"constitution {constitution.name!r}: its {len(principles)} principles take {count(brief):,} tokens "
            f"({counted}) without any example, and the budget is {budget:,}; no principle is cut or left out, so give "
            "a greater budget, write shorter texts, or name a shorter text as the prompt"
        )
    left = f"{_examples(len(examples))}, weights and explanations" if examples else "weights and explanations"
    return _told(brief, principles, count, counted, 0, len(examples), left)


def system_prompt(constitution: Constitution) -> str:
    """The whole constitution as a system prompt, whatever it takes."""
    return compiled(constitution).text


def _examples(n: int) -> str:
    return f"{n} example" if n == 1 else f"{n} examples"


def _told(
    text: str, principles: Sequence[Principle], count: Count, counted: str, examples: int, of: int, left_out: str
) -> Compiled:
    starts: dict[str, int] = {}
    at = 0
    for p in principles:
        starts[p.id] = at = text.index(p.text, at)
        at += len(p.text)
    return Compiled(text, count(text), counted, examples, of, left_out, starts)


def _rendered(
    name: str, constitution: Constitution, principles: Sequence[Principle], examples: Sequence[_Shown]
) -> str:
    number = {p.id: n for n, p in enumerate(principles, 1)}
    orders = [(number[p.id], number[other]) for p in principles for other in p.over]
    filled = _template(name).render(
        assistant=constitution.assistant, principles=principles, orders=orders, examples=examples
    )
    return filled.strip()


@cache
def _template(name: str) -> Template:
    return _JINJA.from_string(template(name))
