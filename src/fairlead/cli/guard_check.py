"""`fairlead guard check`: the guard's checks over exchanges that already happened."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.common import BudgetOption, JsonOption, PricesOption

if TYPE_CHECKING:
    from fairlead.constitution import Constitution
    from fairlead.exchange import Exchange
    from fairlead.guard.audit.review import Reviewed, Summary
    from fairlead.guard.watch import PromptCheck
    from fairlead.models import Budget, Model

MANY = 20  # rows that are all printed; of more, those that were not allowed


def check(
    file: Annotated[
        str, typer.Argument(help="Exchanges (JSON Lines and kin), or - for one reply, or rows, from standard input.")
    ] = "-",
    constitution: Annotated[
        str | None, typer.Option("--constitution", "-c", metavar="C", help="What is guarded: a file or a pack.")
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option("--classifier", metavar="DIR", help="As trained by `fairlead guard train`.")
    ] = None,
    critic: Annotated[
        str | None, typer.Option("--critic", metavar="MODEL", help="Reads the principles no code can check.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", metavar="FILE", help="The settings of the proxy: rules, hosts, thresholds, presidio."),
    ] = None,
    every: Annotated[bool, typer.Option("--every", help="Print what was allowed too.")] = False,
    budget: BudgetOption = None,
    prices: PricesOption = None,
    as_json: JsonOption = False,
) -> None:
    """What would the guard have done with these exchanges? Exit 0: allowed them all; 1: not all.

    Each row is looked at by every check that `fairlead guard serve` would have: what was asked where a principle looks
    there, and the reply. As there, a critic beside a classifier is asked where that is in doubt, and not else (checks:
    {cascade: false} in --policy asks it about every row). The most severe decision is printed with its principle and
    evidence; then, by principle, how many of n it would not have let pass, with an interval. What --policy says of the
    critic, the classifier and prices holds where no option says otherwise; shadow is not heeded.
    """
    from fairlead.cli.remote import opened
    from fairlead.cli.terminal import Terminal, print_json
    from fairlead.constitution import load, usual
    from fairlead.errors import CannotTell
    from fairlead.guard.audit.review import review, summary
    from fairlead.guard.checked import checked, on_doubt
    from fairlead.guard.checks.personal import open_presidio
    from fairlead.guard.compile import policies_from
    from fairlead.guard.plan import plan
    from fairlead.guard.proxy.settings import read_settings
    from fairlead.guard.vendors import refuse_others, vendors

    terminal = Terminal(quiet_out=as_json)
    settings = read_settings(policy)
    kinds = settings.checks.model_copy(update={"model": classifier or settings.checks.model, "probe": None})
    critic = critic or kinds.ask
    (reader,), limit = opened([critic], budget, prices or kinds.prices)
    written = load(constitution or usual(world=critic == "apprentice"))
    exchanges, places = _read(file)
    presidio = open_presidio(kinds.presidio, model=kinds.presidio_model) if kinds.presidio else None
    found = checked(written, reader, kinds, presidio)
    refuse_others(vendors(found.replies, reader), written, constitution or written.name)
    if not found.replies and not found.prompts:
        raise CannotTell(
            f"{written.name}: no check of it can run by code alone; name a model that reads it with --critic MODEL, "
            "or a trained classifier with --classifier DIR"
        )
    made = plan(found.replies, policies_from(written))
    asleep = on_doubt(made)
    for line in asleep.values():
        terminal.say(f"cascade: {line}")
    if reader is not None:
        _agree(written, reader, found.prompts, exchanges, limit, terminal)
    if settings.shadow:
        terminal.say(f"{policy}: shadow is not heeded: told is what would be done without it")
    if settings.checks.probe is not None:
        terminal.say(f"{policy}: the probe is not asked: it reads the model in the proxy that wrote the reply")
    with terminal.progress("checking") as advance:
        rows = list(
            review(
                exchanges,
                made,
                advance,
                prompts=found.prompts,
                on_error=kinds.on_error,
            )
        )
    told = summary(rows, found.unseen, found.partly, tuple(asleep))
    if as_json:
        print_json(_body(written, rows, places, told))
    else:
        _print(rows, places, told, every or len(rows) <= MANY)
    raise typer.Exit(0 if told.allowed == told.n else 1)


def _read(file: str) -> tuple[Sequence[Exchange], Sequence[str]]:
    """The exchanges and where each stands."""
    import tempfile

    from fairlead.errors import InputError
    from fairlead.exchange import Exchange, assistant
    from fairlead.feedback.formats import read_demonstrations

    if file != "-":
        rows = read_demonstrations(Path(file))
        return rows.rows, rows.places
    text = sys.stdin.read()
    if not text.strip():
        raise InputError("standard input is empty; give a reply, or rows of exchanges, or name a FILE")
    if not text.lstrip().startswith('{"'):
        return [Exchange((), (assistant(text.removesuffix("\n")),))], ["-"]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "stdin.jsonl"
        copy.write_text(text, encoding="utf-8")
        try:
            rows = read_demonstrations(copy)
        except InputError as problem:
            raise InputError(str(problem).replace(str(copy), "standard input")) from None
    return rows.rows, [place.replace(str(copy), "-") for place in rows.places]


def _agree(
    constitution: Constitution,
    reader: Model,
    prompts: Sequence[PromptCheck],
    exchanges: Sequence[Exchange],
    limit: Budget | None,
    terminal: Any,
) -> None:
    from fairlead.cli.remote import agree
    from fairlead.guard.critic_prompt import PromptCritic
    from fairlead.judges.critic import critic
    from fairlead.stack.estimate import NOTHING, of_critic, of_questions

    total = NOTHING
    for principle in constitution.principles:
        if principle.guard is not None:
            total += of_critic(critic(principle, reader), [item.messages for item in exchanges])
    for check in prompts:
        if isinstance(check, PromptCritic):
            total += of_questions(check.judge, [check.question(item.messages) for item in exchanges])
    agree(total, limit, terminal)


def _print(rows: Sequence[Reviewed], places: Sequence[str], told: Summary, every: bool) -> None:
    for row, at in zip(rows, places, strict=True):
        if every or row.outcome != "allow":
            principle = f"  {row.principle}" if row.principle else ""
            where = ", in what was asked" if row.where == "asked" else ""
            typer.echo(f"{at}  {row.outcome}{principle}{where}{f': {row.evidence}' if row.evidence else ''}")
    for line in told.lines():
        typer.echo(line)


def _body(constitution: Constitution, rows: Sequence[Reviewed], places: Sequence[str], told: Summary) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "constitution": {"name": constitution.name, "sha256": constitution.sha256},
        "rows": [{"place": at, **asdict(row)} for row, at in zip(rows, places, strict=True)],
        **asdict(told),
    }
