"""`fairlead constitution try 'PROMPT'`: which principles, checks and refusal texts apply, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.common import BudgetOption, JsonOption, PricesOption

if TYPE_CHECKING:
    from fairlead.constitution import Constitution
    from fairlead.models import Model
    from fairlead.models.remote import Estimate
    from fairlead.stack.trying import Row, Tried


def try_(
    prompt: Annotated[str, typer.Argument(help="What the user says.", show_default=False)],
    constitution: Annotated[
        str | None, typer.Option("--constitution", "-c", show_default="harbour for the apprentice, else hhh")
    ] = None,
    reply: Annotated[
        str | None, typer.Option("--reply", metavar="TEXT", help="A reply to look at.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="Who replies, and reads the principles.")
    ] = None,
    critic: Annotated[
        str | None,
        typer.Option("--critic", metavar="MODEL", help="Who reads the principles instead; none: code alone tells."),
    ] = None,
    system: Annotated[
        str, typer.Option("--system", metavar="TEXT", help="The conversation's system prompt: what it tells to keep.")
    ] = "",
    budget: BudgetOption = None,
    prices: PricesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try a prompt on a constitution: which principles bear on it, what the guard would do, what the user would read.

    Without a model code alone tells: the nearest example by its words, secrets, rules. What it cannot tell it says.
    """
    from fairlead.cli.remote import agree, opened
    from fairlead.cli.terminal import Terminal, print_json
    from fairlead.constitution import load, usual
    from fairlead.constitution.voice import with_samples
    from fairlead.errors import InputError
    from fairlead.stack.trying import refuse_vendors, try_prompt

    if not prompt.strip():
        raise InputError("the prompt is empty; give what the user says, in quotes")
    terminal = Terminal(quiet_out=as_json)
    reader = None if critic == "none" else critic or model
    (writes, reads), limit = opened([model, reader], budget, prices)
    written = with_samples(load(constitution or usual(world="apprentice" in (model, reader))))
    refuse_vendors(written, writes, reads)  # before anybody is asked about what it costs
    agree(_cost(written, prompt, system, reply, writes, reads), limit, terminal)
    tried = try_prompt(written, prompt, told=system, reply=reply, model=writes, critic_model=reads)
    if as_json:
        print_json(_body(written, tried, model if reply is None else None, reader))
        return
    _table(tried)
    _told(written, tried, terminal, model if reply is None else None, reader)


def _cost(
    constitution: Constitution, prompt: str, told: str, reply: str | None, writes: Model | None, reads: Model | None
) -> Estimate:
    from fairlead.exchange import system, user
    from fairlead.judges.critic import critic
    from fairlead.models.protocol import Sampling
    from fairlead.stack.estimate import NOTHING, called, of_critic
    from fairlead.stack.trying import REPLY_TOKENS

    asked = [((system(told),) if told else ()) + (user(prompt),)]
    total = NOTHING
    if reply is None and writes is not None:
        total += called(writes, asked, Sampling(max_tokens=REPLY_TOKENS))
    if reads is not None and (reply is not None or writes is not None):
        for p in constitution.principles:
            total += of_critic(critic(p, reads), asked)
    return total


def _table(tried: Tried) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("principle", "weight", "bears on it", "kept", "check", "guard", "refusal text"):
        table.add_column(title, justify="right" if title == "weight" else "left", overflow="fold")
    for row in tried.rows:
        cells = [
            row.principle.id,
            str(row.principle.severity),
            "; ".join(row.reasons) or "–",
            _kept(row, tried),
            row.check or ("a critic's" if row.on_violation else "–"),
            _guard(row),
        ]
        table.add_row(*map(escape, cells), escape(row.say) or "–")
    Console().print(table)


def _kept(row: Row, tried: Tried) -> str:
    if row.kept is not None:
        return f"{row.kept:.2f}"
    return (
        "–"
        if tried.reply is None
        else "?"
        if row.untold
        else "yes"
        if row.decision and row.decision.outcome == "allow"
        else "no"
    )


def _guard(row: Row) -> str:
    if not row.on_violation:
        return "–"
    return f"if broken: {row.on_violation}" if row.decision is None else row.decision.outcome


def _told(constitution: Constitution, tried: Tried, terminal: Any, model: str | None, reader: str | None) -> None:
    for row in tried.rows:
        if row.before:
            terminal.say(f"{row.principle.id} goes before {', '.join(row.before)}")
    if model is not None:
        terminal.say(f"{model} replied: {tried.reply}" if tried.reply is not None else f"{model} gave no reply")
    blind = [row.principle.id for row in tried.rows if row.on_violation and row.untold]
    if tried.reply is not None:
        why = f" ({tried.outcome.principle}: {tried.outcome.evidence})" if tried.outcome.outcome != "allow" else ""
        but = f", those of {', '.join(blind)} not asked" if blind else ""
        terminal.say(f"the guard's checks{but}: {tried.outcome.outcome}{why}; the user reads: {tried.reads}")
    if tried.untold:
        ids = ", ".join(tried.untold)
        if tried.reply is None:
            terminal.say(f"not told: whether a reply would keep {ids}; give one with --reply, or name a --model")
        elif reader is None:
            terminal.say(f"not told: whether the reply keeps {ids}; name a reader with --critic MODEL")
        else:
            terminal.say(f"not told: whether the reply keeps {ids}; {reader} gave no verdict")
    terminal.say(
        f"{constitution.name}: likeness to examples is by words alone; kept is "
        + (
            "told by code alone"
            if not reader
            else f"P(kept) as read by {reader}"
            if tried.reply is not None
            else f"not told: {reader} had no reply to read"
        )
    )


def _body(constitution: Constitution, tried: Tried, model: str | None, reader: str | None) -> dict[str, Any]:
    from fairlead.exchange import to_json

    return {
        "constitution": {"name": constitution.name, "sha256": constitution.sha256},
        "messages": to_json(tried.messages),
        "reply": tried.reply,
        "replied_by": model,
        "critic": reader,
        "principles": [
            {
                "id": row.principle.id,
                "dimension": row.principle.dimension,
                "severity": row.principle.severity,
                "reasons": list(row.reasons),
                "near": None if row.near is None else to_json(row.near),
                "secrets": row.secrets,
                "check": row.check or None,
                "rules": [{"judge": name, "score": score, "reason": reason} for name, score, reason in row.rules],
                "kept": row.kept,
                "decision": None if row.decision is None else to_json(row.decision),
                "on_violation": row.on_violation or None,
                "say": row.say or None,
                "goes_before": list(row.before),
                "not_told": row.untold or None,
            }
            for row in tried.rows
        ],
        "outcome": tried.outcome.outcome if tried.reply is not None else None,
        "because": tried.outcome.principle or None,
        "reads": tried.reads or None,
        "not_told": list(tried.untold),
    }
