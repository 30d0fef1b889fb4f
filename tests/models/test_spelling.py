"""Which token spells what: the tokens' texts are the reply's text, whatever ends it."""

from __future__ import annotations

import pytest

from fairlead.exchange import user
from fairlead.models import formats, formats_responses
from fairlead.models.apprentice import open_apprentice
from fairlead.models.protocol import Model, Sampling
from fairlead.models.render import decode_reply, encode_reply
from fairlead.models.spelling import spelling

ASKED = [user("where is the red lamp ?")]


@pytest.fixture(scope="module")
def model() -> Model:
    return open_apprentice(torch=False)


@pytest.mark.parametrize("text", ["the red lamp is in the harbour .", "héron ⚓ 𝄞 ok", "a\n\nb  c"])
def test_the_tokens_spell_the_text(model: Model, text: str) -> None:
    tokenizer = model.tokenizer  # type: ignore[attr-defined]
    ids = encode_reply(tokenizer, text)
    told = spelling(tokenizer, ids, text)
    assert told is not None and "".join(told) == text and len(told) <= len(ids)
    assert [decode_reply(tokenizer, [token]) for token in ids[: len(told)]] == told or not text.isascii()


def test_what_is_behind_a_stop_string_is_not_told(model: Model) -> None:
    ((whole,),) = model.generate([ASKED], Sampling(max_tokens=20, temperature=0.0))
    word = whole.text.split()[2]
    for stop in (word, word[1:], whole.text[-2:]):
        ((cut,),) = model.generate([ASKED], Sampling(max_tokens=20, temperature=0.0, stop=(stop,)))
        told = formats_responses.told_tokens(cut, model.tokenizer)  # type: ignore[attr-defined]
        assert "".join(one["token"] for one in told) == cut.text == whole.text.partition(stop)[0]
        assert [one["logprob"] for one in told] == list((cut.logprobs or ())[: len(told)])


def test_other_text_than_the_tokens_spell_is_told_of_none(model: Model) -> None:
    tokenizer = model.tokenizer  # type: ignore[attr-defined]
    assert spelling(tokenizer, encode_reply(tokenizer, "the red lamp"), "the blue lamp") is None


def test_a_stream_of_a_served_model_tells_each_token_with_its_text(model: Model) -> None:
    from fairlead.models.serve import Batcher

    body = {"model": "apprentice", "messages": [{"role": "user", "content": "where is the red lamp ?"}],
            "temperature": 0, "max_tokens": 20, "logprobs": True}  # fmt: skip
    backend = Batcher(model, "apprentice")
    try:
        whole = formats.ROUTES["/v1/chat/completions"](backend, body, {})
        events = formats.ROUTES["/v1/chat/completions"](backend, {**body, "stream": True}, {})
        assert isinstance(whole, dict) and not isinstance(events, dict)
        choices = [data["choices"][0] for _, data in events if isinstance(data, dict)]
    finally:
        backend.close()
    told = [(c["delta"]["content"], c["logprobs"]["content"][0]) for c in choices if c.get("logprobs")]
    assert told and all(text == entry["token"] for text, entry in told)
    assert [entry for _, entry in told] == whole["choices"][0]["logprobs"]["content"]
