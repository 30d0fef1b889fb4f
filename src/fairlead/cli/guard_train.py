"""`fairlead guard train`: a local classifier from the constitution, with its card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fairlead.cli.common import JsonOption, SeedOption


def train(
    constitution: Annotated[
        str, typer.Option("--constitution", "-c", metavar="C", help="Whose principles: a file or a pack.")
    ] = "hhh",
    exchanges: Annotated[
        list[Path] | None,
        typer.Option("--exchanges", metavar="FILE", help="Findings, revisions, ratings: JSON Lines with a principle."),
    ] = None,
    harmless: Annotated[
        list[Path] | None,
        typer.Option("--harmless", metavar="FILE", help="Harmless prompts or exchanges; the more, the lower a rate."),
    ] = None,
    encoder: Annotated[
        str, typer.Option("--encoder", metavar="DIR|tfidf", help="A sentence encoder's folder, or words alone.")
    ] = "tfidf",
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The classifier's folder.")] = Path(
        "runs/classifier"
    ),
    rate: Annotated[
        float, typer.Option("--rate", min=0.0001, max=0.5, help="False-positive rate that thresholds are set for.")
    ] = 0.05,
    copies: Annotated[int, typer.Option("--copies", min=0, max=8, help="Of every row in other dress.")] = 2,
    tune: Annotated[bool, typer.Option("--tune", help="Fine-tune the encoder (needs torch) before its heads.")] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a classifier from a constitution: what each principle calls broken, beside what keeps it.

    Exit 3 where there are too few rows for any principle. The folder is what `fairlead guard serve --classifier` reads.
    """
    from fairlead.cli.terminal import Terminal, print_json
    from fairlead.constitution import load
    from fairlead.guard.classifier.synth import found, from_constitution, harmless_pool
    from fairlead.guard.classifier.train import TFIDF, check_rows
    from fairlead.guard.classifier.train import train as train_it

    terminal = Terminal(quiet_out=as_json)
    written = load(constitution)
    rows = [
        *from_constitution(written, seed=seed),
        *found(written, exchanges or ()),
        *harmless_pool(written, harmless or ()),
    ]
    check_rows(rows)
    terminal.say(f"{len(rows):,} rows for {len(written.principles)} principles")
    options: dict[str, Any] = {"rate": rate, "copies": copies, "seed": seed, "say": terminal.say}
    if encoder != TFIDF:
        from fairlead.guard.classifier.encode import encoder_learner

        options |= {
            "kind": "encoder",
            "learn": encoder_learner(Path(encoder), out, tune=tune, seed=seed, say=terminal.say),
        }
    trained = train_it(written, rows, out, **options)
    if as_json:
        print_json({"out": str(trained.folder), "sha256": trained.classifier.sha256, "card": trained.card})
        return
    for head in trained.card["heads"]:
        t = head["test"]
        a, r, f = (t[k] for k in ("auroc", "recall", "false_positives"))
        terminal.say(
            f"{head['principle']:<24} {head['view']:<9} AUROC {a['value']:.2f} [{a['low']:.2f}, {a['high']:.2f}], "
            f"recall {r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}] (n {r['n']}), "
            f"false positives {f['value']:.3f} [{f['low']:.3f}, {f['high']:.3f}] (n {f['n']})"
        )
    for id, view, why in trained.card["left_out"]:
        terminal.say(f"no head: {id} ({view}): {why}")
    terminal.say(f"{trained.folder}: classifier {trained.classifier.sha256[:12]}, card in card.md")


def add(app: typer.Typer) -> None:
    """Mount the command under `fairlead guard`."""
    app.command("train")(train)
