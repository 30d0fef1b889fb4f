"""Training rows of every kind: the stop is kept and scored, one BOS, nothing merged, whatever the tokenizer's settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.methods.trainable import Tiny, demonstrations, pairs, tiny_model, weights  # noqa: E402
from tests.support import tiny  # noqa: E402

from fairlead.engine.logprobs import score  # noqa: E402
from fairlead.exchange import Ranking, Rated, Stepped, assistant, user  # noqa: E402
from fairlead.methods.config import SFTConfig  # noqa: E402
from fairlead.methods.process import stepped_rows  # noqa: E402
from fairlead.methods.rows import Rows, compared_rows, exchange_rows, pair_rows, rated_rows  # noqa: E402
from fairlead.methods.sft import train_sft  # noqa: E402
from fairlead.models.render import decode_reply  # noqa: E402

MODEL = tiny_model()
END = MODEL.tokenizer.eos_token_id
REPLIES = [(assistant(text),) for text in ("the boat is blue", " yes", "no", "hello")]
RANKING = Ranking((user("the boat ?"),), tuple(REPLIES), (2, 0, 3, 1))
KINDS: dict[str, Callable[[Tiny], Rows]] = {
    "exchanges": lambda model: exchange_rows(model, demonstrations(6)),
    "pairs": lambda model: pair_rows(model, pairs(6)),
    "rated": lambda model: rated_rows(model, [Rated((user("what ?"),), reply, True) for reply in REPLIES]),
    "rankings": lambda model: compared_rows(model, [*pairs(3), RANKING]),
    "steps": lambda model: stepped_rows(
        model, [Stepped((user("how ?"),), ("yes", "no", "a b"), (1.0, None, 0.0))], "\n"
    )[0],
}


def reading(**settings: Any) -> Tiny:
    return dataclasses.replace(MODEL, tokenizer=tiny.tokenizer(**settings))


def cutting_and_padding() -> Tiny:
    """A tokenizer whose file asks for both, as those of embedding models do."""
    words = tiny.tokenizer(pad_token="<|end|>")
    words.backend_tokenizer.enable_padding(length=50, pad_id=END, pad_token="<|end|>")
    words.backend_tokenizer.enable_truncation(3)
    return dataclasses.replace(MODEL, tokenizer=words)


TOKENIZERS: dict[str, Callable[[], Tiny]] = {
    "pads with EOS": lambda: reading(pad_token="<|end|>"),
    "pads with EOS on the left": lambda: reading(pad_token="<|end|>", padding_side="left"),
    "pads with another on the left": lambda: reading(pad_token="<|system|>", padding_side="left"),
    "cuts on the left": lambda: reading(truncation_side="left", model_max_length=4),
    "cuts and pads by its own file": cutting_and_padding,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_rows_are_the_same_and_end_in_a_stop(kind: str, tokenizer: str) -> None:
    plain, got = KINDS[kind](MODEL), KINDS[kind](TOKENIZERS[tokenizer]())
    assert got.trees == plain.trees
    for tree in got.trees:
        for number, reply in enumerate(tree.replies):
            assert reply[-1] == END and reply.count(END) == 1
            mask = tree.masks[number] if tree.masks is not None else None
            assert kind == "steps" or mask is None or mask[-1], "the stop is scored"


@pytest.mark.parametrize("kind", KINDS)
def test_rows_have_one_bos_though_template_and_tokenizer_both_write_it(kind: str) -> None:
    from tokenizers.processors import TemplateProcessing

    words = tiny.tokenizer("{{ bos_token }}" + tiny.CHAT, bos_token="<|tool|>")
    bos = words.bos_token_id
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|tool|> $A <|end|>", special_tokens=[("<|tool|>", bos), ("<|end|>", END)]
    )
    assert words("a")["input_ids"][0] == bos and words("a")["input_ids"][-1] == END
    made = KINDS[kind](dataclasses.replace(MODEL, tokenizer=words))
    for tree, plain in zip(made.trees, KINDS[kind](MODEL).trees, strict=True):
        assert tree.prompt == (bos, *plain.prompt)
        assert tree.replies == plain.replies


def test_prompt_and_reply_are_encoded_apart() -> None:
    """A template that ends in letters, so that the reply's first ones would merge with them."""
    words = tiny.tokenizer(
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    )
    model = dataclasses.replace(MODEL, tokenizer=words)
    asked, replies = (user("what colour is the bo"),), ((assistant("at is blue"),), (assistant("s"),))
    whole = words("what colour is the boat is blue", add_special_tokens=False)["input_ids"]
    (tree,) = compared_rows(model, [Ranking(asked, replies, (0, 1))]).trees
    assert list(tree.prompt) == words("what colour is the bo", add_special_tokens=False)["input_ids"]
    assert [decode_reply(words, reply) for reply in tree.replies] == ["at is blue", "s"]
    assert list(tree.prompt + tree.replies[0][:-1]) != whole, "in one piece, other tokens"
    assert words.decode(list(tree.prompt + tree.replies[0][:-1])) == words.decode(whole)


def test_a_stop_that_is_also_padding_is_learnt() -> None:
    """EOS as the padding token of tokenizer and model, whose embedding then takes no gradient; the head's does."""
    from transformers import LlamaForCausalLM

    own = MODEL.module
    config = type(own.config).from_dict({**own.config.to_dict(), "pad_token_id": END, "eos_token_id": END})
    padded = LlamaForCausalLM(config).double().eval()
    padded.load_state_dict(own.state_dict())
    assert padded.model.embed_tokens.padding_idx == END
    model = dataclasses.replace(reading(pad_token="<|end|>", padding_side="left"), module=padded)
    settings = SFTConfig(steps=12, rows_per_step=6, lr=1e-2, warmup=0)
    got, plain = (train_sft(m, demonstrations(6), settings).model for m in (model, MODEL))

    def stop(of: Any) -> float:
        logps = score(of.module, exchange_rows(MODEL, demonstrations(6)).trees)
        return float(logps.logp_N[logps.count_R.cumsum(0) - 1].mean())

    assert stop(got) > stop(model) + 1.0
    assert stop(got) == pytest.approx(stop(plain), abs=0.5)
    assert torch.equal(weights(MODEL), weights(tiny_model()))
