"""`fairlead constitution check FILE` and `fairlead constitution schema`."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.common import BudgetOption, JsonOption
from fairlead.cli.constitution_diff import diff
from fairlead.cli.constitution_prompts import prompts
from fairlead.cli.constitution_try import try_

if TYPE_CHECKING:
    from fairlead.constitution import Loaded
    from fairlead.judges.conflicts import Conflict
    from fairlead.models import Model

app = typer.Typer(
    no_args_is_help=True,
    help="The written values: check a file, try it on a prompt, compare two, print the schema for editors.",
)
app.command("try")(try_)
app.command("diff")(diff)
app.command("prompts")(prompts)


@app.command()
def check(
    file: Annotated[str, typer.Argument(help="a constitution file, or a pack: hhh, health, …", show_default=False)],
    critic: Annotated[
        str | None, typer.Option("--critic", metavar="MODEL", help="Reads every good example by the other principles.")
    ] = None,
    budget: BudgetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a constitution and say what it comes to. A mistake is named by file, line and key (exit 2).

    So is a guard that no run could put up: a file that passes here is not refused by `align`. And so are two principles
    that pull apart, as they say themselves, their examples show or a critic finds, where neither has priority.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fairlead.constitution import resolve

    loaded = resolve(file)
    refuse_guards(loaded)
    settled = settled_conflicts(loaded, _reader(loaded, critic, budget, as_json))
    if as_json:
        typer.echo(
            json.dumps(
                _summary(loaded) | {"conflicts": [dataclasses.asdict(c) for c in settled]}, indent=2, ensure_ascii=False
            )
        )
        return
    constitution = loaded.constitution
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("principle", "dimension", "severity", "guard", "from"):
        table.add_column(title, justify="right" if title == "severity" else "left", overflow="fold")
    for p in constitution.principles:
        guard = f"{', '.join(p.guard.at)}: {p.guard.on_violation}" if p.guard else "–"
        table.add_row(p.id, p.dimension, str(p.severity), guard, escape(loaded.origins[p.id]))
    console = Console()
    console.print(table)
    for conflict in settled:
        other = conflict.second if conflict.goes_first == conflict.first else conflict.first
        console.print(f"{conflict.goes_first} goes before {other}: {escape(conflict.why[0])}", highlight=False)
    for note in notes(loaded):
        console.print(f"note: {escape(note)}", style="yellow")
    console.print(
        f"{escape(constitution.name)}: {_count(len(constitution.principles), 'principle')}, "
        f"{_count(len(constitution.secrets), 'secret')}; sha256 {constitution.sha256[:16]}; no mistakes found",
        highlight=False,
    )


@app.command()
def schema(as_json: JsonOption = False) -> None:
    """Print the JSON Schema of a constitution file. Point your editor's YAML support at it."""
    from fairlead.constitution import json_schema

    del as_json  # JSON is all there is
    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def refuse_guards(loaded: Loaded) -> None:
    """Raises InputError for guards that cannot be compiled, each with its place."""
    from fairlead.errors import InputError
    from fairlead.guard.compile import checks_from

    told = []
    for p in loaded.constitution.principles:
        try:
            checks_from(loaded.constitution, None, only=[p.id])
        except InputError as problem:
            told.append(f"{loaded.origins[p.id]}: {problem}")
    if told:
        raise InputError("\n".join(told))


def settled_conflicts(loaded: Loaded, reader: Model | None = None) -> list[Conflict]:
    """The conflicts between principles. Raises InputError with both places for each that no priority settles."""
    from fairlead.errors import InputError
    from fairlead.judges.conflicts import conflicts

    found = conflicts(loaded.constitution, reader)
    at = loaded.origins
    told = [
        f"{at[c.first]}: principle {c.first!r} and principle {c.second!r} ({at[c.second]}) pull apart: "
        f"{'; '.join(c.why[:3])}. Say which goes first: `over: [{c.second}]` at {c.first!r}, or the other way round"
        for c in found
        if not c.goes_first
    ]
    if told:
        raise InputError("\n".join(told))
    return found


def _reader(loaded: Loaded, critic: str | None, budget: str | None, quiet: bool) -> Model | None:
    if critic is None:
        return None
    from fairlead.cli.remote import agree, opened
    from fairlead.cli.terminal import Terminal
    from fairlead.exchange import user
    from fairlead.judges.critic import critic as reading
    from fairlead.stack.estimate import NOTHING, of_critic

    (reader,), limit = opened([critic], budget, None)
    assert reader is not None
    cost = NOTHING
    for b in loaded.constitution.principles:
        asked = [(user(e.user),) for a in loaded.constitution.principles if a.id != b.id for e in a.good]
        cost += of_critic(reading(b, reader), asked)
    agree(cost, limit, Terminal(quiet_out=quiet))
    return reader


def notes(loaded: Loaded) -> list[str]:
    """What is no mistake, but is worth knowing before a run."""
    from fairlead.constitution import DIMENSIONS

    constitution = loaded.constitution
    found = [
        f"no principle speaks of {dimension}; measures of it will stand alone"
        for dimension in DIMENSIONS
        if dimension != "domain" and constitution.principle_for(dimension) is None
    ]
    found += _of_voice(loaded)
    said: dict[str, str] = {}
    for p in constitution.principles:
        same = said.setdefault(p.text.casefold(), p.id)
        if same != p.id:
            found.append(f"principle {p.id!r} says the same as {same!r}")
        if p.severity == 5 and p.guard is None:
            found.append(f"principle {p.id!r} has severity 5 and no guard")
    return found


def _of_voice(loaded: Loaded) -> list[str]:
    """Where the samples of the voice have no effect, and what the guard would say in another voice."""
    from fairlead.constitution.voice import held_out
    from fairlead.exchange import exchange
    from fairlead.judges.voice import voice_of

    constitution = loaded.constitution
    samples = held_out(constitution)
    if not samples:
        return []
    found = []
    if constitution.principle_for("voice") is None:
        found.append(
            "voice: samples are given, but no principle has the dimension voice: training and guard do not see them"
        )
    guarded = [(p.id, p.guard.say) for p in constitution.principles if p.guard is not None and p.guard.say]
    verdicts = voice_of(samples).judge([exchange("…", say) for _, say in guarded])
    for (id, _), verdict in zip(guarded, verdicts, strict=True):
        if verdict.score is not None and verdict.score < 0.5:
            found.append(
                f"what principle {id!r} says in place of a reply is not in the voice of the samples: {verdict.reason}"
            )
    return found


def _count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def _summary(loaded: Loaded) -> dict[str, Any]:
    constitution = loaded.constitution
    return {
        "name": constitution.name,
        "sha256": constitution.sha256,
        "assistant": constitution.assistant.model_dump(mode="json"),
        "principles": [
            {
                "id": p.id,
                "dimension": p.dimension,
                "severity": p.severity,
                "text": p.text,
                "guard": p.guard.model_dump(mode="json") if p.guard else None,
                "from": loaded.origins[p.id],
            }
            for p in constitution.principles
        ],
        "secrets": [{"id": s.id, "from": s.source, "canary": s.canary} for s in constitution.secrets],
        "files": [str(f) for f in loaded.files],
        "notes": notes(loaded),
    }
