"""`fairlead train sft|dpo` without weights: a file in a provider's format, or a job at the provider.

`--export FORMAT` writes the file and stops; `--model together/NAME` submits it, waits, and names what came out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fairlead.cli.terminal import Terminal
    from fairlead.stack.single import Order

METHODS = ("sft", "dpo")
"""Methods of the catalogue that a provider can run."""

ABOUT = (
    "With --model together/NAME a provider does the training: see what it would cost with --dry-run, and give a limit "
    "with --budget. With --export FORMAT the data is written in a provider's format, and nothing is trained."
)

MANAGED: Mapping[str, tuple[Any, Any]] = {
    "model": (
        Annotated[
            str | None,
            typer.Option(
                "--model", "-m", help="apprentice, a model folder, a hub name, or together/NAME.", show_default=False
            ),
        ],
        None,
    ),
    "export": (
        Annotated[
            str | None,
            typer.Option(
                "--export",
                metavar="FORMAT",
                help="Write the data for a provider to the file --out, and stop. One of: openai, together, fireworks, "
                "bedrock, bedrock-claude.",
            ),
        ],
        None,
    ),
    "min_strength": (
        Annotated[
            float,
            typer.Option(
                "--min-strength",
                metavar="NUMBER",
                min=0.5,
                max=1.0,
                help="Managed, export: leave out pairs of a lower strength. Ties are always left out.",
            ),
        ],
        0.5,
    ),
    "budget": (
        Annotated[
            str | None,
            typer.Option("--budget", metavar="AMOUNT", help="Managed: most it may cost: '5 USD' or '2M tokens'."),
        ],
        None,
    ),
    "prices": (
        Annotated[
            Path | None,
            typer.Option("--prices", metavar="FILE", help="Managed: your prices of a million training tokens, JSON."),
        ],
        None,
    ),
    "tokenizer": (
        Annotated[
            str | None,
            typer.Option("--tokenizer", metavar="NAME", help="Managed: count tokens with it. A folder or a hub name."),
        ],
        None,
    ),
    "full": (
        Annotated[bool, typer.Option("--full", help="Managed: train all weights, where the default is adapters.")],
        False,
    ),
    "wait": (
        Annotated[
            bool,
            typer.Option("--wait/--no-wait", help="Managed: wait for the job. The same command takes it up again."),
        ],
        True,
    ),
    "cancel": (
        Annotated[
            bool, typer.Option("--cancel-on-interrupt", help="Managed: Ctrl-C ends the job at the provider too.")
        ],
        False,
    ),
}


def goes_elsewhere(given: Mapping[str, Any]) -> bool:
    """Whether nothing is trained here. Raises InputError where no model is named, and for options that belong there."""
    from fairlead.errors import InputError
    from fairlead.models import is_remote

    if given["export"] is not None:
        return True
    if given["model"] is None:
        raise InputError("say which model with --model (or write a file for a provider with --export FORMAT)")
    if is_remote(given["model"]):
        return True
    odd = [key for key in OF_A_JOB if given[key]] + ["no_wait"] * (not given["wait"])
    odd += ["min_strength"] * (given["min_strength"] != 0.5)
    if odd:
        raise InputError(f"{_flag(odd[0])} is for managed models (together/NAME); {given['model']} is trained here")
    return False


OF_A_JOB = ("budget", "prices", "tokenizer", "full", "cancel")


def _flag(key: str) -> str:
    return "--" + {"cancel": "cancel-on-interrupt"}.get(key, key.replace("_", "-"))


def managed(name: str, settings: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Write a file for a provider, say what a job would take, or run it."""
    from fairlead.cli.terminal import Terminal, print_json
    from fairlead.errors import InputError
    from fairlead.stack.single import Order

    for key, flag in (("log", "--log"), ("threads", "--threads")):
        if given[key]:
            raise InputError(f"{flag} is for training here; nothing is trained on this machine")
    terminal = Terminal(quiet_out=given["as_json"])
    order = Order(name, given["model"] or "", given["data"], settings, given["seed"], given["skip_bad_rows"])
    found = _exported(order, given, terminal) if given["export"] is not None else _job(order, given, terminal)
    if given["as_json"]:
        print_json({key: value for key, value in found.items() if key != "job_as_told"})


def _exported(order: Order, given: Mapping[str, Any], terminal: Terminal) -> dict[str, Any]:
    import dataclasses

    from fairlead.errors import InputError
    from fairlead.stack.managed import written

    if given["out"] is None:
        raise InputError("say where the file goes with --out FILE")
    for key in (*OF_A_JOB, "dry_run", "model"):
        if given[key]:
            raise InputError(f"{_flag(key)}: --export writes a file, and submits nothing")
    if order.settings:
        raise InputError(f"--{next(iter(order.settings)).replace('_', '-')}: a file holds data, and no settings")
    if given["out"].exists():
        raise InputError(f"{given['out']}: exists already; give another file with --out")
    made = written(order, given["out"], given["export"], terminal, given["min_strength"])
    if given["export"] == "openai":
        from fairlead.models.finetuning import OPENAI_CLOSING

        terminal.say(f"note: {OPENAI_CLOSING}")
    if not given["as_json"]:
        typer.echo(f"{given['out']}")
    return {**dataclasses.asdict(made), "path": str(made.path)}


def _job(order: Order, given: Mapping[str, Any], terminal: Terminal) -> dict[str, Any]:
    from fairlead.errors import InputError
    from fairlead.models import Budget
    from fairlead.models.finetuning.prices import read_training_prices
    from fairlead.stack.managed import Terms, look_ahead, tune_stage

    terms = Terms(
        budget=Budget.parse(given["budget"]) if given["budget"] else None,
        prices=read_training_prices(given["prices"]) if given["prices"] else None,
        tokenizer=given["tokenizer"],
        full=given["full"],
        min_strength=given["min_strength"],
        confirm=terminal.confirm,
        wait=given["wait"],
        cancel=given["cancel"],
    )
    if given["dry_run"]:
        found = look_ahead(order, terminal, terms)
        terminal.say(f"{order.spec}: {found['bill']}")
        if terms.budget is not None:
            from fairlead.stack.managed_bill import over

            over(order.spec, found["tokens_to_bill"], found["usd"], terms.budget)
        terminal.say("nothing was sent")
        return found
    if given["out"] is None:
        raise InputError("say where the result goes with --out DIR (or look first with --dry-run)")
    found = tune_stage(order, given["out"], terminal, terms)
    if "result" in found:
        cost = "" if found["usd_billed"] is None else f", ${found['usd_billed']:,.2f} as the provider tells it"
        terminal.say(f"the new model is {found['result']}{cost}")
        if found["serving"]:
            terminal.say(f"before it answers: {found['serving']}")
    else:
        terminal.say(f"job {found['job']} is {found['state']}; the same command without --no-wait takes it up")
    if not given["as_json"]:
        typer.echo(found.get("result") or found["job"])
    return found
