"""TRL's DPOTrainer on the pairs of `gpu.py`, at its best on a GPU: bfloat16, no checkpointing, no padding it can avoid.

Called by `gpu.py --trl` where TRL is installed. The token ids become words of a made-up vocabulary, so that TRL's own
preparation of the data runs as it always does.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from fairlead.engine.layout import Tree

ROWS_PER_STEP = 8


def dpo(config: LlamaConfig, trees: list[Tree], size: str) -> dict[str, Any]:
    """Pairs per second, the reference pass included, of one epoch over the pairs; the first step is left out."""
    import datasets
    from tokenizers import Tokenizer, models, pre_tokenizers
    from trl import DPOConfig, DPOTrainer

    names = {f"t{i}": i for i in range(config.vocab_size)}
    core = Tokenizer(models.WordLevel(names, unk_token="t0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="t1", pad_token="t2")
    rows = [
        {
            "prompt": _text(tree.prompt),
            "chosen": " " + _text(tree.replies[0]) + " t1",
            "rejected": " " + _text(tree.replies[1]) + " t1",
        }
        for tree in sorted(trees, key=lambda tree: -tree.longest)
    ]
    cuda = torch.cuda.is_available()
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        model = LlamaForCausalLM(config).to(torch.bfloat16)
        model.save_pretrained(Path(folder) / "model")
        model = LlamaForCausalLM.from_pretrained(Path(folder) / "model", dtype=torch.bfloat16)
        settings = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=ROWS_PER_STEP,
            max_length=None,
            gradient_checkpointing=False,
            bf16=cuda,
            use_cpu=not cuda,
            train_sampling_strategy="sequential",
            num_train_epochs=1,
            optim="adamw_torch_fused",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = DPOTrainer(
            model=model,
            args=settings,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    seconds = ends[-1] - ends[0]
    return {
        "train": "dpo",
        "model": size,
        "vocabulary": config.vocab_size,
        "way": "TRL",
        "rows_per_second": (len(rows) - ROWS_PER_STEP) / seconds if len(ends) > 1 else None,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
    }


def _text(ids: tuple[int, ...]) -> str:
    return " ".join(f"t{i}" for i in ids)
