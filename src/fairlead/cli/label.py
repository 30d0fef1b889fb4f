"""`fairlead label`: preferences by a critic that reads a constitution, and how far such labels can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fairlead.cli.common import BudgetOption, CacheOption, JsonOption, PricesOption, SeedOption, typed

app = typer.Typer(no_args_is_help=True, help="Preferences: by AI, and how well labels agree with people.")

Files = Annotated[list[Path], typer.Argument(help="Preference files, or pairs of replies: JSON Lines, JSON, Parquet.")]
Constitution = Annotated[
    str, typer.Option("--constitution", "-c", metavar="C", help="By whose principles: a file or a pack.")
]
Critic = Annotated[
    str, typer.Option("--critic", metavar="M", help="Who reads: apprentice, ./dir, PROVIDER/NAME[@URL,URL2,…].")
]
Draw = Annotated[str, typer.Option("--draw", metavar="NAME", help="Principles by: severity, uniform, whole.")]
Principles = Annotated[int, typer.Option("--principles", min=1, metavar="N", help="Principles drawn for a pair.")]
How = Annotated[str, typer.Option("--how", metavar="NAME", help="How a pair is read: template, pointwise, reasoned.")]
Cot = Annotated[bool, typer.Option("--cot", help="Reasons first (--how reasoned), labels clamped to 0.4 to 0.6.")]
Clamp = Annotated[tuple[float, float] | None, typer.Option("--clamp", metavar="LOW HIGH", help="Bounds of a label.")]
Samples = Annotated[int, typer.Option("--samples", min=1, help="Answers per question without log-probs.")]
Timeout = Annotated[float | None, typer.Option("--timeout", metavar="S", help="Of one call, in seconds.")]


@app.command()
def ai(
    files: Files,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The job's folder; a stopped job goes on.")],
    constitution: Constitution = "hhh",
    critic: Critic = "apprentice",
    principles: Principles = 1,
    draw: Draw = "severity",
    how: How = "template",
    cot: Cot = False,
    clamp: Clamp = None,
    near_tie: Annotated[float, typer.Option("--near-tie", help="Leave out labels nearer than this to 1/2.")] = 0.0,
    samples: Samples = 5,
    seed: SeedOption = 0,
    budget: BudgetOption = None,
    prices: PricesOption = None,
    cache: CacheOption = None,
    timeout: Timeout = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Calls at once.")] = None,
    chunk: Annotated[int | None, typer.Option("--chunk", min=1, help="Rows in a call.")] = None,
    shard: Annotated[int, typer.Option("--shard", min=1, metavar="ROWS", help="Rows in a file of the output.")] = 1000,
    again: Annotated[bool, typer.Option("--again", help="Ask rows without a label once more.")] = False,
    ray: Annotated[int | None, typer.Option("--ray", min=1, metavar="N", help="Under Ray Data, N workers.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Label pairs of replies by a constitution: P(first better) from a critic, in both orders.

    The job may be stopped or killed at any point; the same command goes on where it was. --out holds shards/ (one line
    per row, in order; rows without a label say why) and preferences.jsonl, which `fairlead train dpo` reads.
    """
    from fairlead.cli.terminal import Terminal, print_json
    from fairlead.constitution import load
    from fairlead.stack.labelling import label_file

    terminal = Terminal(quiet_out=as_json)
    settings = _settings(how, cot, clamp, samples, principles=principles, draw=draw, near_tie=near_tie, seed=seed)
    reader = _reader(critic, cache, budget, prices, timeout, terminal)
    result = label_file(
        files,
        load(constitution),
        reader,
        settings,
        out,
        terminal,
        confirm=terminal.confirm,
        pace=_pace(reader, workers, chunk),
        shard_rows=shard,
        again=again,
        ray=ray,
    )
    if as_json:
        print_json(result)
        return
    _print_labels(result)


@app.command()
def agreement(
    ctx: typer.Context,
    files: Files,
    constitution: Constitution = "hhh",
    critic: Critic = "apprentice",
    judge: Annotated[
        str | None, typer.Option("--judge", metavar="JUDGE", help="A judge by name or a reward model's folder instead.")
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="So many pairs, drawn evenly.")] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Times every question is asked.")] = 2,
    wordings: Annotated[
        Path | None,
        typer.Option("--wordings", metavar="FILE", help="Other wordings, YAML: id: [text, …]."),
    ] = None,
    principles: Principles = 1,
    draw: Draw = "severity",
    how: How = "template",
    cot: Cot = False,
    samples: Samples = 5,
    seed: SeedOption = 0,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that cannot be read, and count them.")
    ] = False,
    budget: BudgetOption = None,
    prices: PricesOption = None,
    cache: CacheOption = None,
    timeout: Timeout = None,
    as_json: JsonOption = False,
) -> None:
    """How far the labels of a critic (or of any judge) agree with people, on a preference file.

    Both orders, position bias, consistency on repeats and on other wordings, cost per 1,000 labels; beside it the
    longer reply wins. Who says nothing comes out at chance. Intervals are 95%, clustered by prompt.
    """
    from fairlead.cli.terminal import Terminal, print_json
    from fairlead.constitution import load
    from fairlead.stack.agreement import agree_with_people, judge_with_people, read_wordings

    terminal = Terminal(quiet_out=as_json)
    if judge is not None:
        from fairlead.judges.named import Reader, open_judge

        _no_critics(ctx, judge)
        opened = open_judge(judge, reader=Reader(constitution, critic))
        result = judge_with_people(files, opened, limit=rows, seed=seed, skip_bad_rows=skip_bad_rows)
    else:
        law = load(constitution)
        settings = _settings(how, cot, None, samples, principles=principles, draw=draw, seed=seed)
        result = agree_with_people(
            files,
            law,
            _reader(critic, cache, budget, prices, timeout, terminal),
            settings,
            terminal,
            limit=rows,
            repeats=repeats,
            wordings=read_wordings(wordings, law) if wordings else None,
            skip_bad_rows=skip_bad_rows,
            confirm=terminal.confirm,
        )
    if as_json:
        print_json(result)
    else:
        _print_agreement(result)


OF_CRITICS = (
    "repeats", "wordings", "principles", "draw", "how", "cot", "samples", "budget", "prices", "cache", "timeout",
)  # fmt: skip


def _no_critics(ctx: typer.Context, judge: str) -> None:
    """Raises InputError for options that a judge has no use for, so that none is dropped in silence."""
    from fairlead.errors import InputError

    if judge.partition(":")[0] == "gold":
        raise InputError(f"--judge {judge}: gold is the truth of the apprentice's world, and knows nothing of a file's")
    reads = () if judge.startswith("critic:") else ("constitution", "critic")
    given = [name for name in (*OF_CRITICS, *reads) if typed(ctx, name)]
    if given:
        flags = ", ".join(f"--{name}" for name in given)
        raise InputError(f"--judge {judge} scores each reply once, by itself: {flags} is for critics; leave it out")


def _settings(how: str, cot: bool, clamp: tuple[float, float] | None, samples: int, **label: Any) -> Any:
    from fairlead.errors import InputError
    from fairlead.methods.ai_labels import REASONED, LabelConfig
    from fairlead.stack.labels import LabelSettings
    from fairlead.stack.read import validated_settings

    if cot and how == "pointwise":
        raise InputError("--cot reasons about two replies side by side, and --how pointwise judges each by itself")
    if clamp is not None and not 0 <= clamp[0] < 0.5 < clamp[1] <= 1:
        raise InputError(f"--clamp {clamp[0]:g} {clamp[1]:g}: LOW is below 0.5 and HIGH above it, both in [0, 1]")
    bounds = clamp or (REASONED if cot else None)
    return validated_settings(
        LabelSettings,
        {
            "how": "reasoned" if cot else how,
            "samples": samples,
            "label": validated_settings(LabelConfig, {**label, "clamp": bounds}),
        },
    )


def _reader(
    critic: str, cache: Path | None, budget: str | None, prices: Path | None, timeout: float | None, terminal: Any
) -> Any:
    from fairlead.models import read_prices
    from fairlead.stack.labels import Access, open_reader
    from fairlead.stack.run import DEFAULT_CACHE

    table = read_prices(prices) if prices else None
    return open_reader(Access(critic, (cache or DEFAULT_CACHE).resolve(), budget, table, timeout), terminal.say)


def _pace(reader: Any, workers: int | None, chunk: int | None) -> Any:
    from fairlead.feedback.bulk import Pace

    usual = reader.pace
    return Pace(workers or usual.workers, chunk or usual.chunk)


def _print_labels(result: dict[str, Any]) -> None:
    counts = result["counts"]
    typer.echo(f"{result['labelled']:,} of {result['rows']:,} pairs labelled by {result['critic']['name']}")
    for reason, n in result["unlabelled"].items():
        typer.echo(f"  {n:,} without a label: {reason}")
    if counts.get("near_ties"):
        typer.echo(f"  {counts['near_ties']:,} near ties are left out of the preferences")
    if result["position_bias"] is not None:
        typer.echo(
            f"  being shown first adds {result['position_bias']:+.3f} to P(better); "
            f"{counts.get('order_flips', 0):,} pairs flip with the order"
        )
    if result["spent"]:
        spent = result["spent"]
        cost = "price unknown" if spent["usd"] is None else f"${spent['usd']:,.4f}"
        tokens = f"{spent['prompt_tokens']:,} + {spent['completion_tokens']:,} tokens"
        typer.echo(f"  {spent['calls']:,} calls, {tokens}, {cost}")
    typer.echo(result["preferences"])


def _print_agreement(result: dict[str, Any]) -> None:
    left = f"{result['ties_left_out']:,} ties or without a verdict, {result['not_read']:,} not read"
    typer.echo(f"{result['pairs']:,} pairs of {result['prompts']:,} prompts ({result['of']:,} rows; left out: {left})")
    for row in result["rows"]:
        more = "".join(f", {row[key]:,} {words}" for key, words in (("missing", "without an answer"), ("ties", "ties"))
                       if row[key])  # fmt: skip
        typer.echo(
            f"  {row['measure']:<14} {row['who']:<28} {row['value']:>6.3f} [{row['low']:.3f}, {row['high']:.3f}]  "
            f"n = {row['n']:,}{more}"
        )
    cost = result.get("cost")
    if cost:
        money = "" if "calls" not in cost else (
            f", {cost['calls']:,.0f} calls, {cost['prompt_tokens']:,.0f} + {cost['completion_tokens']:,.0f} tokens, "
            + ("price unknown" if cost["usd"] is None else f"${cost['usd']:,.4f}")
        )  # fmt: skip
        typer.echo(f"  per 1,000 labels: {cost['seconds']:.1f} s{money}")
