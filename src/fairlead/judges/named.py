"""Judges by name, as a command line gives them: `mentions`, `numeric:0.5`, `rule:emoji`, `critic:no-harm`, or a reward
model's folder.

An objective is written `[NAME=][WEIGHT*]JUDGE`; `parsed` takes it apart, `open_judge` opens its judge. To add a judge,
add a function of its argument (what stands behind the colon) to `JUDGES`. Free of torch, but for folders.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fairlead.errors import InputError
from fairlead.judges import code, formats, rules, verifiers
from fairlead.judges.protocol import Judge
from fairlead.models.protocol import Model

_NAMED = re.compile(r"^([A-Za-z_][\w-]*)=(.+)$", re.DOTALL)
_WEIGHTED = re.compile(r"^([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\*(.+)$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Named:
    """`[NAME=][WEIGHT*]JUDGE` taken apart. `name` is the judge as it was written where none was given."""

    judge: str
    weight: float = 1.0
    name: str = ""


def parsed(spec: str) -> Named:
    """The parts of an objective. Raises InputError for one without a judge."""
    name, rest = "", spec.strip()
    found = _NAMED.match(rest)
    if found is not None and not Path(rest).is_dir():  # a folder may have = in its name
        name, rest = found[1], found[2].strip()
    weighted = _WEIGHTED.match(rest)
    weight, judge = (float(weighted[1]), weighted[2].strip()) if weighted else (1.0, rest)
    if not judge or judge.endswith("="):
        raise InputError(f"{spec!r}: names no judge; write [NAME=][WEIGHT*]JUDGE, where JUDGE is {known()}")
    return Named(judge, weight, name or judge)


@dataclass(frozen=True, slots=True)
class Reader:
    """What a critic by name needs: the constitution that holds its principle, and the model that reads it, as `open`
    opens it."""

    constitution: str
    model: str
    open: Callable[[str], Model] | None = None


def open_judge(spec: str, *, oracle: bool = False, reader: Reader | None = None) -> Judge:
    """The judge that a name or a folder means. The folder of a reward model or of an ensemble of them needs torch.

    oracle   allow `gold:MEASURE`: the truth of the apprentice's world, which no real task has
    reader   of `critic:PRINCIPLE`

    Raises InputError saying what exists.
    """
    head, colon, argument = spec.partition(":")
    if head == "gold":
        return _gold(spec, argument, oracle)
    if head == "critic":
        return _critic(spec, argument, reader)
    make = JUDGES.get(head)
    if make is not None:
        if colon and not argument:
            raise InputError(f"{spec}: nothing stands behind the colon")
        return make(argument)
    folder = Path(spec).expanduser()
    if folder.is_dir():
        from fairlead.judges.reward_ensemble import open_reward_folder

        return open_reward_folder(folder, name=spec)
    looked = f"{spec}: no such folder, and no judge of this name" if _is_path(spec) else f"unknown judge {spec!r}"
    raise InputError(f"{looked}; a judge is {known()}")


def known() -> str:
    """What may stand for a judge, in words."""
    return (
        f"a reward model's folder, {', '.join(_SHOWN)}, critic:PRINCIPLE, gold:MEASURE (with --oracle), or rule:NAME "
        f"({', '.join(RULES)})"
    )


# ---------------------------------------------------------------------------------------------------- within


def _plain(make: Callable[[], Judge]) -> Callable[[str], Judge]:
    """A judge that takes no argument."""

    def made(argument: str) -> Judge:
        judge = make()
        if argument:
            raise InputError(f"{judge.name}: takes no argument, and {argument!r} was given")
        return judge

    return made


def _numeric(argument: str) -> Judge:
    try:
        tolerance = float(argument or 0)
    except ValueError:
        tolerance = -1.0
    if not 0 <= tolerance < float("inf"):
        raise InputError(f"numeric:{argument}: the tolerance is a number of at least 0, in the reference's own units")
    return verifiers.numeric(tolerance)


def _regex(argument: str) -> Judge:
    if not argument:
        raise InputError("regex: give the pattern behind a colon, as in 'regex:^yes'")
    try:
        return verifiers.matches(argument)
    except re.error as error:
        raise InputError(f"regex:{argument}: not a regular expression: {error}") from error


def _code(argument: str) -> Judge:
    """The reply's code against the case's tests, in a sandbox."""
    if argument not in ("", "share"):
        raise InputError(f"code:{argument}: write code (all tests pass) or code:share (the share that does)")
    return code.passes_tests(share=argument == "share")


def _format(argument: str) -> Judge:
    return formats.formatted(argument) if argument else formats.formatted()


def _length(argument: str) -> Judge:
    if argument and not (argument.isdigit() and int(argument)):
        raise InputError(f"rule:length:{argument}: the bound is a number of words, at least 1")
    return rules.length(int(argument)) if argument else rules.length()


def _rule(argument: str) -> Judge:
    head, colon, rest = argument.partition(":")
    make = RULES.get(head)
    if make is None:
        raise InputError(f"rule:{argument}: no such rule; there are {', '.join(RULES)}")
    if colon and not rest:
        raise InputError(f"rule:{argument}: nothing stands behind the colon")
    return make(rest)


def _gold(spec: str, measure: str, oracle: bool) -> Judge:
    if not oracle:
        raise InputError(
            f"{spec}: the truth itself as a judge is not to be had outside the apprentice's world; say --oracle if "
            "that is what you want to see"
        )
    from fairlead.judges.gold import gold

    try:
        return gold(measure)
    except ValueError as error:
        raise InputError(f"{spec}: {error}") from error


def _critic(spec: str, principle: str, reader: Reader | None) -> Judge:
    """A model that reads one principle of a constitution."""
    from fairlead.constitution import load
    from fairlead.judges.critic import critic
    from fairlead.models import open_model

    if reader is None:
        raise InputError(f"{spec}: nobody is there to read the principle")
    constitution = load(reader.constitution)
    found = {one.id: one for one in constitution.principles}
    if principle not in found:
        raise InputError(
            f"{spec}: constitution {constitution.name!r} has no principle {principle!r}; it has {', '.join(found)}"
        )
    return critic(found[principle], (reader.open or open_model)(reader.model))


def _is_path(spec: str) -> bool:
    return "/" in spec or spec.startswith((".", "~"))


RULES: Mapping[str, Callable[[str], Judge]] = {
    "refusal": _plain(rules.declines),
    "answers": _plain(rules.answers),
    "length": _length,
    "emoji": _plain(rules.no_emoji),
    "flattery": _plain(rules.no_flattery),
    "polite": _plain(rules.polite),
    "agreement": _plain(verifiers.does_not_agree),
}
JUDGES: Mapping[str, Callable[[str], Judge]] = {
    "exact": _plain(verifiers.exact),
    "mentions": _plain(verifiers.mentions),
    "numeric": _numeric,
    "regex": _regex,
    "unknown": _plain(verifiers.admits_unknown),
    "code": _code,
    "format": _format,
    "language": lambda argument: formats.language_consistent(argument or None),
    "rule": _rule,
}
_ARGUMENTS = {
    "numeric": "numeric[:TOLERANCE]", "regex": "regex:PATTERN", "code": "code[:share]", "format": "format[:PATTERN]",
    "language": "language[:LANGUAGE]",
}  # fmt: skip
_SHOWN = [_ARGUMENTS.get(name, name) for name in JUDGES if name != "rule"]
