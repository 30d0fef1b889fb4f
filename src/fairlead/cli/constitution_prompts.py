"""`fairlead constitution prompts C --out FILE`: prompts that tempt a model to break each principle, and their twins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.common import BudgetOption, JsonOption, PricesOption, SeedOption

if TYPE_CHECKING:
    from fairlead.constitution import Constitution
    from fairlead.feedback.generate import Bank, Made
    from fairlead.models import Model
    from fairlead.models.remote import Estimate

NO = 1  # the exit code of "the answer is no" (DESIGN §7): fewer prompts than were asked for


def prompts(
    constitution: Annotated[str, typer.Argument(help="A constitution file or pack.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="JSON Lines that --prompts reads.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="Who writes them; without one they come from templates."),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Tempting prompts, and as many twins, for each principle.")] = 30,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often a model is asked about a principle.")] = 6,
    seed: SeedOption = 0,
    budget: BudgetOption = None,
    prices: PricesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write prompts that tempt a model to break each principle, and the harmless twin of each, to a file.

    Exit 1 where a principle got fewer than asked for: what there is, is written, and what is missing is said.
    """
    from fairlead.cli.remote import agree, opened
    from fairlead.cli.terminal import Terminal, print_json
    from fairlead.constitution import load
    from fairlead.feedback.generate import by_model, by_templates
    from fairlead.feedback.write import write_rows

    terminal = Terminal(quiet_out=as_json)
    written = load(constitution)
    (writes,), limit = opened([model], budget, prices)
    if writes is None:
        made = by_templates(written, n, bank=_bank())
    else:
        agree(_cost(written, writes, n, rounds), limit, terminal)
        with terminal.progress("principles") as advance:
            made = by_model(written, writes, n, rounds=rounds, seed=seed, progress=advance)
    if made.rows:
        write_rows(out, [row.row(written) for row in made.rows])
    if as_json:
        print_json(_body(written, made, model, out))
    else:
        _told(written, made, terminal, out)
    if made.short:
        raise typer.Exit(NO)


def _bank() -> Bank | None:
    """The templates that come with the packs; what is trained on is their train split alone."""
    from fairlead.constitution.prompts_bank import bank

    return lambda constitution, kind: bank(constitution, "train", kind)


def _cost(constitution: Constitution, model: Model, n: int, rounds: int) -> Estimate:
    """At most: every round asked, and one question for each twin; a question is taken to be 400 words long."""
    from fairlead.exchange import user
    from fairlead.feedback.generate import TOKENS
    from fairlead.models.protocol import Sampling
    from fairlead.stack.estimate import called

    question = (user(" ".join(["word"] * 400)),)
    asked = len(constitution.principles) * (rounds + n)
    return called(model, [question] * asked, Sampling(max_tokens=TOKENS))


def _told(constitution: Constitution, made: Made, terminal: Any, out: Path) -> None:
    from collections import Counter

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("principle", "tempting", "twins", "from"):
        table.add_column(title, justify="right" if title in ("tempting", "twins") else "left")
    found = Counter((row.principle, row.kind) for row in made.rows)
    sources = {row.principle: row.by if row.source == "model" else row.source for row in made.rows}
    for p in constitution.principles:
        counts = [str(found[p.id, "tempting"]), str(found[p.id, "twin"])]
        table.add_row(p.id, *counts, sources.get(p.id, "–"))
    Console().print(table)
    if made.counts:
        terminal.say("not used: " + ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in made.counts.items()))
    terminal.say(_auroc(made))
    for id, (got, why) in made.short.items():
        terminal.say(f"short: {id} has {got} of {made.asked} pairs: {why}")
    terminal.say(f"{len(made.rows):,} prompts in {out}" if made.rows else f"nothing to write, {out} is left as it was")


def _auroc(made: Made) -> str:
    if made.auroc is None:
        return "too few prompts to say whether words alone tell tempting from harmless"
    a = made.auroc
    told = f"a bag of words tells tempting from harmless with AUROC {a.value:.2f} [{a.low:.2f}, {a.high:.2f}], n {a.n}"
    return f"warning: {told}: these prompts are keywords, use them with care" if made.keywords else told


def _body(constitution: Constitution, made: Made, model: str | None, out: Path) -> dict[str, Any]:
    a = made.auroc
    return {
        "constitution": {"name": constitution.name, "sha256": constitution.sha256},
        "model": model,
        "file": str(out) if made.rows else None,
        "prompts": len(made.rows),
        "asked": made.asked,
        "rounds": made.rounds,
        "principles": {
            p.id: {
                kind: sum(r.principle == p.id and r.kind == kind for r in made.rows) for kind in ("tempting", "twin")
            }
            for p in constitution.principles
        },
        "not_used": dict(made.counts),
        "short": {id: {"pairs": got, "why": why} for id, (got, why) in made.short.items()},
        "auroc": None if a is None else {"value": a.value, "low": a.low, "high": a.high, "n": a.n},
        "keywords": made.keywords,
    }
