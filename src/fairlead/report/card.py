"""The model card: a short README.md for the folder of the model that came out, with the table of the run."""

from __future__ import annotations

import re
from pathlib import Path

from fairlead.report import words
from fairlead.report.run import Run, read_run
from fairlead.report.visible import visible


def write_card(folder: str | Path, *, out: str | Path | None = None) -> Path:
    """Write `model/README.md` (or `out`) for the run in `folder`, and return its path."""
    path = Path(out) if out is not None else Path(folder) / "model" / "README.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(card(read_run(folder)), encoding="utf-8")
    temporary.replace(path)
    return path


def card(run: Run) -> str:
    """The card as Markdown, with the front matter that model hubs read."""
    groups = words.sorted_out(run)
    lines = [
        "---",
        "library_name: transformers",
        "tags: [fairlead, alignment]",
        "---",
        "",
        f"# {_cell(run.model)}, led by the {_cell(run.constitution)} constitution",
        "",
        f"Layers: {' → '.join(map(_cell, run.layers))}. Constitution sha256 `{_hash(run.constitution_sha256)}`.",
        "The column of a prompt or guard layer measures the model behind it, which is not in these weights.",
        "",
    ]
    head = ["measure", *map(_cell, run.layers), "n", "principle", f"{_cell(run.first)} to {_cell(run.last)}"]
    lines += [_line(head), _line(["---"] * len(head))]
    for measure in run.measures:
        row = run.any_row(measure)
        cells = [f"{_cell(words.title(measure))} {words.ARROW[row.better]}"]
        for layer in run.layers:
            at = run.row(measure, layer)
            cells.append(_cell(f"{words.value(at)} {words.interval(at)}".strip()))
        told = words.verdict(run.effect(measure), row.better) if len(run.layers) > 1 else "–"
        lines.append(_line([*cells, str(row.n), _cell(row.principle or "–"), _cell(told)]))
    names = {key: ", ".join(_cell(words.title(m)) for m in found) for key, found in groups.items()}
    lines += [
        "",
        f"- Got worse: {names['worse'] or 'nothing that could be told'}.",
        f"- Cannot be told with this many cases: {names['cannot tell'] or 'nothing'}.",
        f"- Not measured: {', '.join(map(_cell, words.not_measured(run)))}.",
    ]
    weak = [words.title(m) for m in run.measures if run.any_row(m).evidence is not True]
    if weak:
        lines.append(f"- Not independent evidence: {', '.join(map(_cell, weak))}.")
    lines += [
        "",
        "Values are rates with 95% intervals; `[≤ x]` is a one-sided bound where nothing happened in n tries. "
        "The run's `report.html` shows what still slips through.",
        "",
    ]
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Text that stays text in Markdown: one line, and nothing that starts a tag, a link, a cell or emphasis."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&])", r"\\\1", " ".join(visible(text).split()))


def _hash(text: str) -> str:
    return "".join(char for char in text if char.isalnum())
