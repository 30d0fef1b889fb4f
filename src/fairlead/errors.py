"""The errors a user can do something about, each with the exit code of its kind.

A message says what is wrong, where (file, line, row), and what to do next. The command line prints it
without a traceback; anything that is not a `FairleadError` is a bug of ours and ends with code 70.
"""

from __future__ import annotations

from typing import ClassVar


class FairleadError(Exception):
    """Base of everything raised on purpose for a user to read."""

    exit_code: ClassVar[int] = 70


class InputError(FairleadError):
    """The input is wrong: a file, a key, an option (exit 2)."""

    exit_code: ClassVar[int] = 2


class CannotTell(FairleadError):
    """The evidence does not decide the question; the message names the n that would (exit 3)."""

    exit_code: ClassVar[int] = 3


class MissingResource(FairleadError):
    """A model, server, GPU, key, package or disk space is missing (exit 4)."""

    exit_code: ClassVar[int] = 4


class BudgetReached(FairleadError):
    """The calls, tokens or money allowed for this run are used up (exit 5)."""

    exit_code: ClassVar[int] = 5
