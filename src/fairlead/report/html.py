"""The report: one HTML file that needs nothing else, opens offline, and treats every word of the run as hostile.

No script, no external asset; the style sheet stands in the page and its hash in the content security policy, which
allows nothing else. All text goes through `visible` and the template's autoescape.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from fairlead.constitution.schema import Constitution
from fairlead.report import rounds, words
from fairlead.report.beside import RULE, beside
from fairlead.report.chart import change_bar, chart
from fairlead.report.run import Effect, PrincipleText, Run, Told, read_run
from fairlead.report.training import curves, labels, rewards
from fairlead.report.turns import turns
from fairlead.report.visible import visible

SHOWN_PER_MEASURE = 12

# Optional keys of results.json that are printed as they are, and how they are called.
_FACTS = {
    "recipe": "recipe", "seed": "seed", "seeds": "seeds", "cases": "cases a measure", "audit": "audit",
    "oracle": "gold labels", "calls": "calls to models", "tokens": "tokens", "cost": "cost", "hardware": "machine",
}  # fmt: skip
_NOTHING: tuple[object, ...] = (None, "", [], {})


def write_report(
    folder: str | Path,
    *,
    constitution: Constitution | None = None,
    hide_text: bool = False,
    out: str | Path | None = None,
) -> Path:
    """Write `report.html` into the run folder (or to `out`) and return its path.

    constitution  to print its principles; those in `results.json` (`constitution.principles`) otherwise
    hide_text     leave out what was asked and answered, for runs over harmful data sets; only lengths are shown
    """
    run = read_run(folder)
    path = Path(out) if out is not None else Path(folder) / "report.html"
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(render(run, constitution=constitution, hide_text=hide_text), encoding="utf-8")
    temporary.replace(path)
    return path


def render(run: Run, *, constitution: Constitution | None = None, hide_text: bool = False) -> str:
    """The page as text."""
    if constitution is not None:
        run = replace(run, principles=tuple(_principle(p) for p in constitution.principles))
    style = _asset("report.css")
    return _environment().get_template("report.html.j2").render(
        run=run,
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        summary=_summary(run),
        cards=[_card(run, measure) for measure in run.measures],
        steps=_steps(run),
        accuracy=_accuracy(run),
        revisions=rounds.shown(run),
        beside=beside(run, hide_text),
        beside_rule=RULE,
        curves=curves(run),
        rewards=rewards(run),
        slipped=[_slipped(run, measure, hide_text) for measure in run.measures],
        clean=_clean(run),
        unread=not run.told,
        method=_method(run),
        principles=[_principle_row(run, principle) for principle in _all_principles(run)],
        hide_text=hide_text,
        most=SHOWN_PER_MEASURE,
    )  # fmt: skip


def _asset(name: str) -> str:
    return resources.files("fairlead.report").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    def shown(value: object) -> object:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(words=words, len=len)
    return environment


# --------------------------------------------------------------------------------------------- sections


@dataclass(frozen=True, slots=True)
class Line:
    """One measure in the summary."""

    measure: str
    title: str
    text: str
    weak: str
    bar: Markup


def _summary(run: Run) -> dict[str, Any]:
    groups = {name: [_line(run, measure) for measure in measures] for name, measures in words.sorted_out(run).items()}
    slips = words.slips(run)
    return {
        "groups": groups,
        "slips": slips,
        "slip_count": sum(slips.values()),
        "not_measured": words.not_measured(run),
        "weak": [words.title(m) for m in run.measures if run.any_row(m).evidence is not True],
        "simulated": [str(item) for item in run.more.get("simulated") or []],
        "missing": sum(row.missing for row in run.rows),
        "asked": sum(row.n for row in run.rows),
    }


def _line(run: Run, measure: str) -> Line:
    effect, row = run.effect(measure), run.any_row(measure)
    text = words.verdict(effect, row.better, long=True).removeprefix("cannot tell: ")
    weak = "" if row.evidence is True else {"related": "evidence: related"}.get(str(row.evidence), "no evidence")
    return Line(measure, words.title(measure), text, weak, _bar(run, effect, row.better))


def _bar(run: Run, effect: Effect | None, better: str) -> Markup:
    found = None if effect is None else words.gain(effect, better)
    if effect is None or found is None:
        return Markup("")
    change, low, high = found
    mood = effect.verdict if effect.verdict != "cannot tell" else ""
    return change_bar(low, change, high, mood=mood, label=words.verdict(effect, better, long=True), reach=1.0)


def _card(run: Run, measure: str) -> dict[str, Any]:
    row = run.any_row(measure)
    rows = [run.row(measure, layer) for layer in run.layers]
    effect = run.effect(measure)
    mood = effect.verdict if effect and effect.verdict != "cannot tell" else ""
    values = ", ".join(
        f"{visible(layer)} {words.value(at)} {words.interval(at)}" for layer, at in zip(run.layers, rows, strict=True)
    )
    title = words.title(measure)
    return {
        "measure": measure,
        "title": title,
        "row": row,
        "direction": f"{row.better} is better",
        "cells": list(zip(run.layers, rows, strict=True)),
        "verdict": words.verdict(effect, row.better, long=True) if len(run.layers) > 1 else "",
        "mood": mood,
        "chart": chart(rows, label=f"{title}: {values}", mood=mood, difference=run.is_difference(measure)),
        "difference": run.is_difference(measure),
        "bar": _bar(run, effect, row.better),
    }


def _steps(run: Run) -> list[dict[str, Any]]:
    """All comparisons, grouped by the pair of layers; first to last leads."""
    pairs = list(dict.fromkeys((effect.before, effect.after) for effect in run.effects))
    pairs.sort(key=lambda pair: pair != (run.first, run.last))
    steps = []
    for before, after in pairs:
        effects = [effect for effect in run.effects if (effect.before, effect.after) == (before, after)]
        lines = []
        for effect in effects:
            row = run.row(effect.measure, after) or run.row(effect.measure, before)
            better = row.better if row else "higher"
            lines.append(
                {
                    "effect": effect,
                    "title": words.title(effect.measure),
                    "text": words.verdict(effect, better, long=True),
                    "mood": effect.verdict if effect.verdict != "cannot tell" else "",
                    "bar": _bar(run, effect, better),
                }
            )
        counts = {name: sum(e.verdict == name for e in effects) for name in ("better", "worse", "cannot tell")}
        steps.append({"before": before, "after": after, "lines": lines, "counts": counts})
    return steps


def _slipped(run: Run, measure: str, hide_text: bool) -> dict[str, Any]:
    wrong = run.slipped(measure)
    shown = [
        {
            "told": item,
            "here": turns(item.exchange, hide_text),
            "control": turns(item.control, hide_text),
            "before": _before(run, item, hide_text),
        }
        for item in wrong[:SHOWN_PER_MEASURE]
    ]
    row = run.row(measure, run.last)
    return {
        "measure": measure,
        "title": words.title(measure),
        "count": len(wrong),
        "shown": shown,
        "row": row,
        "principle": run.any_row(measure).principle,
    }


def _clean(run: Run) -> list[str]:
    """Measures without a single failing case at the last layer, with the bound where there is one."""
    clean = []
    for measure in run.measures:
        row = run.row(measure, run.last)
        if row and row.value is not None and not run.slipped(measure):
            told = f" {words.interval(row)}" if words.bound(row) is not None else ""
            clean.append(words.title(measure) + told)
    return clean


def _before(run: Run, item: Told, hide_text: bool) -> dict[str, Any] | None:
    """What the first layer answered to the same case."""
    if run.first == run.last:
        return None
    earlier = run.told_at(item.measure, run.first, item.case)
    if earlier is None:
        return None
    return {"told": earlier, "reply": turns(earlier.exchange, hide_text, reply_only=True)}


def _method(run: Run) -> dict[str, Any]:
    longest = max(run.seconds.values(), default=0.0)
    more = run.more
    return {
        "rows": [[row for row in (run.row(m, layer) for layer in run.layers) if row] for m in run.measures],
        "seconds": [(name, took, took / longest if longest else 0.0) for name, took in run.seconds.items()],
        "total": sum(run.seconds.values()),
        "facts": [(label, _fact(more[key])) for key, label in _FACTS.items() if more.get(key) not in _NOTHING],
        "versions": dict(more.get("versions") or {}),
        "stages": _tables(more.get("stages"), ("layer", "kind", "summary")),
        "labels": labels(run),
        "warnings": [str(item) for item in more.get("warnings") or []],
        "guard": more.get("guard") or {},
    }


def _tables(rows: object, keys: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Rows of an optional table of `results.json`, as text, in the order of `keys`."""
    found = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return [tuple("" if row.get(key) is None else str(row[key]) for key in keys) for row in found]


def _accuracy(run: Run) -> list[tuple[str, str, str, str, str, str]]:
    """Held-out preference accuracy (`preference_accuracy`): layer, scorer, pairs, value, interval, n."""
    found = []
    for row in run.more.get("preference_accuracy") or []:
        low, high = words.number(float(row["low"]), 3), words.number(float(row["high"]), 3)
        value = words.number(float(row["value"]), 3)
        found.append(
            (str(row["layer"]), str(row["scorer"]), str(row["pairs"]), value, f"[{low}, {high}]", f"{row['n']:,}")
        )
    return found


def _fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_fact(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


# --------------------------------------------------------------------------------------- the constitution


def _principle(p: Any) -> PrincipleText:
    return PrincipleText(p.id, p.dimension, p.severity, p.text)


def _all_principles(run: Run) -> list[PrincipleText]:
    """Those of the constitution, and any other that a row names."""
    known = {principle.id for principle in run.principles}
    named = dict.fromkeys(row.principle for row in run.rows if row.principle and row.principle not in known)
    return [*run.principles, *(PrincipleText(id) for id in named)]


def _principle_row(run: Run, principle: PrincipleText) -> dict[str, Any]:
    measures = [m for m in run.measures if run.any_row(m).principle == principle.id]
    return {
        "principle": principle,
        "measures": [
            {
                "title": words.title(m),
                "arrow": words.ARROW[run.any_row(m).better],
                "first": run.row(m, run.first),
                "last": run.row(m, run.last),
                "text": words.verdict(run.effect(m), run.any_row(m).better) if len(run.layers) > 1 else "",
                "mood": _mood(run.effect(m)),
            }
            for m in measures
        ],
        "effect": _own_effect(run, principle.id),
    }


def _mood(effect: Effect | None) -> str:
    return "" if effect is None or effect.verdict == "cannot tell" else effect.verdict


def _own_effect(run: Run, id: str) -> str:
    """What the principle itself does. Only a run without it can tell (`counterfactual` in results.json), so without
    one nothing is called inert."""
    found = [item for item in run.more.get("counterfactual") or [] if item.get("principle") == id]
    if not found:
        return ""
    moved = [words.title(str(item.get("measure"))) for item in found if item.get("verdict") != "cannot tell"]
    if moved:
        return f"Struck out, it changes: {', '.join(moved)}."
    measures = ", ".join(words.title(str(item.get("measure"))) for item in found)
    return f"Inert in this run: struck out, it changes nothing that could be told ({measures})."
