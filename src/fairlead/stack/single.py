"""One training stage alone, outside a stack: what `fairlead train` does."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fairlead.errors import InputError
from fairlead.feedback.formats import ExchangeSet, PreferenceSet, read_demonstrations, read_preferences
from fairlead.methods.config import DPOConfig, SFTConfig
from fairlead.stack.atomic import plain_disk_errors, sweep, whole_folder
from fairlead.stack.context import settle_torch
from fairlead.stack.folder import write_json, write_lines
from fairlead.stack.identity import cores
from fairlead.stack.plan import METHODS
from fairlead.stack.read import validated_settings
from fairlead.stack.source import locate, torch_installed
from fairlead.stack.stages.train import learning_rate
from fairlead.stack.voice import Voice

Method = Literal["sft", "dpo"]
TRIED_STEPS = 3  # steps a dry run takes; the fastest counts, since the first one pays for warming up


def train_stage(
    method: Method,
    spec: str,
    data: Path,
    out: Path,
    settings: Mapping[str, Any],
    seed: int,
    skip_bad_rows: bool,
    threads: int | None,
    voice: Voice,
) -> dict[str, Any]:
    """Train and write a model folder that `AutoModelForCausalLM` loads; returns what `train.json` in it says."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already; give a new folder with --out")
    if out.is_dir():
        out.rmdir()
    model, rows, config = _opened(method, spec, data, settings, seed, skip_bad_rows, threads, voice)
    began = time.perf_counter()
    with plain_disk_errors(out):
        sweep(out.parent)
        with whole_folder(out) as folder:
            trained, facts, records = _train(method, model, rows, config, voice)
            trained.save(folder)
            report = {
                "method": method, "model": spec, "data": str(data), "config": config.model_dump(mode="json"), **facts,
                "seconds": round(time.perf_counter() - began, 2),
            }  # fmt: skip
            write_json(folder / "train.json", report)
            write_lines(folder / "steps.jsonl", (dataclasses.asdict(record) for record in records))
    return report


def estimate_stage(
    method: Method,
    spec: str,
    data: Path,
    settings: Mapping[str, Any],
    seed: int,
    skip_bad_rows: bool,
    threads: int | None,
    voice: Voice,
) -> dict[str, Any]:
    """Rows, tokens and steps of a training, and its time from a few steps that are thrown away."""
    from fairlead.methods.loop import step_rows
    from fairlead.methods.rows import exchange_rows, pair_rows

    model, rows, config = _opened(method, spec, data, settings, seed, skip_bad_rows, threads, voice)
    if isinstance(rows, ExchangeSet):
        trees = exchange_rows(model, rows.rows, too_long=config.too_long, places=rows.places)
    else:
        trees = pair_rows(model, rows.rows, too_long=config.too_long, places=rows.places)
    steps = step_rows(trees, config)
    few = config.model_copy(update={"steps": min(TRIED_STEPS, len(steps)), "epochs": None})
    if isinstance(few, DPOConfig):
        few = few.model_copy(update={"kl_samples": 0})
    _, _, records = _train(method, model, rows, few, voice)
    tokens = sum(tree.tokens for tree in trees.trees)
    # The reference pass of DPO is one forward over every pair, about a third of a training step on it.
    each = min(r.seconds for r in records)
    reference = each * len(steps) / 3 if method == "dpo" else 0.0
    return {
        "method": method,
        "rows": len(trees.trees),
        "skipped_too_long": trees.skipped_too_long,
        "tokens": tokens,
        "steps": len(steps),
        "seconds_per_step": each,
        "about_seconds": each * len(steps) + reference,
        "config": config.model_dump(mode="json"),
    }


def _opened(
    method: Method,
    spec: str,
    data: Path,
    settings: Mapping[str, Any],
    seed: int,
    skip_bad_rows: bool,
    threads: int | None,
    voice: Voice,
) -> tuple[Any, ExchangeSet | PreferenceSet, SFTConfig | DPOConfig]:
    """The model, the rows and the settled configuration; the cheap checks come first."""
    config: Any = validated_settings(METHODS[method], dict(settings))
    source = locate(spec)
    if source.folder is None:
        raise InputError(f"{spec}: has no weights here to train; training needs a model folder or a hub name")
    if not torch_installed():
        from fairlead.errors import MissingResource

        raise MissingResource("training needs torch: pip install 'fairlead[train]'")
    read = read_demonstrations if method == "sft" else read_preferences
    rows = read(data, skip_bad_rows=skip_bad_rows)
    for line in rows.report.lines():
        voice.say(line)
    config = config.model_copy(update={"seed": seed})
    if "lr" not in settings:
        config = config.model_copy(update={"lr": learning_rate(method, source.parameters)})
    if config.epochs is None and config.steps is None:
        config = config.model_copy(update={"epochs": 1.0})
    from fairlead.models import open_model

    settle_torch(threads or cores())
    model = open_model("apprentice" if spec == "apprentice" else str(source.folder.resolve()))
    return model, rows, config


def _train(
    method: Method, model: Any, rows: Any, config: Any, voice: Voice
) -> tuple[Any, dict[str, Any], tuple[Any, ...]]:
    from fairlead.methods.loop import Run
    from fairlead.methods.preference import train_dpo
    from fairlead.methods.sft import train_sft

    with voice.progress(f"{method}: training") as advance:
        run = Run(progress=lambda record: advance(record.step + 1, record.steps))
        if method == "sft":
            tuned = train_sft(model, rows.rows, config, run, places=rows.places)
            facts: dict[str, Any] = {
                "rows": tuned.rows, "skipped_too_long": tuned.skipped_too_long, "cut": tuned.cut,
                "steps": len(tuned.records), "final_loss": tuned.final_loss,
            }  # fmt: skip
            return tuned.model, facts, tuned.records
        preferred = train_dpo(model, rows.rows, config, run, places=rows.places)
        facts = {
            "pairs": preferred.pairs, "ties": preferred.ties, "identical": preferred.identical,
            "skipped_too_long": preferred.skipped_too_long, "cut": preferred.cut, "steps": len(preferred.records),
            "kl": None if preferred.kl is None else dataclasses.asdict(preferred.kl), **preferred.metrics(),
            "warnings": [alarm.message for alarm in preferred.alarms],
        }  # fmt: skip
        return preferred.model, facts, preferred.records
