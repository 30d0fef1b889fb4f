"""`fairlead train`: one training stage alone, from a model folder and a data file to a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(
    no_args_is_help=True, help="One training stage alone: sft (imitate replies), dpo (learn from preferences)."
)

Model = Annotated[str, typer.Option("--model", "-m", help="apprentice, a model folder, or a hub name.")]
Data = Annotated[
    Path, typer.Option("--data", "-d", metavar="FILE", help="The data: .jsonl, .json, .parquet, also .gz.")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where the trained model goes.")]
Epochs = Annotated[float | None, typer.Option("--epochs", min=0.0, help="Passes over the data.", show_default="1")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps, instead of epochs.")]
Rate = Annotated[float | None, typer.Option("--lr", help="Learning rate.", show_default="by the model's size")]
RowsPerStep = Annotated[int | None, typer.Option("--rows-per-step", min=1, help="Rows of one step.", show_default="32")]
TokensPerBatch = Annotated[int | None, typer.Option("--tokens-per-batch", min=1, help="Memory: tokens at once.")]
Warmup = Annotated[
    float | None, typer.Option("--warmup", min=0.0, max=1.0, help="Share of the steps.", show_default="0.05")
]
Schedule = Annotated[str | None, typer.Option("--schedule", metavar="NAME", help="linear, cosine or constant.")]
TooLong = Annotated[str | None, typer.Option("--too-long", metavar="WHAT", help="refuse, skip or cut (both counted).")]
Seed = Annotated[int, typer.Option("--seed", min=0)]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Leave out rows that cannot be read, and count them.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Read the data, say what training would take, and stop.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, show_default="all cores")]
AsJson = Annotated[bool, typer.Option("--json", help="Print what came of it as JSON.")]


@app.command()
def sft(
    model: Model, data: Data, out: Out = None, epochs: Epochs = None, steps: Steps = None, lr: Rate = None,
    rows_per_step: RowsPerStep = None, tokens_per_batch: TokensPerBatch = None, warmup: Warmup = None,
    schedule: Schedule = None, too_long: TooLong = None, seed: Seed = 0, skip_bad_rows: SkipBadRows = False,
    dry_run: DryRun = False, threads: Threads = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Supervised fine-tuning: imitate the replies of a file of conversations."""
    given = {
        "epochs": epochs, "steps": steps, "lr": lr, "rows_per_step": rows_per_step,
        "tokens_per_batch": tokens_per_batch, "warmup": warmup, "schedule": schedule, "too_long": too_long,
    }  # fmt: skip
    _train("sft", model, data, out, given, seed, skip_bad_rows, dry_run, threads, as_json)


@app.command()
def dpo(
    model: Model, data: Data, out: Out = None,
    beta: Annotated[float | None, typer.Option("--beta", help="Pull to the reference.", show_default="0.1")] = None,
    nll: Annotated[float | None, typer.Option("--nll", help="Weight of the chosen NLL.", show_default="0")] = None,
    epochs: Epochs = None, steps: Steps = None, lr: Rate = None,
    rows_per_step: RowsPerStep = None, tokens_per_batch: TokensPerBatch = None, warmup: Warmup = None,
    schedule: Schedule = None, too_long: TooLong = None, seed: Seed = 0, skip_bad_rows: SkipBadRows = False,
    dry_run: DryRun = False, threads: Threads = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Direct preference optimisation: learn from pairs of a better and a worse reply."""
    given = {
        "epochs": epochs, "steps": steps, "lr": lr, "rows_per_step": rows_per_step, "beta": beta, "nll": nll,
        "tokens_per_batch": tokens_per_batch, "warmup": warmup, "schedule": schedule, "too_long": too_long,
    }  # fmt: skip
    _train("dpo", model, data, out, given, seed, skip_bad_rows, dry_run, threads, as_json)


def _train(
    method: Literal["sft", "dpo"],
    model: str,
    data: Path,
    out: Path | None,
    given: dict[str, Any],
    seed: int,
    skip_bad_rows: bool,
    dry_run: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    from fairlead.cli.terminal import Terminal, print_json
    from fairlead.errors import InputError
    from fairlead.stack.single import estimate_stage, train_stage

    if out is None and not dry_run:
        raise InputError("say where the trained model goes with --out DIR (or look first with --dry-run)")
    settings = {key: value for key, value in given.items() if value is not None}
    terminal = Terminal(quiet_out=as_json)
    if dry_run:
        found = estimate_stage(method, model, data, settings, seed, skip_bad_rows, threads, terminal)
        if as_json:
            print_json(found)
            return
        typer.echo(
            f"{found['rows']:,} rows, {found['tokens']:,} tokens, {found['steps']:,} steps; one step took "
            f"{found['seconds_per_step']:.2f} s here, so about {found['about_seconds']:.0f} s in all"
        )
        return
    assert out is not None
    found = train_stage(method, model, data, out, settings, seed, skip_bad_rows, threads, terminal)
    if as_json:
        print_json(found)
        return
    for line in told(found):
        terminal.say(line)
    typer.echo(f"{out}")


COUNTED = (
    ("ties", "ties kept"),
    ("identical", "pairs of identical replies"),
    ("skipped_too_long", "too long, left out"),
    ("cut", "cut to fit the context"),
)


def told(found: Mapping[str, Any]) -> list[str]:
    """What came of a training in words: what was learnt, what became of the other rows, and what to worry about."""
    pairs = found["method"] == "dpo"
    counts = [f"{found[key]:,} {words}" for key, words in COUNTED if found.get(key)]
    learnt = f"{found['pairs']:,} pairs" if pairs else f"{found['rows']:,} rows"
    lines = ["; ".join([f"{learnt}, {found['steps']:,} steps", *counts])]
    if pairs:
        kl = found["kl"]
        far = f"; KL to the start {kl['value']:.2f} ± {kl['error']:.2f} nats per reply (n = {kl['n']})" if kl else ""
        lines.append(f"preferred the chosen reply in {found['accuracy']:.0%} of its last training pairs{far}")
    else:
        lines.append(f"loss at the end {found['final_loss']:.3f} nats per token")
    return lines + [f"warning: {text}" for text in found.get("warnings", ())]
