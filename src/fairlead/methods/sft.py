"""Supervised fine-tuning on demonstrations: the loss is on the reply and its end of turn, or the whole text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fairlead.engine.adapters import Adapter
from fairlead.engine.logprobs import batch_of, reply_logprobs
from fairlead.exchange import Exchange
from fairlead.methods.adapters import adapter_of, merged, starting_point, trainable_copy
from fairlead.methods.config import SFTConfig
from fairlead.methods.loop import Run, StepRecord, Updates, batches
from fairlead.methods.losses import sft_nll
from fairlead.methods.neftune import noisy_embeddings
from fairlead.methods.resume import resumable
from fairlead.methods.rows import Trainable, exchange_rows, folder_key, whole_texts


@dataclass(frozen=True, slots=True)
class Tuned:
    """A trained model, what each step did, and what became of the rows."""

    model: Trainable
    records: tuple[StepRecord, ...]
    rows: int
    skipped_too_long: int
    cut: int
    adapter: Adapter | None = None

    @property
    def final_loss(self) -> float:
        """Mean loss per learnt token over the last tenth of the steps, nats."""
        last = self.records[-max(1, len(self.records) // 10) :]
        return sum(r.loss for r in last) / len(last)


def train_sft(
    model: Trainable,
    exchanges: Sequence[Exchange],
    config: SFTConfig,
    run: Run | None = None,
    *,
    places: Sequence[str] | None = None,
) -> Tuned:
    """Train a copy of the model on the exchanges' replies (or whole texts); the input model is left as it was.

    Rows are packed without padding and never see each other, so a step of many short rows costs their tokens alone.
    Raises `InputError` naming the rows that do not fit the context (`places[i]` names row i, else its index), and
    `TrainingStopped` where the loss or gradient is not a number.
    """
    run = run or Run()
    model = starting_point(model, config)
    rows = exchange_rows(model, exchanges, too_long=config.too_long, places=places)  # refuses what does not fit, by row
    if config.loss_on == "text":
        rows = whole_texts(rows)
    module = trainable_copy(model.module, config)
    updates = Updates(module, rows, config, run)
    key = folder_key("sft", model.lineage, rows.digest, config.model_dump_json())
    with resumable(updates, key) as start:
        for batch in batches(rows, config, start=start):
            layout = batch_of(module, batch.trees)
            seeds = [(config.seed % 2**63, batch.step, row) for row in batch.rows]  # of no micro-batch
            with noisy_embeddings(module, layout, batch.trees, config.neftune, seeds):
                logp = reply_logprobs(module, layout)
            updates.step(sft_nll(logp.logp_N, tokens=batch.step_tokens), batch)
    return Tuned(
        model=model.with_weights(merged(module)),
        records=tuple(updates.records),
        rows=len(rows.trees),
        skipped_too_long=rows.skipped_too_long,
        cut=rows.cut,
        adapter=adapter_of(module, model),
    )
