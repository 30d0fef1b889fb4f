"""TRL's side of `vs_trl.py`: one run of one trainer in one process. Needs trl, torch, transformers; not fairlead.

The settings below are TRL at its best on a CPU: float32, gradient checkpointing off (its default is on), logging,
saving, evaluation and progress bars off, fused AdamW. `VARIANTS` are what may still make it faster; the fastest is the
denominator of every ratio.
"""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 1,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.99,
    "max_grad_norm": 1.0,
    "optim": "adamw_torch_fused",
    "gradient_checkpointing": False,
    "bf16": False,
    "fp16": False,
    "use_cpu": True,
    "max_length": None,
    "train_sampling_strategy": "sequential",  # the rows come in the order they are given, see `ordered`
    "logging_strategy": "no",
    "save_strategy": "no",
    "eval_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "seed": 0,
}
# "grouped" is a mark of ours: the rows in the order of transformers' LengthGroupedSampler. "packed" reports rows per
# second over other batches, of about as many rows, so its losses are not compared.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "dpo": {
        "as it comes": {},
        "length grouped": {"grouped": True},
        "reference precomputed": {"precompute_ref_log_probs": True},
        "reference precomputed, length grouped": {"precompute_ref_log_probs": True, "grouped": True},
    },
    "reward": {"as it comes": {}, "length grouped": {"grouped": True}},
    "sft": {
        "as it comes": {},
        "length grouped": {"grouped": True},
        "packed": {"packing": True, "per_device_train_batch_size": 1},
    },
}


def run(method: str, folder: Path, order: list[int], *, variant: str, steps: int | None, check: bool) -> dict[str, Any]:
    """Train on the rows in `order`. `steps` cuts the run short; `check` records every step's loss and the token ids."""
    import datasets
    import transformers
    import trl
    from memory import peak, reset_peak
    from transformers import AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification, TrainerCallback

    datasets.disable_progress_bars()
    base, config = {
        "dpo": (trl.DPOTrainer, trl.DPOConfig),
        "reward": (trl.RewardTrainer, trl.RewardConfig),
        "sft": (trl.SFTTrainer, trl.SFTConfig),
    }[method]
    more = dict(VARIANTS[method][variant])
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    rows = [rows[row] for row in order]
    if more.pop("grouped", False):
        rows = _grouped(rows, tokenizer)
    if more.get("packing"):
        more["max_length"] = _of_a_step(rows, tokenizer)
    dataset = datasets.Dataset.from_list([_columns(method, row) for row in rows])
    times: list[float] = []
    losses: list[float] = []
    reference = [0.0]

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            if not times:
                times.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    class Timed(base):  # type: ignore[misc, valid-type]
        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = super()._precompute_ref_logps(*args, **kwargs)
            reference[0] += time.perf_counter() - began
            return result

    class Told(Timed):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            result = super().compute_loss(*args, **kwargs)
            losses.append(float(result[0] if isinstance(result, tuple) else result))
            return result

    # Peak memory counts from here: modules and rows are loaded, the model is not.
    before = reset_peak()
    if method == "reward":
        model = LlamaForSequenceClassification.from_pretrained(folder / "reward", dtype="float32")
    else:
        model = LlamaForCausalLM.from_pretrained(folder / "model", dtype="float32")
    settings = {**COMMON, "output_dir": str(folder / "trl"), "max_steps": steps or -1, **more}
    trainer = (Told if check else Timed)(
        model=model,
        args=config(**settings),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    ids = _ids(method, trainer.train_dataset) if check else []
    trainer.train()
    return {
        "seconds": [b - a for a, b in pairwise(times)],
        "reference_seconds": reference[0],
        "rows": len(rows),
        "share": (len(times) - 1) / len(trainer.get_train_dataloader()),
        "peak_bytes": peak() - before,
        "losses": losses,
        "ids": ids,
        "versions": {"trl": trl.__version__, "transformers": transformers.__version__},
    }


def _columns(method: str, row: dict[str, Any]) -> dict[str, Any]:
    chosen, rejected = ([{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected"))
    if method == "sft":
        return {"prompt": row["prompt"], "completion": chosen}
    return {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}


def _grouped(rows: list[dict[str, Any]], tokenizer: Any) -> list[dict[str, Any]]:
    """The order that `train_sampling_strategy="group_by_length"` gives, by the longer of a row's two sequences.

    TRL's preference datasets have no column that the sampler could read lengths from, so the bench does it for TRL.
    """
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    generator = torch.Generator().manual_seed(0)
    order = get_length_grouped_indices(
        [_length(row, tokenizer, "chosen", "rejected") for row in rows],
        COMMON["per_device_train_batch_size"],
        generator=generator,
    )
    return [rows[i] for i in order]


def _of_a_step(rows: list[dict[str, Any]], tokenizer: Any) -> int:
    """Tokens that hold the 8 rows of a step on average, and the longest row: as many packed steps as ours."""
    lengths = [_length(row, tokenizer, "chosen") for row in rows]
    return max(*lengths, round(COMMON["per_device_train_batch_size"] * sum(lengths) / len(lengths)))


def _length(row: dict[str, Any], tokenizer: Any, *sides: str) -> int:
    """Tokens of the prompt and the longest of these replies, its end of turn included."""
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    return len(prompt) + max(len(tokenizer(row[side])["input_ids"]) for side in sides) + 1


def _ids(method: str, dataset: Any) -> list[list[list[int]]]:
    """Token ids per row as TRL will feed them, one list per sequence: what ours must be equal to."""
    if method == "sft":
        return [[list(row["input_ids"])] for row in dataset]
    if method == "reward":
        return [[list(row["chosen_ids"]), list(row["rejected_ids"])] for row in dataset]
    return [[[*row["prompt_ids"], *row[side]] for side in ("chosen_ids", "rejected_ids")] for row in dataset]
