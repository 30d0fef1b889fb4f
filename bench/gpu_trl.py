"""TRL on the work of `gpu.py`, at its best on a GPU: bfloat16, no checkpointing, no padding it can avoid, no vLLM.

`gpu.py --trl PYTHON` starts this file once for each trainer, with the interpreter of an environment that has TRL (and
need not have fairlead). Reads an order as JSON from stdin, prints one row as JSON on the last line of stdout. The token
ids become words of a made-up vocabulary, so that TRL's own preparation of the data runs as it always does.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

ROWS_PER_STEP = 8
CUDA = torch.cuda.is_available()
END, PAD = "t1", "t2"


def main() -> None:
    order = json.loads(sys.stdin.read())
    config = LlamaConfig(**order["config"])
    do = {"dpo": fixed, "sft": fixed, "reward": fixed, "grpo": grpo}[order["method"]]
    about = {"model": order["size"], "vocabulary": config.vocab_size, "way": "TRL"}
    try:
        row = do(config, order)
    except torch.OutOfMemoryError:
        row = {"failed": "out of memory"}
    name = "grpo" if order["method"] == "grpo" else "train"
    print(json.dumps({name: "TRL" if name == "grpo" else order["method"], **about, **row}))


class Clock(TrainerCallback):
    """When each step ended, the device's work done."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if CUDA:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def fixed(config: LlamaConfig, order: dict[str, Any]) -> dict[str, Any]:
    """Rows per second of one epoch, DPO's reference pass included; the first step is left out."""
    import datasets
    import trl

    trainer_of, settings_of = {
        "dpo": (trl.DPOTrainer, trl.DPOConfig),
        "sft": (trl.SFTTrainer, trl.SFTConfig),
        "reward": (trl.RewardTrainer, trl.RewardConfig),
    }[order["method"]]
    rows = [_row(order["method"], *row) for row in sorted(order["rows"], key=lambda row: -max(map(len, row)))]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(
            model=_model(config, folder, reward=order["method"] == "reward"),
            args=settings_of(
                **_common(folder), per_device_train_batch_size=ROWS_PER_STEP, num_train_epochs=1, max_length=None,
                train_sampling_strategy="sequential",
            ),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=_tokenizer(config.vocab_size),
            callbacks=[clock],
        )  # fmt: skip
        trainer.train()
    ends = clock.ends
    rate = (len(rows) - ROWS_PER_STEP) / (ends[-1] - ends[0]) if len(ends) > 1 else None
    return {"rows_per_second": rate, "peak_gb": _peak()}


def grpo(config: LlamaConfig, order: dict[str, Any]) -> dict[str, Any]:
    """Median seconds of a step, the first left out: the group, lengths, KL and optimiser of gpu_rl.py."""
    import datasets
    import trl

    prompts, group, tokens = order["rows"], order["group"], order["tokens"]
    clock = Clock()

    def score(completion_ids: Any, **_: Any) -> list[float]:
        return [sum(token % 7 == 0 for token in ids) / max(len(ids), 1) for ids in completion_ids]

    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.GRPOTrainer(
            model=_model(config, folder, reward=False),
            reward_funcs=[score],
            args=trl.GRPOConfig(
                **_common(folder), per_device_train_batch_size=len(prompts) * group // order["split"],
                gradient_accumulation_steps=order["split"], num_generations=group, max_completion_length=tokens,
                max_steps=order["steps"] + 1, beta=order["beta"], loss_type="grpo", temperature=1.0,
                shuffle_dataset=False, generation_kwargs={"min_new_tokens": tokens},
            ),
            train_dataset=datasets.Dataset.from_list([{"prompt": _text(p)} for p in prompts] * (order["steps"] + 1)),
            processing_class=_tokenizer(config.vocab_size, padding_side="left"),
            callbacks=[clock],
        )  # fmt: skip
        began = time.perf_counter()
        trainer.train()
    took = [b - a for a, b in pairwise([began, *clock.ends])][1:]
    seconds = median(took) if took else None
    rate = len(prompts) * group / seconds if seconds else None
    return {"step_seconds": seconds, "replies_per_second": rate, "peak_gb": _peak()}


# ------------------------------------------------------------------------------------------------- what all share


def _common(folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder, "gradient_checkpointing": False, "bf16": CUDA, "use_cpu": not CUDA,
        "learning_rate": 1e-6, "lr_scheduler_type": "constant", "optim": "adamw_torch_fused",
        "logging_strategy": "no", "save_strategy": "no", "report_to": [], "disable_tqdm": True,
        "dataloader_pin_memory": CUDA,
    }  # fmt: skip


def _model(config: LlamaConfig, folder: str, *, reward: bool) -> Any:
    """Random weights in bfloat16, read from a folder, since TRL opens its reference from where the model came from."""
    config.pad_token_id = 2
    kind = LlamaForSequenceClassification if reward else LlamaForCausalLM
    if reward:
        config.num_labels = 1
    kind(config).to(torch.bfloat16).save_pretrained(Path(folder) / "model")
    return kind.from_pretrained(Path(folder) / "model", dtype=torch.bfloat16)


def _tokenizer(vocabulary: int, **more: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocabulary)}, unk_token="t0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=PAD, **more)


def _row(method: str, prompt: list[int], chosen: list[int], rejected: list[int]) -> dict[str, str]:
    first, second = (f" {_text(reply)} {END}" for reply in (chosen, rejected))
    if method == "sft":
        return {"prompt": _text(prompt), "completion": first}
    return {"prompt": _text(prompt), "chosen": first, "rejected": second}


def _text(ids: list[int]) -> str:
    return " ".join(f"t{i}" for i in ids)


def _peak() -> float | None:
    return torch.cuda.max_memory_allocated() / 1e9 if CUDA else None


if __name__ == "__main__":
    main()
