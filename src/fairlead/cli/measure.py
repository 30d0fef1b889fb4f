"""`fairlead measure`: all measures, or some, on one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fairlead.cli.common import BudgetOption, CacheOption, JsonOption, PricesOption, SeedOption, ThreadsOption


def measure(
    model: Annotated[str, typer.Argument(help="apprentice, a model folder, a hub name, or PROVIDER/NAME[@URL].")],
    measures: Annotated[
        str | None, typer.Option("--measures", metavar="IDS", help="Only these, comma-separated.", show_default="all")
    ] = None,
    cases: Annotated[int, typer.Option("--cases", min=1, help="Cases per measure.")] = 200,
    constitution: Annotated[
        str | None, typer.Option("--constitution", "-c", help="Whose principles stand beside the rows.")
    ] = None,
    audit: Annotated[
        str | None, typer.Option("--audit", metavar="WHO", help="Who judges: gold, rules, or a model that reads.")
    ] = None,
    seed: SeedOption = 0,
    budget: BudgetOption = None,
    prices: PricesOption = None,
    cache: CacheOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask every case again.")] = False,
    threads: ThreadsOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Also write a run folder with the report here.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model: what it does well, what it does badly, each with its interval and its n."""
    from fairlead.cli.align import _ids, _report
    from fairlead.cli.terminal import Terminal, print_json
    from fairlead.models import Budget, read_prices
    from fairlead.report.run import run_from
    from fairlead.report.terminal import print_table
    from fairlead.stack.plan import Measure, Plan
    from fairlead.stack.read import validated_settings
    from fairlead.stack.run import DEFAULT_CACHE, Options, measure_model

    terminal = Terminal(quiet_out=as_json)
    only = _ids(measures)
    plan = Plan.model_construct(
        model=model,
        constitution=constitution or "",
        layers=(),
        measure=validated_settings(
            Measure,
            {"cases": cases, "audit": audit or "auto", "only": only if only is None else tuple(only)},
            {"only": "measures"},
        ),
        seed=seed,
    )
    options = Options(
        out=out,
        cache=cache or DEFAULT_CACHE,
        fresh=fresh,
        threads=threads or 0,
        budget=Budget.parse(budget) if budget else None,
        prices=read_prices(prices) if prices else None,
        confirm=terminal.confirm,
        finish=_report,
    )
    finished = measure_model(plan, options, terminal)
    if as_json:
        print_json(finished.results)
        return
    print_table(run_from(finished.results))
    if out is not None:
        typer.echo(f"{finished.folder / 'report.html'}")
