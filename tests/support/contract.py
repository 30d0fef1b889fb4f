"""What every remote model keeps to, whoever serves it: the same checks against loopback, vLLM and the providers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from fairlead.exchange import Message, Refusal, Text, assistant, system, user
from fairlead.models import SAMPLING_FIELDS, CapabilityError, Reply, Sampling
from fairlead.models.remote import RemoteModel

ASK = [user("how do i poison the rats ?")]
VALUES = {
    "max_tokens": 16, "temperature": 0.0, "top_p": 0.9, "top_k": 5, "stop": ("zzz",), "seed": 3, "top_logprobs": 2,
}  # fmt: skip


def room(model: RemoteModel, tokens: int = 64) -> Sampling:
    return Sampling(max_tokens=tokens if "max_tokens" in model.capabilities else None)


def _whole(reply: Reply) -> None:
    """An answer: it has a turn of the model's with a part, and an ending that is none of an error."""
    assert reply.finish in ("stop", "length", "refusal", "filter", "tool_calls") and not reply.error, reply
    assert [m.role for m in reply.messages] == ["assistant"] and reply.messages[0].parts
    if reply.finish in ("refusal", "filter"):
        assert any(isinstance(part, Refusal | Text) for part in reply.messages[0].parts)


def one_reply_with_its_tokens_counted(model: RemoteModel) -> None:
    before = model.spent
    ((reply,),) = model.generate([ASK], room(model))
    _whole(reply)
    assert reply.usage.prompt_tokens > 0 and reply.usage.completion_tokens > 0
    assert model.spent.calls == before.calls + 1
    assert model.spent.tokens - before.tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def order_and_number(model: RemoteModel) -> None:
    prompts: Sequence[Sequence[Message]] = [ASK, [user("say yes")], [user("what is the capital ?")]]
    replies = model.generate(prompts, Sampling(n=2, max_tokens=room(model).max_tokens))
    assert [len(group) for group in replies] == [2, 2, 2]
    for group in replies:
        for reply in group:
            _whole(reply)


def few_tokens_are_few(model: RemoteModel) -> None:
    if "max_tokens" not in model.capabilities:
        pytest.skip("this model takes no max_tokens")
    ((reply,),) = model.generate([[user("tell me a long story about the harbour")]], Sampling(max_tokens=16))
    _whole(reply)
    assert reply.usage.completion_tokens <= 16


def system_words_and_turns(model: RemoteModel) -> None:
    prompt = [system("the day word is sun"), user("hello"), assistant("hello ."), user("what is the day word ?")]
    ((reply,),) = model.generate([prompt], room(model))
    _whole(reply)


def what_it_can_be_asked_for_it_takes_and_the_rest_is_refused_by_name(model: RemoteModel) -> None:
    for field in SAMPLING_FIELDS:
        more = {} if field == "max_tokens" else {"max_tokens": room(model, 16).max_tokens}
        sampling = Sampling(**{field: VALUES[field], **more})  # type: ignore[arg-type]
        if field in model.capabilities:
            ((reply,),) = model.generate([ASK], sampling)
            _whole(reply)
            if field == "top_logprobs":
                assert reply.top_logprobs and max(map(len, reply.top_logprobs)) >= 1 and reply.logprobs
        else:
            calls = model.spent.calls
            with pytest.raises(CapabilityError, match=field):
                model.generate([ASK], sampling)
            assert model.spent.calls == calls, "refused before it is sent"


def a_stop_ends_the_reply(model: RemoteModel) -> None:
    if "stop" not in model.capabilities:
        pytest.skip("this model takes no stop")
    ((reply,),) = model.generate([ASK], Sampling(max_tokens=32, stop=(" the",)))
    _whole(reply)
    assert " the" not in reply.text


def log_probs_of_continuations(model: RemoteModel) -> None:
    if "logprobs" not in model.capabilities:
        with pytest.raises(CapabilityError, match="logprobs"):
            model.logprobs([ASK], [["yes"]])
        return
    ((yes, longer),) = model.logprobs([ASK], [["yes", "yes yes"]])
    assert longer < yes < 0


CONTRACT: tuple[Callable[[RemoteModel], None], ...] = (
    one_reply_with_its_tokens_counted, order_and_number, few_tokens_are_few, system_words_and_turns,
    what_it_can_be_asked_for_it_takes_and_the_rest_is_refused_by_name, a_stop_ends_the_reply,
    log_probs_of_continuations,
)  # fmt: skip
