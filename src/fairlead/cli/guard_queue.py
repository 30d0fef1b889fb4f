"""`fairlead guard audit queue`: exchanges that the guard put before people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from fairlead.cli.common import JsonOption

app = typer.Typer(no_args_is_help=True, help="Exchanges that the guard put before people.")

LogArgument: TypeAlias = Annotated[Path, typer.Argument(help="The log.", metavar="LOG")]
KeyOption: TypeAlias = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", help="Its key.", show_default="LOG with .key")
]
LOG = Path("audit.db")
MOST = 10_000  # listed at once


@app.command("list")
def list_(
    log: LogArgument = LOG,
    state: Annotated[str, typer.Option("--state", help="open, claimed, decided or all.")] = "open",
    as_json: JsonOption = False,
) -> None:
    """Those that wait, oldest first."""
    import contextlib

    from fairlead.cli.terminal import print_json
    from fairlead.errors import InputError
    from fairlead.exchange import to_json
    from fairlead.guard.audit import queue
    from fairlead.guard.audit.store import connect

    if state not in ("open", "claimed", "decided", "all"):
        raise InputError(f"--state is {state!r}: say open, claimed, decided or all")
    with contextlib.closing(connect(log, readonly=True)) as db:
        items = queue.waiting(db, None if state == "all" else state, limit=MOST)  # type: ignore[arg-type]
        counts = queue.count(db)
    if as_json:
        print_json(to_json(items))
        return
    for item in items:
        by = f", {item.decision} by {item.who}" if item.decision else f", claimed by {item.who}" if item.who else ""
        typer.echo(f"{item.id}  {item.request}  {item.principle or '–'}: {item.evidence}{by}")
    typer.echo(", ".join(f"{n:,} {name}" for name, n in counts.items()))
    if len(items) == MOST:
        typer.echo(f"the oldest {MOST:,} are listed")


@app.command("show")
def show_waiting(
    id: Annotated[int, typer.Argument(help="Its number in the list.", show_default=False)],
    log: LogArgument = LOG,
    as_json: JsonOption = False,
) -> None:
    """One of them, with the whole exchange."""
    import contextlib

    from fairlead.cli.terminal import print_json
    from fairlead.exchange import to_json
    from fairlead.guard.audit import queue
    from fairlead.guard.audit.store import connect

    with contextlib.closing(connect(log, readonly=True)) as db:
        item = queue.find(db, id)
    if as_json:
        print_json(to_json(item))
        return
    typer.echo(f"{item.id}  {item.request}  {item.principle or '–'}: {item.evidence} ({item.state})")
    if item.exchange is None:
        typer.echo("  the exchange was erased")
        return
    for message in (*item.exchange.messages, *item.exchange.reply):
        typer.echo(f"  {message.role}: {message.text or '(no text: see --json)'}")


@app.command("decide")
def decide(
    id: Annotated[int, typer.Argument(help="Its number in the list.", show_default=False)],
    decision: Annotated[str, typer.Argument(help="kept, broken or 'cannot tell'.", show_default=False)],
    log: LogArgument = LOG,
    who: Annotated[str, typer.Option("--who", help="Who decides; goes on record.")] = "",
    note: Annotated[str, typer.Option("--note", help="Why; goes on record.")] = "",
    key: KeyOption = None,
) -> None:
    """Say whether the principle was kept, once and for all."""
    from fairlead.guard.audit import queue
    from fairlead.guard.audit.opening import opened_beside

    with opened_beside(log, key) as (held, db):
        done = queue.decide(db, held, id, who, decision, note)  # type: ignore[arg-type]
    typer.echo(f"{done.id}  {done.request}  {done.decision}, says {done.who}")
