"""`fairlead align`: the main job. From a stack (or a recipe) to an aligned model and a report of what that did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.common import BudgetOption, CacheOption, PricesOption, ThreadsOption

if TYPE_CHECKING:
    from fairlead.constitution.yaml import Document
    from fairlead.stack.source import Source

DEFAULT_STACK = Path("fairlead.yaml")


def align(
    stack: Annotated[
        Path | None,
        typer.Argument(
            metavar="[STACK]", help="A stack file. Without one: ./fairlead.yaml if it is there, else a recipe."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="apprentice, a model folder, a hub name, or PROVIDER/NAME[@URL].",
            show_default="apprentice",
        ),
    ] = None,
    constitution: Annotated[
        str | None,
        typer.Option(
            "--constitution",
            "-c",
            help="A constitution file, or a pack: hhh, brand, health, …",
            show_default="harbour for the apprentice, else hhh",
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", metavar="FILE", help="Prompts to train on: .txt (one per line) or .jsonl."),
    ] = None,
    preferences: Annotated[
        str | None,
        typer.Option(
            "--preferences",
            metavar="FILE",
            help="People's comparisons, pairs or rankings; the recipe dpo where none is named.",
        ),
    ] = None,
    demonstrations: Annotated[
        str | None,
        typer.Option("--demonstrations", metavar="FILE", help="Conversations to imitate, for recipes that need them."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME",
            help="constitutional, constitutional-rl, instructgpt, dpo, online, safe, r1, managed, … or a YAML file.",
            show_default="constitutional; managed without weights",
        ),
    ] = None,
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="The same in small, in minutes: to see that it runs, not what comes of it."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Where the run folder goes.", show_default="runs/TIME-NAME"),
    ] = None,
    cases: Annotated[int | None, typer.Option("--cases", min=1, help="Cases per measure.", show_default="200")] = None,
    measures: Annotated[
        str | None, typer.Option("--measures", metavar="IDS", help="Measure only these, comma-separated.")
    ] = None,
    audit: Annotated[
        str | None,
        typer.Option("--audit", metavar="WHO", help="Who judges the result: gold, rules, or a model that reads."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, show_default="0")] = None,
    budget: BudgetOption = None,
    prices: PricesOption = None,
    oracle: Annotated[
        bool, typer.Option("--oracle", help="Allow gold labels in training (the recipe gold), for comparison.")
    ] = False,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows of data files that cannot be read, and count them.")
    ] = False,
    cache: CacheOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do all work again, whatever the cache holds.")] = False,
    threads: ThreadsOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print results.json; everything else goes to standard error.")
    ] = False,
) -> None:
    """Align a model with a constitution, and report what each layer did.

    Measures the model, then adds layer after layer (fine-tuning, preferences, a prompt, a guard), measuring again after
    each. The run folder holds the report, the numbers, the model and everything it was made of. Give the same command
    again to go on after an interruption: finished work is kept.
    """
    from fairlead.cli.terminal import Terminal, print_json

    terminal = Terminal(quiet_out=as_json)
    document, source, said = plan_document(
        stack,
        recipe,
        {
            ("model",): model,
            ("constitution",): constitution,
            ("prompts", "from"): prompts,
            ("preferences",): preferences,
            ("demonstrations",): demonstrations,
            ("measure", "cases"): cases,
            ("measure", "only"): _ids(measures),
            ("measure", "audit"): audit,
            ("seed",): seed,
        },
    )
    from fairlead.models import Budget, read_prices
    from fairlead.stack.read import parse_plan
    from fairlead.stack.run import DEFAULT_CACHE, Options, constitution_of, run_plan

    plan = parse_plan(document)
    if smoke:
        from fairlead.stack.smoke import SAID
        from fairlead.stack.smoke import smoke as in_small

        plan = in_small(plan)
        said.lines.append(SAID)
    options = Options(
        out=out,
        cache=cache or DEFAULT_CACHE,
        fresh=fresh,
        oracle=oracle,
        skip_bad_rows=skip_bad_rows,
        threads=threads or 0,
        budget=Budget.parse(budget) if budget else None,
        prices=read_prices(prices) if prices else None,
        confirm=terminal.confirm,
        finish=_report,
        recipe=said.recipe,
        smoke=smoke,
    )
    name = constitution_of(plan, world=source.kind == "apprentice").name
    terminal.say(heading(plan.model, name, said.recipe, plan.seed, options.threads))
    for line in said.lines:
        terminal.say(line)
    finished = run_plan(plan, options, terminal)
    if as_json:
        print_json(finished.results)
        return
    from fairlead.report.run import run_from
    from fairlead.report.terminal import print_table

    terminal.say("")
    print_table(run_from(finished.results, folder=finished.folder))
    _accuracy(finished.results)
    shown = finished.folder.parent / "latest" if (finished.folder.parent / "latest").exists() else finished.folder
    typer.echo(f"{shown / 'report.html'}")


class Said:
    """Which recipe a run takes, and what must be said of it."""

    def __init__(self, recipe: str, lines: list[str]) -> None:
        self.recipe, self.lines = recipe, lines


def plan_document(
    stack: Path | None, recipe: str | None, options: dict[tuple[str | int, ...], Any]
) -> tuple[Document, Source, Said]:
    """The whole plan as a document: stack file, recipe where it has no layers, options over both."""
    from fairlead.stack.read import read_recipe, read_stack, with_options, with_recipe
    from fairlead.stack.source import locate

    lines: list[str] = []
    if stack is None and DEFAULT_STACK.is_file() and recipe is None:
        stack = DEFAULT_STACK
        lines.append(f"stack: {DEFAULT_STACK} (found here)")
    document = with_options(read_stack(stack), options)
    spec = document.data.get("model", "apprentice")
    source = locate(spec if isinstance(spec, str) else "apprentice")
    if "layers" in document.data and recipe is None:
        return document, source, Said("", lines)
    chosen, why = (recipe, "") if recipe else default_recipe(source, bool(document.data.get("preferences")))
    if why:
        lines.append(why)
    return with_recipe(document, read_recipe(chosen)), source, Said(Path(chosen).stem, lines)


def default_recipe(source: Source, preferences: bool) -> tuple[str, str]:
    """(recipe, what to say aloud) for a run that names none."""
    from fairlead.stack.source import torch_installed

    if source.kind == "remote":
        return (
            "managed",
            "recipe managed, because this model's weights are not here: the constitution as a prompt, and a guard",
        )
    if not torch_installed():
        return (
            "managed",
            "recipe managed, because torch is not installed and nothing can be trained: pip install 'fairlead[train]'",
        )
    return ("dpo", "recipe dpo, because preferences are given") if preferences else ("constitutional", "")


def heading(model: str, constitution: str, recipe: str, seed: int, threads: int) -> str:
    """`apprentice · harbour constitution · constitutional recipe      seed 0 · 2 cores`"""
    from fairlead.stack.identity import cores

    left = f"{model} · {constitution} constitution" + (f" · {recipe} recipe" if recipe else "")
    count = threads or cores()
    right = f"seed {seed} · {count} core{'s' if count != 1 else ''}"
    return f"{left:<{max(len(left) + 2, 92 - len(right))}}{right}"


def _ids(text: str | None) -> list[str] | None:
    return None if text is None else [item.strip() for item in text.split(",") if item.strip()]


def _report(folder: Path) -> None:
    from fairlead.report.card import write_card
    from fairlead.report.html import write_report
    from fairlead.report.rounds import write_rounds

    write_report(folder)
    write_rounds(folder)
    if (folder / "model").is_dir():
        write_card(folder)


def _accuracy(results: dict[str, Any]) -> None:
    rows = results.get("preference_accuracy")
    if not rows:
        return
    typer.echo("\nheld-out preferences")
    for row in rows:
        typer.echo(
            f"  {row['layer']:<12} {row['scorer']:<12} {row['pairs']:<15} {row['value']:.3f} "
            f"[{row['low']:.3f}, {row['high']:.3f}]  n = {row['n']:,}"
        )
