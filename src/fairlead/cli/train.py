"""`fairlead train METHOD`: one training stage alone, from a model folder and a data file to a model folder.

One command for each entry of the catalogue of methods (here) and of the algorithms of reinforcement learning
(train_policy.py), its options made from the fields of the method's configuration. A managed model, and a file for a
provider, go their own way (train_managed.py). Nothing of this is made before `fairlead train` is asked for, and nothing
of it needs torch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from fairlead.cli.options import Setting
    from fairlead.methods.catalogue import Method

LEARNS_FROM = {
    "exchanges": "Learns from conversations: the last reply of each is imitated.",
    "pairs": "Learns from pairs: a better and a worse reply to the same prompt.",
    "triples": "Learns from pairs, a better and a worse reply to the same prompt, with a gold reply beside each: under "
    "`reference`, as in TPO's data sets (in our own format `gold`), or as rankings of three replies, whose best is the "
    "gold one.",
    "rated": "Learns from single replies with a label, good or bad. A file of pairs is read as twice as many replies, "
    "the chosen ones good and the rejected ones bad.",
    "comparisons": "Learns from pairs, a better and a worse reply to the same prompt, and from rankings: several "
    "replies to one prompt with their order, ranks or scores. What comes out is a judge, not a model that answers; its "
    "scores are calibrated on the rows it learnt from.",
    "steps": "Learns from replies in steps, each labelled right or wrong. What comes out is a judge, not a model that "
    "answers.",
}


class Methods(TyperGroup):
    """The commands of the catalogues, in their order, made when the first of them is looked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        self._fill()
        return list(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        self._fill()
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """In two groups: what learns from a file, and what learns from its own replies."""
        self._fill()
        for title, names in self.groups.items():
            room = formatter.width - 6 - max(map(len, names))
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(room)) for name in names])

    def _fill(self) -> None:
        from fairlead.cli.train_policy import policy_command, policy_help
        from fairlead.methods.catalogue import METHODS
        from fairlead.methods.config_policy import ALGORITHMS

        if self.commands:
            return
        self.groups: Mapping[str, list[str]] = {
            "Learning from a file": list(METHODS),
            "Learning from its own replies, scored by judges": list(ALGORITHMS),
        }
        for name, method in METHODS.items():
            self._add(name, command_of(name, method), _help(name, method), method.summary)
        for name, algorithm in ALGORITHMS.items():
            self._add(name, policy_command(name, algorithm), policy_help(algorithm), algorithm.summary)

    def _add(self, name: str, function: Callable[..., None], text: str, short: str) -> None:
        single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        single.command(name, help=text, short_help=short)(function)
        self.add_command(typer.main.get_command(single), name)


app = typer.Typer(
    cls=Methods,
    no_args_is_help=True,
    help="One training stage alone. `fairlead train METHOD --help` shows what a method learns from, and its settings.",
)

COMMON: Mapping[str, tuple[Any, Any]] = {
    "model": (Annotated[str, typer.Option("--model", "-m", help="apprentice, a model folder, or a hub name.")], ...),
    "data": (
        Annotated[
            Path, typer.Option("--data", "-d", metavar="FILE", help="The data: .jsonl, .json, .parquet, also .gz.")
        ],
        ...,
    ),
    "out": (
        Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where the trained model goes.")],
        None,
    ),
    "dry_run": (
        Annotated[bool, typer.Option("--dry-run", help="Say what training would take, from a few steps, and stop.")],
        False,
    ),
    "seed": (
        Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the order of the rows, and of noise.")],
        0,
    ),
    "skip_bad_rows": (
        Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out rows that cannot be read, and count them.")],
        False,
    ),
    "threads": (
        Annotated[
            int | None, typer.Option("--threads", metavar="N", min=1, help="CPU threads.", show_default="all cores")
        ],
        None,
    ),
    "log": (
        Annotated[
            list[str],
            typer.Option(
                "--log",
                metavar="KIND:WHERE",
                help="Also write each step's numbers to jsonl:FILE, tensorboard:FOLDER, wandb:PROJECT or "
                "trackio:PROJECT; may be given several times.",
                show_default=False,
            ),
        ],
        (),
    ),
    "as_json": (Annotated[bool, typer.Option("--json", help="Print what came of it as JSON.")], False),
}
FIRST = ("model", "data", "prompts", "reward", "cost", "out", "dry_run")  # the others stand after the method's settings


def command_of(name: str, method: Method) -> Callable[..., None]:
    """The command of a method that learns from a file."""
    from fairlead.cli.options import collected, settings_of
    from fairlead.cli.train_managed import MANAGED, METHODS, goes_elsewhere, managed

    words = {
        "lr": f"by the model's size, {method.lr:g} at a billion parameters",
        "epochs": "1, unless steps are given",
        "rows_per_step": "32",
    }
    settings = settings_of(method.config, method.defaults, leave=("seed",), words=words)

    def run(given: Mapping[str, Any]) -> None:
        chosen = collected(given, settings)
        if name in METHODS and goes_elsewhere(given):
            managed(name, chosen, given)
        else:
            _train(name, settings=chosen, **{key: given[key] for key in COMMON})

    return command_with(run, {**COMMON, **MANAGED} if name in METHODS else COMMON, settings)


def command_with(
    run: Callable[[Mapping[str, Any]], None], common: Mapping[str, tuple[Any, Any]], settings: Sequence[Setting]
) -> Callable[..., None]:
    """A function for typer to read, whose parameters are the options in `common` and the settings.

    The settings stand between the options of `FIRST` and the other ones.
    """

    def command(**given: Any) -> None:
        run(given)

    parameters = {
        key: inspect.Parameter(
            key,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=annotation,
            default=inspect.Parameter.empty if default is ... else default,
        )
        for key, (annotation, default) in common.items()
    }
    first = [parameter for key, parameter in parameters.items() if key in FIRST]
    last = [parameter for key, parameter in parameters.items() if key not in FIRST]
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*first, *(setting.parameter for setting in settings), *last]
    )
    return command


def _help(name: str, method: Method) -> str:
    from fairlead.cli.train_managed import ABOUT, METHODS

    text = help_of(method.summary, LEARNS_FROM[method.data], method.defaults)
    return f"{text}\n\n{ABOUT}" if name in METHODS else text


def help_of(summary: str, learns_from: str, defaults: Mapping[str, Any]) -> str:
    """What `--help` says before the options: what it is, what it learns from, the settings that its name stands for."""
    lines = [f"{summary[:1].upper()}{summary[1:]}.", learns_from]
    if defaults:
        from fairlead.cli.options import in_words

        known = ", ".join(f"{key} {in_words(value)}" for key, value in defaults.items())
        lines.append(f"It is known under these settings, and each may be changed: {known}.")
    return "\n\n".join(lines)


def _train(
    name: str,
    *,
    settings: dict[str, Any],
    model: str,
    data: Path,
    out: Path | None,
    seed: int,
    skip_bad_rows: bool,
    dry_run: bool,
    threads: int | None,
    log: Sequence[str],
    as_json: bool,
) -> None:
    from fairlead.cli.terminal import Terminal, print_json
    from fairlead.errors import InputError
    from fairlead.stack.single import Order, train_stage

    terminal = Terminal(quiet_out=as_json)
    order = Order(name, model, data, settings, seed, skip_bad_rows, threads)
    if dry_run:
        from fairlead.stack.dryrun import estimate_stage

        found = estimate_stage(order, terminal)
    elif out is None:
        raise InputError("say where the trained model goes with --out DIR (or look first with --dry-run)")
    else:
        found = train_stage(order, out, terminal, log)
    if as_json:
        print_json(found)
        return
    for line in told_ahead(found) if dry_run else told(found):
        terminal.say(line)
    if not dry_run:
        typer.echo(f"{out}")


# ------------------------------------------------------------------------------------------- in words

COUNTED = (
    ("ties", "ties kept"),
    ("unlabelled", "steps without a label"),
    ("identical", "pairs of identical replies"),
    ("skipped_too_long", "too long, left out"),
    ("cut", "cut to fit the context"),
    ("mismatched_left_out", "mismatched pairs too long for the reference point, left out"),
)


def told(found: Mapping[str, Any]) -> list[str]:
    """What came of a training in words: what was learnt, what became of the other rows, and what to worry about."""
    counts = [f"{found[key]:,} {words}" for key, words in COUNTED if found.get(key)]
    if "prompts" in found:
        learnt = f"{found['pairs']:,} pairs of {found['prompts']:,} prompts"
        result = _of_members(found) if "members" in found else _accuracy(found)
        result += f"; {_calibrated(found)}"
    elif "labelled" in found:
        learnt = f"{found['labelled']:,} labelled steps of {found['rows']:,} replies"
        result = _of_steps(found)
    elif "pairs" in found:
        learnt = f"{found['pairs']:,} pairs"
        result = _accuracy(found)
    elif "good" in found:
        learnt = f"{found['good'] + found['bad']:,} replies ({found['good']:,} good, {found['bad']:,} bad)"
        result = f"reward of good replies above that of bad ones by {found['margin']:.3f} at the end"
    else:
        learnt = f"{found['rows']:,} rows"
        result = f"loss at the end {found['final_loss']:.3f} nats per token"
    kl = found.get("kl")
    if kl:
        result += f"; KL to the start {kl['value']:.2f} ± {kl['error']:.2f} nats per reply (n = {kl['n']})"
    steps = f"{found['steps']:,} steps" + (f" of {found['members']} reward models" if "members" in found else "")
    head = "; ".join([f"{learnt}, {steps}", *counts])
    return [head, result, *(f"warning: {text}" for text in found.get("warnings", ()))]


def _accuracy(found: Mapping[str, Any]) -> str:
    if math.isnan(found["accuracy"]):
        return "its last training pairs were all ties"
    return f"preferred the chosen reply in {found['accuracy']:.0%} of its last training pairs"


def _of_members(found: Mapping[str, Any]) -> str:
    if math.isnan(found["accuracy"]):
        return "all its training pairs were ties"
    return (
        f"together they prefer the better reply in {found['accuracy']:.0%} of {found['compared']:,} of their training "
        f"pairs; each, in {found['lowest_member']:.0%} to {found['highest_member']:.0%} of its last ones"
    )


def _of_steps(found: Mapping[str, Any]) -> str:
    if math.isnan(found["accuracy"]):
        return "its last labelled steps were all ties"
    return f"put {found['accuracy']:.0%} of its last labelled steps on the right side of one half"


def _calibrated(found: Mapping[str, Any]) -> str:
    if found["method"] == "reward-ensemble":
        return "each one's scores are calibrated, and its rewards scaled, on training pairs"
    known = found.get("calibration")
    return f"scores are calibrated on {known['pairs']:,} training pairs" if known else "scores are not calibrated"


def memory_told(found: Mapping[str, Any], beside: str) -> list[str]:
    """What a dry run reckons and what it measured."""
    memory = found["memory"]
    parts = ("weights", "gradients", "moments", "activations", "logits", "critic", "keys_values")
    shown = [f"{key.replace('_', ' and ')} {in_bytes(memory[key])}" for key in parts if memory.get(key)]
    lines = [
        f"memory, an estimate: {in_bytes(memory['total'])} beside {beside} ({', '.join(shown)}; "
        f"up to {memory['tokens']:,} tokens at once)"
    ]
    if memory["activations"] is None:
        lines.append("the sizes of this model's layers are not known, so activations are not in that sum")
    if found["peak_bytes"] is not None:
        lines.append(
            f"memory, measured: {in_bytes(found['peak_bytes'])} at the peak of the tried steps, program and all"
        )
    return lines


def told_ahead(found: Mapping[str, Any]) -> list[str]:
    """What a training would take, in words."""
    from fairlead.cli.terminal import duration

    config = found["config"]
    counts = [f"{found[key]:,} {words}" for key, words in COUNTED if found.get(key)]
    lines = ["; ".join(counts)] if counts else []
    lines.append(f"learning rate {config['lr']:g}, longest row {found['longest_row']:,} tokens")
    lines += memory_told(found, "the program itself")
    if config.get("kl_samples"):
        lines.append(f"not counted in the time: {config['kl_samples']} replies drawn at the end to estimate the KL")
    lines.append(
        f"{found['rows']:,} rows, {found['tokens']:,} tokens, {found['steps']:,} steps; one step took "
        f"{found['seconds_per_step']:.2f} s here, so about {duration(found['about_seconds'])} in all"
    )
    return lines


def in_bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
