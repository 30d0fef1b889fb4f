"""The two workloads of the trainer benches: a model folder and the same rows for everyone.

    1   a random Llama of 6 layers (6.5M parameters, vocabulary 8,192) on HH-RLHF pairs, prompts up to 1,024 tokens
    2   the shipped apprentice on its own world, prompts and replies of a dozen tokens

`prepare` needs fairlead, tokenizers and transformers. What it writes needs nothing: `model/`, and `rows.json` with one
prompt (messages), a chosen and a rejected reply per row.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

END = "<|end|>"
SPECIALS = (END, "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
LLAMA: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
PROMPT_TOKENS = 1024


def prepare(workload: int, folder: Path, data: Path, pairs: int) -> None:
    """Write `folder/model` and `folder/rows.json` with `pairs` rows; the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = _hh(folder, data, pairs) if workload == 1 else _harbour(folder, pairs)
    if len(rows) < pairs:
        raise SystemExit(f"workload {workload} has {len(rows)} rows; {pairs} were asked")
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")


def _hh(folder: Path, data: Path, pairs: int) -> list[dict[str, Any]]:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from fairlead.feedback.formats import read_preferences

    values = read_preferences([data / "hh-rlhf"]).rows
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        (m.text for v in values for m in (*v.messages, *v.chosen)),
        trainers.BpeTrainer(
            vocab_size=LLAMA["vocab_size"],
            special_tokens=list(SPECIALS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    words = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token="<|pad|>")
    words.chat_template = CHAT
    words.save_pretrained(folder / "model")
    torch.manual_seed(0)
    ids = {"eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(**LLAMA, **ids)).save_pretrained(folder / "model")
    rows = []
    for value in values:
        row = _row(value.messages, value.chosen[-1].text, value.rejected[-1].text)
        length = len(words.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False))
        if length <= PROMPT_TOKENS and row["chosen"] and row["rejected"] and row["chosen"] != row["rejected"]:
            rows.append(row)
        if len(rows) == pairs:
            break
    return rows


def _harbour(folder: Path, pairs: int) -> list[dict[str, Any]]:
    from fairlead import apprentice
    from fairlead.apprentice.cases import _EVERYTHING, draw_scenes
    from fairlead.models import open_model

    open_model(str(Path(apprentice.path()).resolve())).save(folder / "model")  # type: ignore[attr-defined]
    rows = []
    for scene in draw_scenes(_EVERYTHING, "train", pairs, 0, "bench"):
        other = next(text for name, text in scene.answers.items() if text != scene.answers["good"])
        rows.append(_row(scene.messages, scene.answers["good"], other))
    return rows


def _row(messages: Any, chosen: str, rejected: str) -> dict[str, Any]:
    prompt = [{"role": message.role, "content": message.text} for message in messages]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
