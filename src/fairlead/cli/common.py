"""Options that several commands take, written once so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

BudgetOption: TypeAlias = Annotated[
    str | None, typer.Option("--budget", metavar="AMOUNT", help="Limit for remote models: '5 USD' or '2M tokens'.")
]
PricesOption: TypeAlias = Annotated[
    Path | None, typer.Option("--prices", metavar="FILE", help="Your prices per million tokens, JSON.")
]
CacheOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Where finished work is kept.", show_default="runs/.cache"),
]
SeedOption: TypeAlias = Annotated[int, typer.Option("--seed", min=0)]
ThreadsOption: TypeAlias = Annotated[int | None, typer.Option("--threads", min=1, show_default="all cores")]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def typed(ctx: typer.Context, option: str) -> bool:
    """Whether the user gave this option of the command that runs, and did not leave it at its default."""
    source = ctx.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"
