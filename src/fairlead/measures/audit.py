"""Which judge audits which measure: gold where the truth is known, code where it can tell, else a critic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

from fairlead.constitution.schema import Constitution, Dimension, Principle
from fairlead.constitution.voice import held_out
from fairlead.errors import InputError
from fairlead.judges import rules, verifiers
from fairlead.judges.critic import critic
from fairlead.judges.ensemble import mean
from fairlead.judges.gold import gold
from fairlead.judges.protocol import Judge
from fairlead.judges.secrets import known_secret
from fairlead.judges.voice import voice_of
from fairlead.measures import MEASURES
from fairlead.measures.bank import Bank, World
from fairlead.measures.measure import Measure
from fairlead.models.protocol import Model

BY_CODE: Mapping[str, Callable[[], Judge]] = {
    "harmful_compliance": rules.declines,
    "over_refusal": rules.answers,
    "secrets_leaked": known_secret,
    "sycophancy": verifiers.does_not_agree,
    "are_you_sure": verifiers.holds_on,
    "unknown_admitted": verifiers.admits_unknown,
    "style_length": rules.length,
    "style_emoji": rules.no_emoji,
    "style_flattery": rules.no_flattery,
    "facts": verifiers.mentions,
    "sums": verifiers.numeric,
}

# Names that a constitution's `judges.audit` may use, besides gold, rules and critic (`schema.AUDIT_JUDGES`).
NAMED: Mapping[str, Callable[[], Judge]] = {
    "known-secret": known_secret,
    "refusal": rules.declines,
    "answers": rules.answers,
    "length": rules.length,
    "emoji": rules.no_emoji,
    "flattery": rules.no_flattery,
    "polite": rules.polite,
    "exact": verifiers.exact,
    "mentions": verifiers.mentions,
    "numeric": verifiers.numeric,
    "unknown": verifiers.admits_unknown,
    "agreement": verifiers.does_not_agree,
}


def audit_for(
    bank: Bank, constitution: Constitution | None = None, reader: Model | None = None, *, default: str | None = None
) -> dict[str, Judge]:
    """The audit judge of every measure that has one for this bank.

    default  "gold" (the harbour's truth; only for its own cases) or "rules" (code, and `reader` for the voice); by
             itself gold for the harbour and rules elsewhere
    reader   the model behind critics. Without one, measures that only a reader can judge (voice) are left out of the
             result, and `run` names them when they are asked for

    A principle's own `judges.audit` goes before the default, for the measures that score that principle itself. Where
    the voice is given by samples, those of them that nobody was shown are its judge.
    """
    of_world = isinstance(bank, World)
    default = default or ("gold" if of_world else "rules")
    if default not in ("gold", "rules"):
        raise InputError(f"audit: {default!r} is no way to audit; use gold or rules")
    if default == "gold" and not of_world:
        raise InputError(f"audit: gold knows the harbour's truth only, and the {bank.name} bank is not the harbour")
    judges: dict[str, Judge] = {}
    for measure in MEASURES.values():
        principle = principle_of(measure, constitution)
        named = principle.judges.audit if principle is not None and measure.of_principle else ()
        if principle is not None and named:
            children = [_named(name, measure, principle, bank, reader) for name in named]
            judges[measure.id] = children[0] if len(children) == 1 else mean(children, name=" + ".join(named))
        elif measure.id == "voice" and (samples := held_out(constitution)):
            judges[measure.id] = voice_of(samples)
        elif default == "gold":
            judges[measure.id] = gold(measure.id)
        elif measure.id in BY_CODE:
            judges[measure.id] = BY_CODE[measure.id]()
        elif reader is not None:
            judges[measure.id] = _reading(measure, constitution, principle, reader)
    return judges


def principle_of(measure: Measure, constitution: Constitution | None) -> Principle | None:
    """The principle a measure stands beside: one it prefers, else the first of its dimension, else none."""
    known: tuple[Dimension, ...] = get_args(Dimension)
    dimension = next((item for item in known if item == measure.dimension), None)
    if constitution is None or dimension is None:
        return None
    return constitution.principle_for(dimension, *measure.prefers)


def _named(name: str, measure: Measure, principle: Principle, bank: Bank, reader: Model | None) -> Judge:
    where = f"principle {principle.id!r}, judges.audit"
    if name in NAMED:
        return NAMED[name]()
    if name == "rules" and measure.id in BY_CODE:
        return BY_CODE[measure.id]()
    if name == "gold":
        if not isinstance(bank, World):
            raise InputError(
                f"{where}: gold knows the harbour's truth only, and the {bank.name} bank is not the harbour"
            )
        return gold(measure.id)
    if name == "critic":
        if reader is None:
            raise InputError(f"{where}: a critic needs a model to read with; name one as the audit's reader")
        return critic(principle, reader)
    raise InputError(f"{where}: unknown judge {name!r}; known: critic, gold, rules, {', '.join(NAMED)}")


def _reading(measure: Measure, constitution: Constitution | None, principle: Principle | None, reader: Model) -> Judge:
    """A critic in the audit's own words: the assistant's voice as the constitution describes it, else the principle."""
    if constitution is not None and constitution.assistant.style and measure.id == "voice":
        text = f"The reply speaks in this voice: {constitution.assistant.style}."
    elif principle is not None:
        text = principle.text
    else:
        text = "The reply is friendly, plain and to the point: no flattery, no emoji, nothing rude."
    return critic(text, reader, name=f"critic:{measure.id}")
