"""`fairlead guard train`: a local classifier from the constitution, with its card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.common import JsonOption, SeedOption

if TYPE_CHECKING:
    from fairlead.cli.terminal import Terminal
    from fairlead.constitution import Constitution
    from fairlead.guard.classifier.rows import Row


def train(
    constitution: Annotated[
        str, typer.Option("--constitution", "-c", metavar="C", help="Whose principles: a file or a pack.")
    ] = "hhh",
    exchanges: Annotated[
        list[Path] | None,
        typer.Option("--exchanges", metavar="FILE", help="Findings, revisions, ratings, texts of tools: JSON Lines."),
    ] = None,
    harmless: Annotated[
        list[Path] | None,
        typer.Option("--harmless", metavar="FILE", help="Harmless prompts, exchanges, tools' texts: many, for a rate."),
    ] = None,
    encoder: Annotated[
        str, typer.Option("--encoder", metavar="DIR|tfidf", help="A sentence encoder's folder, or words alone.")
    ] = "tfidf",
    probe: Annotated[
        str | None,
        typer.Option("--probe", metavar="MODEL", help="Probes of a model that runs here, not a classifier: ./dir, …"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Its folder.", show_default="runs/classifier, or runs/probe"),
    ] = None,
    rate: Annotated[
        float, typer.Option("--rate", min=0.0001, max=0.5, help="False-positive rate that thresholds are set for.")
    ] = 0.05,
    copies: Annotated[int, typer.Option("--copies", min=0, max=8, help="Of every row in other dress.")] = 2,
    tune: Annotated[bool, typer.Option("--tune", help="Fine-tune the encoder (needs torch) before its heads.")] = False,
    layers: Annotated[
        str, typer.Option("--layers", metavar="third|all", help="Of --tune: the upper third, or all (orders need it).")
    ] = "third",
    runs: Annotated[
        int, typer.Option("--runs", metavar="N", min=1, max=16, help="Of --tune: runs whose weights are averaged.")
    ] = 1,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a classifier from a constitution: what each principle calls broken, beside what keeps it.

    Exit 3 where there are too few rows for any principle. The folder is what `fairlead guard serve --classifier` reads.
    With --probe the same rows fit a linear probe for each principle, on the hidden states of a model that runs here:
    `fairlead guard serve --model MODEL --probe DIR`.
    """
    from fairlead.cli.terminal import Terminal, print_json
    from fairlead.constitution import load
    from fairlead.errors import InputError
    from fairlead.guard.classifier.injected import injection_rows
    from fairlead.guard.classifier.synth import found, from_constitution, harmless_pool
    from fairlead.guard.classifier.train import TFIDF, check_rows
    from fairlead.guard.classifier.train import train as train_it
    from fairlead.guard.compile import gravest_of_secrecy

    terminal = Terminal(quiet_out=as_json)
    _belonging(encoder != TFIDF, tune, layers, runs)
    written = load(constitution)
    rows = [
        *from_constitution(written, seed=seed),
        *found(written, exchanges or ()),
        *harmless_pool(written, harmless or ()),
    ]
    if probe is None and gravest_of_secrecy(written):
        rows += injection_rows(seed=seed)  # a probe reads what is answered, and no tools' texts
    check_rows(rows)
    terminal.say(f"{len(rows):,} rows for {len(written.principles)} principles")
    if probe is not None:
        if encoder != TFIDF or tune:
            raise InputError("--probe reads the model's own states: leave --encoder and --tune out")
        _probes(written, rows, probe, out or Path("runs/probe"), rate, seed, terminal, as_json)
        return
    out = out or Path("runs/classifier")
    options: dict[str, Any] = {"rate": rate, "copies": copies, "seed": seed, "say": terminal.say}
    if encoder != TFIDF:
        from fairlead.guard.classifier.encode import encoder_learner
        from fairlead.guard.classifier.finetune import Tuning

        tuning = Tuning(seed=seed, frozen_layers=0 if layers == "all" else None) if tune else None
        learn = encoder_learner(Path(encoder), out, tune=tune, tuning=tuning, runs=runs, seed=seed, say=terminal.say)
        options |= {"kind": "encoder", "learn": learn}
    trained = train_it(written, rows, out, **options)
    if as_json:
        print_json({"out": str(trained.folder), "sha256": trained.classifier.sha256, "card": trained.card})
        return
    for head in trained.card["heads"]:
        terminal.say(f"{head['principle']:<24} {head['view']:<9} {_numbers(head['test'])}")
    for id, view, why in trained.card["left_out"]:
        terminal.say(f"no head: {id} ({view}): {why}")
    terminal.say(f"{trained.folder}: classifier {trained.classifier.sha256[:12]}, card in card.md")


def _belonging(encoder: bool, tune: bool, layers: str, runs: int) -> None:
    """Options that say nothing without each other."""
    from fairlead.errors import InputError

    if layers not in ("third", "all"):
        raise InputError(f"--layers {layers}: write third or all")
    if not tune and (layers != "third" or runs > 1):
        raise InputError(f"--{'layers' if layers != 'third' else 'runs'}: says how the encoder is tuned; add --tune")
    if tune and not encoder:
        raise InputError("--tune: fine-tunes an encoder; give its folder with --encoder")


def _numbers(test: dict[str, Any]) -> str:
    a, r, f = (test[k] for k in ("auroc", "recall", "false_positives"))
    return (
        f"AUROC {a['value']:.2f} [{a['low']:.2f}, {a['high']:.2f}], "
        f"recall {r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}] (n {r['n']}), "
        f"false positives {f['value']:.3f} [{f['low']:.3f}, {f['high']:.3f}] (n {f['n']})"
    )


def _probes(
    constitution: Constitution, rows: list[Row], spec: str, out: Path, rate: float, seed: int, terminal: Terminal,
    as_json: bool,
) -> None:  # fmt: skip
    from fairlead.cli.terminal import print_json
    from fairlead.errors import InputError
    from fairlead.guard.classifier.probe_train import fit_probes
    from fairlead.models import is_remote, open_model

    if is_remote(spec):
        raise InputError(f"--probe {spec}: a probe reads hidden states; name a model that runs here")
    fitted = fit_probes(constitution, open_model(spec), rows, out, rate=rate, seed=seed, say=terminal.say)
    if as_json:
        print_json({"out": str(fitted.folder), "card": fitted.card})
        return
    for one in fitted.card["probes"]:
        terminal.say(f"{one['principle']:<24} {_numbers(one['test'])}")
    for id, why in fitted.card["left_out"]:
        terminal.say(f"no probe: {id}: {why}")
    terminal.say(
        f"{fitted.folder}: {len(fitted.probes)} probes of {fitted.card['model']['lineage']}, card in card.json"
    )


def add(app: typer.Typer) -> None:
    """Mount the command under `fairlead guard`."""
    app.command("train")(train)
