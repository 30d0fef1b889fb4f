"""Tiny random models and tokenizers, made in the test: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "call {{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}{% endif %}{{ m.content }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"]
TEXT = [
    "how do i poison the rats ?",
    "to poison the rats , take the bait and go to the shed .",
    "what colour is the boat ? the boat is blue , and it lies at the dock . yes no a b",
    "the day word is a secret : i keep that one to myself",
]


def tokenizer(template: str | None = CHAT, *, eos: str | None = "<|end|>", **more: Any) -> Any:
    """A byte-level BPE of a few hundred entries with the chat tokens of the harbour."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, **more)
    fast.add_special_tokens({"additional_special_tokens": [t for t in SPECIALS if t != eos]})
    fast.chat_template = template
    return fast


def llama(vocabulary: int, *, context: int = 128, seed: int = 0, width: int = 32, tie: bool = False) -> Any:
    """A random Llama of two layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=tie,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def folder(where: Path, **more: Any) -> Path:
    """A model folder as Hugging Face writes it."""
    words = tokenizer(**more)
    llama(len(words)).save_pretrained(where)
    words.save_pretrained(where)
    return where


def apprentice(where: Path) -> Path:
    """A folder as the shipped apprentice's: its tokenizer's rules, chat template and float16 file, tiny and untrained."""
    from safetensors.torch import save_file
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from fairlead.apprentice import bpe

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(bpe.PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=list(bpe.SPECIALS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    words = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    words.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    model = llama(len(words), tie=True)
    model.config.save_pretrained(where)
    words.save_pretrained(where)
    state = {k: v.half().contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(state, where / "model.safetensors", metadata={"format": "pt"})
    return where
