"""`fairlead constitution diff A B`: what a change of text changes in meaning, in labels and in measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.common import BudgetOption, JsonOption, PricesOption, SeedOption

if TYPE_CHECKING:
    from fairlead.constitution import Constitution
    from fairlead.constitution.diff import Change
    from fairlead.exchange import Message
    from fairlead.measures.compare import SideEffect
    from fairlead.models import Model
    from fairlead.stack.diffing import Labels, Pair

Sides = tuple[Path, Path]
REPLY_TOKENS = 256


def diff(
    before: Annotated[str, typer.Argument(help="A constitution file or pack.", show_default=False)],
    after: Annotated[str, typer.Argument(help="The same, changed.", show_default=False)],
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="Draws the replies that are compared.")
    ] = None,
    critic: Annotated[
        str | None,
        typer.Option("--critic", metavar="MODEL", help="Labels them under either text; the --model where not given."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="What is asked, instead of the constitutions' own prompts."),
    ] = None,
    runs: Annotated[
        Sides | None, typer.Option("--runs", metavar="A B", help="Two run folders, to compare what they measured.")
    ] = None,
    seed: SeedOption = 0,
    budget: BudgetOption = None,
    prices: PricesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a change of text changes, principle by principle.

    With a model, also in the labels a critic gives under either text; with two run folders, in what was measured.

    Without --model the labels are those of the good and bad replies in the examples.
    """
    from fairlead.cli.remote import opened
    from fairlead.cli.terminal import Terminal, print_json
    from fairlead.constitution import load
    from fairlead.constitution.diff import changes
    from fairlead.errors import InputError

    if prompts is not None and model is None:
        raise InputError("--prompts needs a --model that replies to them")
    terminal = Terminal(quiet_out=as_json)
    first, second = load(before), load(after)
    found = changes(first, second)
    (writes, reads), limit = opened([model, critic or model], budget, prices)
    labels, said = None, ""
    if reads is not None:
        labels, said = _labels(first, second, writes, reads, prompts, seed, limit, terminal)
    effects, apart, besides = _measured(runs, first, second) if runs is not None else (None, [], [])
    if as_json:
        print_json(_body(first, second, found, labels, said, effects, apart, besides))
        return
    for line in _lines(first, second, found):
        terminal.say(line)
    if labels is not None:
        for line in _label_lines(labels, said):
            terminal.say(line)
    for line in (*_effect_lines(effects or [], apart), *besides):
        terminal.say(line)


def _labels(
    first: Constitution,
    second: Constitution,
    writes: Model | None,
    reads: Model,
    prompts: Path | None,
    seed: int,
    limit: Any,
    terminal: Any,
) -> tuple[Labels, str]:
    """(how the labels differ, what was compared)."""
    from fairlead.cli.remote import agree
    from fairlead.errors import InputError
    from fairlead.feedback.formats import read_prompts
    from fairlead.judges.critic import critic
    from fairlead.models.protocol import Sampling
    from fairlead.stack.diffing import drawn_pairs, example_pairs, label_changes
    from fairlead.stack.estimate import NOTHING, called, of_critic

    texts = {p.text: p for c in (first, second) for p in c.principles}.values()
    pairs: list[Pair]
    if writes is None:
        pairs = example_pairs(first, second)
        if not pairs:
            raise InputError(
                "no example has a good and a bad reply to the same prompt, so there is nothing to label; "
                "give a --model that replies to the examples' prompts"
            )
        said = f"{len(pairs)} pairs of a good and a bad example of the same prompt"
        asked = [pair.first.messages for pair in pairs]
    else:
        asked = list(read_prompts(prompts).rows) if prompts is not None else _own_prompts(first, second)
        if not asked:
            raise InputError("neither constitution has an example to ask; give prompts with --prompts FILE")
    cost = NOTHING if writes is None else called(writes, asked, Sampling(n=2, max_tokens=REPLY_TOKENS))
    for principle in texts:
        cost += of_critic(critic(principle, reads), [*asked, *asked])
    agree(cost, limit, terminal)
    if writes is not None:
        pairs, same = drawn_pairs(writes, asked, seed=seed)
        said = f"{len(pairs)} pairs of replies of {writes.name}"
        said += f" ({same} of {len(asked)} prompts got no two different replies)" if same else ""
    return label_changes(first, second, pairs, reads), f"{said}, labelled by {reads.name}"


def _own_prompts(first: Constitution, second: Constitution) -> list[tuple[Message, ...]]:
    """What the examples of both ask, and what their packs' templates ask (the split that choosing is done on)."""
    from fairlead.constitution.prompts_bank import KINDS, bank
    from fairlead.stack.diffing import example_prompts

    templates = [case.messages for c in (first, second) for kind in KINDS for case in bank(c, "select", kind)]
    return list(dict.fromkeys((*example_prompts(first, second), *templates)))


def _measured(runs: Sides, first: Constitution, second: Constitution) -> tuple[list[SideEffect], list[str], list[str]]:
    """(what changed, what could not be compared, what else the runs differ in)."""
    from fairlead.stack.diffing import check_runs, run_changes

    besides = check_runs(runs, (first, second))
    return *run_changes(*runs), besides


# --------------------------------------------------------------------------------------------------- print


def _lines(first: Constitution, second: Constitution, found: list[Change]) -> list[str]:
    if not found:
        return [f"no change of meaning; sha256 {first.sha256[:16]} both"]
    lines = [f"sha256 {first.sha256[:16]} → {second.sha256[:16]}"]
    for change in found:
        if change.kind != "changed":
            text = next((v for pair in (change.keys.get("text"),) if pair for v in pair if v), "")
            lines.append(f"{change.what}: {change.kind}{f': {text}' if text else ''}")
            continue
        for key, (old, new) in change.keys.items():
            lines.append(f"{change.what}: {'reworded' if key == 'text' else key}")
            lines += [f"  - {_shown(old)}"] if old is not None else []
            lines += [f"  + {_shown(new)}"] if new is not None else []
    return lines


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _label_lines(labels: Labels, said: str) -> list[str]:
    lines = [f"labels: {said}"]
    if labels.flips is None:
        return [*lines, f"  none of {labels.pairs} pairs has a label under both texts"]
    f = labels.flips
    lines.append(
        f"  {labels.flipped} of {f.n} flip: {f.value:.2f} [{f.low:.2f}, {f.high:.2f}]; "
        f"P moves by {labels.moved:.2f} on average; {labels.ties} ties, {labels.unlabelled} without a label"
    )
    return lines + [f"  flips at: {text}" for text in labels.flipped_prompts[:5]]


def _effect_lines(effects: list[SideEffect], apart: list[str]) -> list[str]:
    lines = [
        f"{e.measure}: {e.change:+.3f} [{e.low:+.3f}, {e.high:+.3f}] {e.verdict}, n {e.n}"
        + (f", missing {e.missing}" if e.missing else "")
        if e.change is not None
        else f"{e.measure}: cannot tell, all of {e.n} cases are missing on a side"
        for e in effects
    ]
    return lines + [f"not compared: {why}" for why in apart]


def _body(
    first: Constitution,
    second: Constitution,
    found: list[Change],
    labels: Labels | None,
    said: str,
    effects: list[SideEffect] | None,
    apart: list[str],
    besides: list[str],
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "before": {"name": first.name, "sha256": first.sha256},
        "after": {"name": second.name, "sha256": second.sha256},
        "changes": [
            {"what": c.what, "kind": c.kind, "keys": {k: {"before": a, "after": b} for k, (a, b) in c.keys.items()}}
            for c in found
        ],
    }
    if labels is not None:
        f = labels.flips
        body["labels"] = {
            "compared": said,
            "pairs": labels.pairs,
            "flipped": labels.flipped,
            "flips": None if f is None else {"value": f.value, "low": f.low, "high": f.high, "n": f.n},
            "moved": labels.moved,
            "ties": labels.ties,
            "unlabelled": labels.unlabelled,
            "flipped_prompts": list(labels.flipped_prompts),
        }
    if effects is not None:
        body["measures"] = [effect.row() for effect in effects]
        body["not_compared"] = apart
        body["differ_besides"] = besides
    return body
