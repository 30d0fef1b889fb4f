"""`fairlead constitution check FILE` and `fairlead constitution schema`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fairlead.constitution import Loaded

app = typer.Typer(no_args_is_help=True, help="The written values: check a file, or print the schema for editors.")

AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]


@app.command()
def check(
    file: Annotated[str, typer.Argument(help="a constitution file, or a pack: hhh, health, …", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Read a constitution and say what it comes to. A mistake is named by file, line and key (exit 2).

    So is a guard that no run could put up: a file that passes here is not refused by `align`.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fairlead.constitution import resolve

    loaded = resolve(file)
    refuse_guards(loaded)
    if as_json:
        typer.echo(json.dumps(_summary(loaded), indent=2, ensure_ascii=False))
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
    for note in notes(loaded):
        console.print(f"note: {escape(note)}", style="yellow")
    console.print(
        f"{escape(constitution.name)}: {_count(len(constitution.principles), 'principle')}, "
        f"{_count(len(constitution.secrets), 'secret')}; sha256 {constitution.sha256[:16]}; no mistakes found",
        highlight=False,
    )


@app.command()
def schema(as_json: AsJson = False) -> None:
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


def notes(loaded: Loaded) -> list[str]:
    """What is no mistake, but is worth knowing before a run."""
    from fairlead.constitution import DIMENSIONS

    constitution = loaded.constitution
    found = [
        f"no principle speaks of {dimension}; measures of it will stand alone"
        for dimension in DIMENSIONS
        if dimension != "domain" and constitution.principle_for(dimension) is None
    ]
    said: dict[str, str] = {}
    for p in constitution.principles:
        same = said.setdefault(p.text.casefold(), p.id)
        if same != p.id:
            found.append(f"principle {p.id!r} says the same as {same!r}")
        if p.severity == 5 and p.guard is None:
            found.append(f"principle {p.id!r} has severity 5 and no guard")
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
