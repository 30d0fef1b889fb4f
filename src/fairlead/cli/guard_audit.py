"""`fairlead guard audit`: is the log whole, what does it say, and what is taken out of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli import guard_queue
from fairlead.cli.common import JsonOption
from fairlead.cli.guard_check import check
from fairlead.cli.guard_queue import LOG, KeyOption, LogArgument

if TYPE_CHECKING:
    from collections import Counter

    from fairlead.guard.audit.verify import Report

app = typer.Typer(no_args_is_help=True, help="The audit log of the guard: verify it, read it, erase texts, keep heads.")
app.add_typer(guard_queue.app, name="queue")


def add(guard: typer.Typer) -> None:
    """Put these commands under `fairlead guard`."""
    guard.add_typer(app, name="audit")
    guard.command("check")(check)


@app.command()
def verify(
    log: LogArgument = LOG,
    heads: Annotated[
        Path | None, typer.Option("--heads", metavar="FILE", help="Exported heads.", show_default="LOG with .heads")
    ] = None,
    no_heads: Annotated[bool, typer.Option("--no-heads", help="A tail that was cut off may go unseen.")] = False,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Is the log whole, and was every released byte covered by a verdict (exit 1 where not, and where it breaks)?

    Codes of all records, their order, heads, coverage, kept texts. Without heads nobody can tell whether the tail was
    cut off: exit 3, unless --no-heads says that this is accepted.
    """
    from fairlead.cli.terminal import Terminal, print_json
    from fairlead.errors import InputError
    from fairlead.guard.audit.chain import key_beside
    from fairlead.guard.audit.heads import heads_beside
    from fairlead.guard.audit.verify import verify as verified

    if heads is not None and no_heads:
        raise InputError("give either --heads or --no-heads")
    beside = heads_beside(log)
    exported = None if no_heads else heads or (beside if beside.exists() else None)
    terminal = Terminal(quiet_out=as_json)
    with terminal.progress("verifying") as advance:
        report = verified(log, key or key_beside(log), exported, progress=advance)
    blind = report.whole and report.cut and not no_heads
    if as_json:
        print_json(_body(report))
    else:
        for line in told(report):
            typer.echo(line)
        if blind:
            typer.echo("not every chain has a head: nobody can tell whether a tail was cut off; give --heads", err=True)
    raise typer.Exit(1 if not report.whole else 3 if blind else 0)


def told(report: Report) -> list[str]:
    """What verify prints."""
    records, chains = _counted(report.records, "record"), _counted(report.chains, "chain")
    if not report.whole:
        lines = [f"{records} in {chains}, NOT whole: {_counted(report.broken, 'break')}"]
        lines += [f"  {broken}" for broken in report.breaks]
        more = report.broken - len(report.breaks)
        return [*lines, *([f"  and {more:,} more"] if more else []), *_beside(report)]
    heads = {"match": "heads match", "none": "no heads compared"}[report.heads]
    covered = "every released byte covered by a verdict" if report.bytes else "nothing was released"
    line = f"{records} in {chains}, whole, {heads}; {covered}"
    if blocks := _opaque(report.withheld):
        line += f"; {_counted(blocks, _BLOCKS)} withheld"
    return [line, *_beside(report)]


_BLOCKS = "opaque reasoning block"


def _opaque(counts: Counter[str]) -> int:
    """Blocks of reasoning that nobody can read, whatever a format calls them."""
    return sum(n for kind, n in counts.items() if kind.startswith("opaque"))


def _others(counts: Counter[str]) -> str:
    return ", ".join(f"{kind} {n:,}" for kind, n in sorted(counts.items()) if n and not kind.startswith("opaque"))


def _beside(report: Report) -> list[str]:
    """What is no break and has to be known."""
    ends = f"at most {report.window_s:g} s of records and the commit under way are missing at each"
    withheld, passed = _others(report.withheld), _others(report.passed)
    blocks = _opaque(report.passed)
    facts = (
        (blocks, f"{_counted(blocks, _BLOCKS)} passed on unread, as the policy allows"),
        (passed, f"passed on unread, as the policy allows: {passed}"),
        (withheld, f"withheld: {withheld}"),
        (report.open_failed, f"{_counted(report.open_failed, 'exchange')} let through by a failed check's on_error"),
        (report.crashes, f"{_counted(report.crashes, 'worker')} ended without a word (killed?): {ends}"),
        (report.open, f"{_counted(report.open, 'request')} cut off before the last entry, or still running"),
        (report.unsent, f"{_counted(report.unsent, 'exchange')} on record and then not sent to the end"),
        (report.uncounted, f"{_counted(report.uncounted, 'exchange')} of which nobody counted what was written"),
        (report.texts, f"{_counted(report.texts, 'text')} kept, as the chain says"),
        (report.erased, f"{_counted(report.erased, 'text')} erased, on record"),
        (report.expired, f"{_counted(report.expired, 'text')} erased when the time was over"),
    )  # fmt: skip
    return [line for count, line in facts if count]


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _body(report: Report) -> dict[str, Any]:
    from dataclasses import asdict

    return {"whole": report.whole, **asdict(report), "withheld": dict(report.withheld), "passed": dict(report.passed)}


@app.command()
def heads(
    log: LogArgument = LOG,
    key: KeyOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write them here, over older ones.")
    ] = None,
) -> None:
    """The end of each chain as it is now, sealed: keep it where the log is not, and give it to `verify --heads`."""
    from fairlead.guard.audit.chain import key_beside, read_key
    from fairlead.guard.audit.heads import heads_of, write_heads

    keys = read_key(key or key_beside(log))
    found = heads_of(log)
    if out is not None:
        write_heads(out, log, found, keys)
        return
    for head in found:
        typer.echo(head.line(keys))


@app.command()
def show(
    id: Annotated[str, typer.Argument(help="A request's id, or a verdict's (v-…).", show_default=False)],
    log: LogArgument = LOG,
    with_texts: Annotated[bool, typer.Option("--texts", help="Also the texts that are kept of it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """One exchange: what was decided, by which checks, and which bytes left under which verdicts."""
    import contextlib

    from fairlead.cli.terminal import print_json
    from fairlead.errors import InputError
    from fairlead.guard.audit import texts
    from fairlead.guard.audit.reading import find
    from fairlead.guard.audit.store import connect

    with contextlib.closing(connect(log, readonly=True)) as db:
        found = find(db, id)
        if not found:
            raise InputError(f"{log}: no exchange has the request or verdict id {id!r}")
        kept = texts.kept(db, found[0].body["request"]) if with_texts else []
    if as_json:
        records = [{"chain": f.chain, "record": f.record, **f.body} for f in found]
        print_json({"records": records, "texts": {text.what: text.text for text in kept}})
        return
    for one in found:
        for line in one.lines():
            typer.echo(line)
    for text in kept:
        typer.echo(f"  {text.what}: {text.text}")


@app.command()
def shadow(
    log: LogArgument = LOG,
    days: Annotated[
        float | None, typer.Option("--days", min=0.0, help="Only the last days.", show_default="all")
    ] = None,
    constitution: Annotated[
        str, typer.Option("--constitution-sha256", metavar="HASH", help="Only exchanges guarded by this one.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """What checks in shadow mode would have done, by principle, with an interval (Wilson, 95%)."""
    import contextlib
    import time
    from dataclasses import asdict

    from fairlead.cli.terminal import print_json
    from fairlead.guard.audit.shadow import shadow as read
    from fairlead.guard.audit.store import connect

    with contextlib.closing(connect(log, readonly=True)) as db:
        rows = read(db, since=time.time() - days * 86_400 if days else 0.0, constitution=constitution)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    if not rows:
        typer.echo("no check ran in shadow mode")
    for row in rows:
        rate = "cannot tell" if row.rate is None else f"{row.rate:.2%} [{row.low:.2%}, {row.high:.2%}]"
        what = ", ".join(f"{name} {n:,}" for name, n in row.outcomes.items() if name not in ("allow", "failed"))
        failed = f"; {row.failed:,} gave no verdict: {row.at_least:.2%} to {row.at_most:.2%}" if row.failed else ""
        seen = f"would have acted on {row.acted:,} of {row.n - row.failed:,}, {rate}"
        typer.echo(f"{row.principle or '–'} ({row.check}): {seen}{f' ({what})' if what else ''}{failed}")


@app.command()
def erase(
    log: LogArgument = LOG,
    request: Annotated[list[str] | None, typer.Option("--request", help="A request's id; may be given again.")] = None,
    tenant: Annotated[str, typer.Option("--tenant", help="All of a tenant, by the digest in the log.")] = "",
    who: Annotated[str, typer.Option("--who", help="Who does this; goes on record.")] = "",
    why: Annotated[str, typer.Option("--why", help="Why; goes on record.")] = "",
    key: KeyOption = None,
) -> None:
    """Erase kept texts for good. The chain stays whole, and holds that it was done, by whom and why."""
    from fairlead.errors import InputError
    from fairlead.guard.audit import texts
    from fairlead.guard.audit.opening import opened_beside

    if bool(request) == bool(tenant):
        raise InputError("say what to erase: either --request ID (again and again) or --tenant DIGEST")
    if not who.strip() or not why.strip():
        raise InputError("an erasure goes on record: say --who and --why")
    with opened_beside(log, key) as (held, db):
        found, count = texts.erase(db, held, requests=request or (), tenant=tenant, who=who, why=why)
    typer.echo(f"erased {_counted(count, 'text')} of {_counted(len(found), 'request')}; the chain says so")


@app.command()
def prune(
    log: LogArgument = LOG,
    days: Annotated[float, typer.Option("--days", min=0.0, help="Keep the records of so many days.")] = 90.0,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Move them into this log.", show_default="taken away")
    ] = None,
    key: KeyOption = None,
) -> None:
    """Take old records away, or move them into a log of their own; each of the two verifies."""
    import time

    from fairlead.guard.audit.opening import opened_beside
    from fairlead.guard.audit.rotate import prune as take

    with opened_beside(log, key) as (held, db):
        gone = take(db, held, time.time() - days * 86_400, to)
    typer.echo(f"{_counted(gone, 'record')} {'moved to ' + str(to) if to else 'taken away'}")
