"""Asking a check, whatever it is made of: what goes wrong inside it is a decision `failed` that says what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fairlead.errors import FairleadError
from fairlead.exchange import Exchange
from fairlead.guard.decision import Check, Decision

USED_UP = "the tenant's budget is used up"


def answers(check: Check, exchanges: Sequence[Exchange]) -> list[Decision]:
    """The decisions of one check.

    What a user can mend is raised instead: a check that could not be asked at all has refused nothing.
    """
    return answers_of(check, check.decide, (Decision,), exchanges)


def answers_of(
    check: Check,
    ask: Callable[[Sequence[Exchange]], Sequence[Any]],
    kinds: tuple[type, ...],
    exchanges: Sequence[Exchange],
    *,
    alone: int = 0,
    quiet: bool = False,
) -> list[Any]:
    """What `ask`, a method of the check, says; an answer that is none of `kinds` is a failure.

    Where it raises, a check of cost `alone` or less is asked again about each exchange alone: one hostile reply must
    not fail the whole batch. The words of an error may quote the reply: `quiet` leaves them out.
    """
    if not exchanges:
        return []
    try:
        said: object = ask(exchanges)
    except (FairleadError, MemoryError):
        raise  # a wrong key, a dead server, an empty purse: for the user to mend, and no word about the reply
    except Exception as problem:  # noqa: BLE001  # becomes a counted `failed`, by default closed: nothing is hidden
        if len(exchanges) > 1 and check.cost <= alone:
            return [
                one for item in exchanges for one in answers_of(check, ask, kinds, [item], alone=alone, quiet=quiet)
            ]
        why = f"raised {type(problem).__name__}" if quiet else f"{type(problem).__name__}: {problem}"
        return [failure(check, why) for _ in exchanges]
    if not isinstance(said, Sequence):
        return [failure(check, "gave no decisions") for _ in exchanges]
    if len(said) != len(exchanges):
        told = f"gave {len(said)} decisions for {len(exchanges)} exchanges"
        return [failure(check, told) for _ in exchanges]
    return [one if isinstance(one, kinds) else failure(check, "gave no decision") for one in said]


def failure(check: Check, why: str) -> Decision:
    return Decision("failed", check.principle, why, (), check.name)
