"""`fairlead train grpo`, `ppo` and their kin: reinforcement learning from judges, from prompts to a model folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fairlead.methods.config_policy import Algorithm

JUDGES = (
    "[NAME=][WEIGHT*]JUDGE, where JUDGE is a reward model's folder, or one of exact, mentions, numeric[:TOLERANCE], "
    "regex:PATTERN, unknown, code[:share], format[:PATTERN], language[:LANGUAGE], critic:PRINCIPLE, rule:NAME, "
    "gold:MEASURE. May be given several times."
)


def _common() -> Mapping[str, tuple[Any, Any]]:
    """The options that every algorithm has beside its settings."""
    from fairlead.cli.train import COMMON

    return {
        "model": COMMON["model"],
        "prompts": (
            Annotated[
                str,
                typer.Option(
                    "--prompts",
                    "-p",
                    metavar="FILE|world:MEASURE",
                    help="What is asked: .jsonl, .json, .parquet, also .gz, or .txt with a prompt on each line. Rows "
                    "may bring what judges read: reference or answer, references, wrong, tests, meta. world:MEASURE "
                    "(or world:all) draws from the apprentice's world, train split.",
                ),
            ],
            ...,
        ),
        "reward": (
            Annotated[
                list[str],
                typer.Option("--reward", "-r", metavar="SPEC", help=f"What is raised: {JUDGES}", show_default=False),
            ],
            ...,
        ),
        "cost": (
            Annotated[
                list[str],
                typer.Option(
                    "--cost",
                    metavar="SPEC",
                    help="What is held under --cost-budget, written like --reward. May be given several times.",
                    show_default=False,
                ),
            ],
            (),
        ),
        "out": COMMON["out"],
        "dry_run": COMMON["dry_run"],
        "stop": (
            Annotated[
                list[str],
                typer.Option(
                    "--stop",
                    metavar="TEXT",
                    help="A text at which a reply ends; may be given several times.",
                    show_default=False,
                ),
            ],
            (),
        ),
        "critic": (
            Annotated[
                Path | None,
                typer.Option(
                    "--critic",
                    metavar="FOLDER",
                    help="The reward model that the value function starts from (ppo, safe-ppo).",
                    show_default="the policy's own body",
                ),
            ],
            None,
        ),
        "pretraining": (
            Annotated[
                Path | None,
                typer.Option(
                    "--pretraining", metavar="FILE", help="Conversations imitated beside, with weight --ptx (PPO-ptx)."
                ),
            ],
            None,
        ),
        "rollouts": (
            Annotated[
                str,
                typer.Option(
                    "--rollouts",
                    metavar="local|vllm/NAME@URL[,URL]",
                    help="What draws the replies: the engine's own decoder here, or vLLM servers.",
                ),
            ],
            "local",
        ),
        "weights": (
            Annotated[
                str,
                typer.Option(
                    "--weights",
                    metavar="DIR[=PATH]",
                    help="Of --rollouts vllm/…: the folder through which servers take up each step's weights, and its "
                    "path on their side where that is another.",
                    show_default="a temporary one, for servers on this machine",
                ),
            ],
            "",
        ),
        "turns": (
            Annotated[
                int,
                typer.Option(
                    "--turns",
                    metavar="N",
                    min=1,
                    help="Turns of the policy in a reply at most; between them a partner speaks, which is read and "
                    "never learnt. --max-tokens counts the policy's own tokens of all of them.",
                ),
            ],
            1,
        ),
        "partner": (
            Annotated[
                list[str],
                typer.Option(
                    "--partner",
                    metavar="user:MODEL|FILE.py:NAME",
                    help="Of --turns: who speaks, a model that plays the user, or what a Python file of yours defines: "
                    "a dictionary of functions by the names of tools, or a function from the conversation so far. The "
                    "first of several that has something to say.",
                    show_default=False,
                ),
            ],
            (),
        ),
        "calls": (
            Annotated[
                str,
                typer.Option(
                    "--calls",
                    metavar="none|apprentice|tagged",
                    help="Of --turns: how the policy writes its calls of tools; tagged is "
                    '<tool_call>{"name": …, "arguments": {…}}</tool_call>, as Qwen and Hermes write.',
                ),
            ],
            "none",
        ),
        "n": (
            Annotated[
                int | None,
                typer.Option(
                    "--n", metavar="N", min=1, help="Of --prompts world:…: how many are drawn.", show_default="500"
                ),
            ],
            None,
        ),
        "constitution": (
            Annotated[
                str,
                typer.Option(
                    "--constitution",
                    "-c",
                    metavar="FILE|PACK",
                    help="Of critic:PRINCIPLE: the constitution that holds the principle.",
                    show_default="harbour for the apprentice, hhh for others",
                ),
            ],
            "",
        ),
        "reader": (
            Annotated[
                str,
                typer.Option(
                    "--reader",
                    metavar="MODEL",
                    help="Of critic:PRINCIPLE: the model that reads the principle. It stays as it is.",
                    show_default="the model as it starts",
                ),
            ],
            "",
        ),
        "budget": (
            Annotated[
                str | None,
                typer.Option(
                    "--budget",
                    metavar="AMOUNT",
                    help="Of --reader and --partner user: at a provider: most they may cost together: '5 USD' or '2M "
                    "tokens'. What is not answered then has no reward; with more of it the same command goes on. "
                    "--dry-run asks for two steps.",
                ),
            ],
            None,
        ),
        "prices": (
            Annotated[
                Path | None,
                typer.Option("--prices", metavar="FILE", help="Of --budget: your prices of a million tokens, JSON."),
            ],
            None,
        ),
        "oracle": (
            Annotated[
                bool,
                typer.Option(
                    "--oracle", help="Allow gold:MEASURE, the truth of the apprentice's world, which no real task has."
                ),
            ],
            False,
        ),
        "seed": (
            Annotated[
                int, typer.Option("--seed", metavar="N", min=0, help="Of the prompts, their order, and the replies.")
            ],
            0,
        ),
        **{key: COMMON[key] for key in ("skip_bad_rows", "threads", "log", "as_json")},
    }


NOT_OFFERED = (
    "seed",
    "stop",
    "rows_per_step",
    "tokens_per_step",
    "loss_spike",
)  # options of their own, or of fixed data


def policy_command(name: str, algorithm: Algorithm) -> Callable[..., None]:
    """The command of an algorithm."""
    from fairlead.cli.options import collected, settings_of
    from fairlead.cli.train import command_with
    from fairlead.methods.config_policy import PolicyConfig
    from fairlead.stack.stages.train import USUAL_POLICY_LR

    words = {
        "lr": f"by the model's size, {USUAL_POLICY_LR:g} at a billion parameters",
        "epochs": "1, unless steps are given",
    }
    settings = settings_of(PolicyConfig, algorithm.defaults, leave=NOT_OFFERED, words=words)
    common = _common()

    def run(given: Mapping[str, Any]) -> None:
        chosen = collected(given, settings)
        if given["stop"]:
            chosen["stop"] = tuple(given["stop"])
        _train(name, chosen, **{key: given[key] for key in common if key != "stop"})

    return command_with(run, common, settings)


def policy_help(algorithm: Algorithm) -> str:
    """What `--help` says of an algorithm before its options."""
    from fairlead.cli.train import help_of

    return help_of(
        algorithm.summary,
        "Learns from its own replies to prompts, scored by judges. A reply that a judge has nothing to say about has "
        "no reward: it is counted, and never taken for a zero.",
        algorithm.defaults,
    )


def _train(
    name: str,
    settings: Mapping[str, Any],
    *,
    model: str,
    prompts: str,
    reward: Sequence[str],
    cost: Sequence[str],
    out: Path | None,
    dry_run: bool,
    critic: Path | None,
    pretraining: Path | None,
    rollouts: str,
    weights: str,
    turns: int,
    partner: Sequence[str],
    calls: str,
    n: int | None,
    constitution: str,
    reader: str,
    budget: str | None,
    prices: Path | None,
    oracle: bool,
    seed: int,
    skip_bad_rows: bool,
    threads: int | None,
    log: Sequence[str],
    as_json: bool,
) -> None:
    from fairlead.cli import policy_told
    from fairlead.cli.terminal import Terminal, print_json
    from fairlead.errors import InputError
    from fairlead.models import Budget
    from fairlead.stack.reinforce import PolicyOrder, reinforce_stage
    from fairlead.stack.within import Within

    terminal = Terminal(quiet_out=as_json)
    within = Within(Budget.parse(budget) if budget else None, prices)
    order = PolicyOrder(
        name, model, prompts, reward, cost, settings, n, rollouts, critic, pretraining, oracle, seed, skip_bad_rows,
        threads, constitution, reader, weights, turns, tuple(partner), calls, within,
    )  # fmt: skip
    if dry_run:
        from fairlead.stack.dryrun_policy import estimate_policy

        found = estimate_policy(order, terminal)
    elif out is None:
        raise InputError("say where the trained model goes with --out DIR (or look first with --dry-run)")
    else:
        found = reinforce_stage(order, out, terminal, log)
    if as_json:
        print_json(found)
    else:
        for line in policy_told.told_ahead(found) if dry_run else policy_told.told(found):
            terminal.say(line)
        if not dry_run:
            typer.echo(f"{out}")
    if found["stopped"] and not dry_run:
        raise typer.Exit(1)
