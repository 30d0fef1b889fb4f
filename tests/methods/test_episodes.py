"""Replies of several turns: the tokens a policy drew, and between them, masked, what the other side said."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import pytest
import torch
from tests.methods.fakes import FAILED, FakeModel
from tests.support import tiny

from fairlead import apprentice
from fairlead.apprentice import world
from fairlead.errors import InputError, MissingResource
from fairlead.exchange import Exchange, Message, Text, ToolCall, ToolResult, assistant, exchange, system, user
from fairlead.methods.episodes import Episodes
from fairlead.methods.partners import SimulatedUser, apprentice_calls, first_of, tagged_calls, tools
from fairlead.methods.rollouts import Asked, Drawing, Drawn, LocalSampler, exchange_of
from fairlead.models.apprentice import PlainTokenizer
from fairlead.models.render import encode_reply, frame, render_exchange, render_prompt

HARBOUR = PlainTokenizer(apprentice.path())
WORDS = tiny.tokenizer()
ASK = [system("tool : price ."), user("what does the lantern cost today ?")]


@dataclass
class Script:
    """A sampler that says what `say(messages, sample)` gives, encoded as the template would; -0.5 nats a token."""

    tokenizer: Any
    say: Callable[[Sequence[Message], int], str | tuple[int, ...]]
    name: str = "script"
    exact: bool = True
    asked: list[tuple[list[Asked], Drawing]] = field(default_factory=list)

    def refresh(self, module: Any, version: int) -> None: ...

    def draw(self, asked: Sequence[Asked], how: Drawing) -> list[list[Drawn]]:
        self.asked.append((list(asked), how))
        return [[self._one(one, sample, how) for sample in range(how.n)] for one in asked]

    def _one(self, one: Asked, sample: int, how: Drawing) -> Drawn:
        said = self.say(one.exchange.messages, sample)
        ids = encode_reply(self.tokenizer, said) if isinstance(said, str) else said
        text = said if isinstance(said, str) else self.tokenizer.decode(list(said)[:-1])
        cut = ids[: how.max_tokens]
        shown = text if cut == ids else self.tokenizer.decode(list(cut))
        return Drawn(cut, (-0.5,) * len(cut), "stop" if cut == ids else "length", (assistant(shown),))


def asked(tokenizer: Any, messages: Sequence[Message], key: int = 0, **meta: Any) -> Asked:
    return Asked(render_prompt(tokenizer, messages), Exchange(tuple(messages), (), meta), key)


def in_turn(*texts: str) -> Callable[[Sequence[Message], int], str]:
    """The n-th text in the policy's n-th turn, later ones again."""
    return lambda messages, sample: texts[min(sum(m.role == "assistant" for m in messages), len(texts) - 1)]


def price(item: str) -> str:
    return {"lantern": "57", "rope": "4"}[item]


def check(tokenizer: Any, one: Asked, drawn: Drawn) -> None:
    """The messages, rendered again, are the tokens; the mask tells who spoke; only what was drawn has a log-prob."""
    again = render_exchange(tokenizer, exchange_of(one, drawn))
    assert again.prompt == one.tokens
    mask = drawn.mask or (True,) * len(drawn.tokens)
    cut = drawn.finish == "length" and len(again.reply) != len(drawn.tokens)
    have = len(drawn.tokens)
    assert again.reply[:have] == drawn.tokens and again.mask[:have] == mask
    assert cut or len(again.reply) == have
    assert len(drawn.logprobs) == have and all(
        p <= 0 if drew else p == 0 for p, drew in zip(drawn.logprobs, mask, strict=True)
    )


def test_a_tool_is_called_and_its_result_is_masked() -> None:
    script = Script(HARBOUR, in_turn("call price lantern", "today the lantern costs 57 coins ."))
    episodes = Episodes(script, tools({"price": price}), HARBOUR, turns=4, parse=apprentice_calls)
    one = asked(HARBOUR, ASK)
    ((drawn,),) = episodes.draw([one], Drawing())
    check(HARBOUR, one, drawn)
    assert drawn.mask is not None and drawn.finish == "stop"
    heard = HARBOUR.decode([i for i, m in zip(drawn.tokens, drawn.mask, strict=True) if not m])
    spoken = HARBOUR.decode([i for i, m in zip(drawn.tokens, drawn.mask, strict=True) if m])
    assert heard == "<|tool|>57<|end|><|assistant|>"
    assert spoken == "call price lantern<|end|>today the lantern costs 57 coins .<|end|>"
    assert drawn.scored == sum(drawn.mask) and sum(drawn.logprobs) == -0.5 * drawn.scored
    assert [m.role for m in drawn.reply] == ["assistant", "tool", "assistant"]
    assert drawn.reply[1].parts == (ToolResult("call-1-0", (Text("57"),)),)
    assert drawn.reply[0] == assistant("call price lantern"), "this template writes no calls: it stays text"
    second = script.asked[1][0][0]
    assert second.tokens == (
        *one.tokens,
        *drawn.tokens[: drawn.tokens.index(drawn.tokens[-1]) + 1 + drawn.mask.count(False)],
    )
    assert second.tokens == render_prompt(HARBOUR, [*ASK, *drawn.reply[:2]]), "what a later reader of the talk sees"
    assert episodes.told() | {"turns": 2, "calls": 1, "recoded": 0, "replies": 1} == episodes.told()


def test_a_call_is_recorded_as_one_where_the_template_writes_what_was_drawn() -> None:
    """tiny's template writes `call NAME "ARGUMENTS"` before the text."""

    def parse(text: str) -> tuple[Any, ...]:
        if not text.startswith("call "):
            return (Text(text),)
        _, name, arguments = text.split(" ", 2)
        return (ToolCall("", name, arguments.strip('"')),)

    for said, recorded in (('call price "rope"', True), ("call price rope", False)):
        episodes = Episodes(
            Script(WORDS, in_turn(said, "it is 4")), tools({"price": price}), WORDS, turns=2, parse=parse
        )
        one = asked(WORDS, [user("price ?")])
        ((drawn,),) = episodes.draw([one], Drawing())
        check(WORDS, one, drawn)
        assert isinstance(drawn.reply[0].parts[0], ToolCall) == recorded
        assert drawn.reply[1].parts == (ToolResult("call-1-0", (Text("4"),)),), "run either way"
        assert episodes.counts.recoded == 0


def test_calls_that_fail_are_told_to_the_policy() -> None:
    seen: list[str] = []

    def say(messages: Sequence[Message], sample: int) -> str:
        if messages[-1].role == "tool":
            seen.append(messages[-1].parts[0].parts[0].text)  # type: ignore[union-attr]
            return "i do not know that ."
        return ["call", "call weight rope", "call price moon", "call price rope", "no call"][sample]

    episodes = Episodes(Script(HARBOUR, say), tools({"price": price}), HARBOUR, turns=3, parse=apprentice_calls)
    one = asked(HARBOUR, ASK)
    (group,) = episodes.draw([one], Drawing(n=5))
    for drawn in group:
        check(HARBOUR, one, drawn)
    results = [d.reply[1].parts[0] for d in group[:4]]
    assert [r.is_error for r in results if isinstance(r, ToolResult)] == [True, True, True, False]
    assert seen == [
        "error : a call is : call , the tool , and what it is asked", "error : no tool weight ; there is price", "error : moon", "4",
    ]  # fmt: skip
    assert len(group[4].reply) == 1 and group[4].mask is None, "nothing to do: one turn, every token drawn"
    assert (episodes.counts.bad_calls, episodes.counts.calls) == (1, 3)
    with pytest.raises(ZeroDivisionError):
        broken = Episodes(
            Script(HARBOUR, in_turn("call price rope")),
            tools({"price": lambda x: str(1 // 0)}),
            HARBOUR,
            turns=3,
            parse=apprentice_calls,
        )
        broken.draw([one], Drawing())


def test_a_scripted_user_and_rows_of_different_lengths_are_asked_together() -> None:
    def partner(so_far: Exchange) -> list[Message] | None:
        said = sum(m.role == "assistant" for m in so_far.reply)
        return [user("and then ?"), user("why ?")] if said < so_far.meta["turns"] else None

    script = Script(WORDS, lambda messages, sample: "the boat is blue" if len(messages) > 1 else f"a b {sample}")
    rows = [asked(WORDS, [user(f"hello {i}")], key=10 + i, turns=i) for i in range(1, 5)]
    groups = Episodes(script, partner, WORDS, turns=3).draw(rows, Drawing(n=2))
    for one, group in zip(rows, groups, strict=True):
        for sample, drawn in enumerate(group):
            check(WORDS, one, drawn)
            assert drawn.reply[0].text == f"a b {sample}" and drawn.finish == "stop"
            assert sum(m.role == "assistant" for m in drawn.reply) == min(3, one.exchange.meta["turns"])
    assert [len(one) for one, _ in script.asked] == [4, 6, 4], (
        "prompts first, then each reply that still runs, in one batch"
    )
    assert [how.n for _, how in script.asked] == [2, 1, 1]
    keys = [one.key for batch, _ in script.asked[1:] for one in batch]
    assert len(set(keys)) == len(keys) and all(0 <= key < 2**63 for key in keys)
    again = Script(WORDS, script.say)
    Episodes(again, partner, WORDS, turns=3).draw(rows[2:], Drawing(n=2))
    assert [o.key for o in again.asked[1][0]] == [o.key for o in script.asked[1][0][2:]], (
        "named by prompt, sample and turn, not by the batch"
    )


def test_the_token_budget_is_for_the_whole_reply() -> None:
    def partner(so_far: Exchange) -> list[Message]:
        return [user("more")]

    long = "the boat is blue and it lies at the dock"
    size = len(encode_reply(WORDS, long))
    one = asked(WORDS, [user("a")])
    for budget in range(1, 3 * size + 1):
        episodes = Episodes(Script(WORDS, in_turn(long)), partner, WORDS, turns=3)
        ((drawn,),) = episodes.draw([one], Drawing(max_tokens=budget))
        check(WORDS, one, drawn)
        assert drawn.scored == budget, "never more, and none is left over"
        assert drawn.finish == ("stop" if budget == 3 * size else "length")
        assert episodes.counts.at_budget == (budget in (size, 2 * size))
        assert drawn.reply[-1].role == "assistant", "what the partner said to nobody is left out"
    # a row with less left than its neighbour is cut by itself
    short = "yes no yes no yes"
    script = Script(WORDS, lambda messages, sample: long if sample == 0 or len(messages) > 1 else short)
    ((first, second),) = Episodes(script, partner, WORDS, turns=2).draw([one], Drawing(n=2, max_tokens=size + 3))
    assert script.asked[1][1].max_tokens == size + 3 - len(encode_reply(WORDS, short)) > 3
    for drawn in (first, second):
        check(WORDS, one, drawn)
        assert (drawn.scored, drawn.finish) == (size + 3, "length")


def test_a_full_context_ends_the_reply_as_cut() -> None:
    def partner(so_far: Exchange) -> list[Message]:
        return [user("what colour is the boat ?")]

    one = asked(WORDS, [user("a")])
    turn = len(encode_reply(WORDS, "blue"))
    ((free,),) = Episodes(Script(WORDS, in_turn("blue")), partner, WORDS, turns=2).draw([one], Drawing())
    needs = len(one.tokens) + len(free.tokens) - turn  # prompt, turn and what is between: the next turn needs one more
    for context, turns in ((needs, 1), (needs + 1, 2)):
        episodes = Episodes(Script(WORDS, in_turn("blue")), partner, WORDS, turns=2, context=context)
        ((drawn,),) = episodes.draw([one], Drawing())
        assert len(drawn.reply) == 2 * turns - 1
        assert drawn.finish == ("length" if turns == 1 else "stop") and episodes.counts.at_context == (turns == 1)


def test_a_call_in_the_last_turn_is_a_reply_that_was_cut() -> None:
    episodes = Episodes(
        Script(HARBOUR, in_turn("call price rope")), tools({"price": price}), HARBOUR, turns=2, parse=apprentice_calls
    )
    ((drawn,),) = episodes.draw([asked(HARBOUR, ASK)], Drawing())
    assert drawn.finish == "length" and [m.role for m in drawn.reply] == ["assistant", "tool", "assistant"]
    assert episodes.counts.at_turns == 1


def test_tokens_that_no_text_encodes_to_are_kept_as_drawn_and_counted() -> None:
    letters = tuple(i for c in "the boat" for i in WORDS(c, add_special_tokens=False)["input_ids"])
    assert letters != encode_reply(WORDS, "the boat", end=False)
    ids = (*letters, frame(WORDS).end)
    script = Script(WORDS, lambda messages, sample: ids)
    episodes = Episodes(script, lambda so_far: [user("b")], WORDS, turns=2)
    ((drawn,),) = episodes.draw([asked(WORDS, [user("a")])], Drawing())
    assert drawn.tokens[: len(ids)] == ids == drawn.tokens[-len(ids) :] and episodes.counts.recoded == 1
    assert drawn.reply[0].text == "the boat"


def test_what_cannot_be_played_is_refused() -> None:
    script = Script(WORDS, in_turn("a"))
    counting = tiny.tokenizer("{{ messages | length }}" + tiny.CHAT)
    with pytest.raises(InputError, match="prefix-stable"):
        Episodes(script, lambda so_far: None, counting, turns=2)
    with pytest.raises(InputError, match="at least one"):
        Episodes(script, lambda so_far: None, WORDS, turns=0)
    one = asked(WORDS, [user("a")])
    with pytest.raises(InputError, match="stop texts"):
        Episodes(script, lambda so_far: None, WORDS, turns=2).draw([one], Drawing(stop=("x",)))
    with pytest.raises(InputError, match="speaks as the assistant"):
        Episodes(script, lambda so_far: [assistant("b")], WORDS, turns=2).draw([one], Drawing())
    inner = Episodes(script, lambda so_far: [user("b")], WORDS, turns=2)
    with pytest.raises(InputError, match="by itself"):
        Episodes(inner, lambda so_far: None, WORDS, turns=2).draw([one], Drawing())


# -------------------------------------------------------------------------------------- the real decoder


def test_log_probs_are_those_of_the_conversation_the_policy_read() -> None:
    """Independent of the wrapper: the model's own forward over the whole reply, in float32 (its logits reach tens)."""
    model = tiny.llama(len(WORDS), context=200)
    sampler = LocalSampler(WORDS)
    episodes = Episodes(sampler, lambda so_far: [user("what colour is the boat ?")], WORDS, turns=3)
    episodes.refresh(model, 0)
    rows = [asked(WORDS, [user(text)], key=i) for i, text in enumerate(("a", "the rats", "yes or no"))]
    how = Drawing(n=4, max_tokens=60, temperature=0.7, seed=3)
    groups = episodes.draw(rows, how)
    ended = 0
    for one, group in zip(rows, groups, strict=True):
        for drawn in group:
            mask = drawn.mask or (True,) * len(drawn.tokens)
            ended += len(drawn.reply) > 1
            ids = torch.tensor([[*one.tokens, *drawn.tokens]])
            with torch.no_grad():
                logp = (model(ids).logits[0].float() / how.temperature).log_softmax(-1)
            at = len(one.tokens)
            for t, (token, said, counts) in enumerate(zip(drawn.tokens, drawn.logprobs, mask, strict=True)):
                assert said == (pytest.approx(float(logp[at + t - 1, token]), abs=1e-4) if counts else 0.0)
    assert ended, "some reply has a second turn"
    plain = sampler.draw(rows, how)
    for group, alone in zip(groups, plain, strict=True):
        for drawn, first in zip(group, alone, strict=True):
            assert drawn.tokens[: len(first.tokens)] == first.tokens, "the first turn is the sampler's own"
    alone = list(chain(*episodes.draw(rows[1:], how)))
    for one, other in zip(alone, chain(*groups[1:]), strict=True):  # a reply does not depend on its neighbours
        assert one.tokens == other.tokens and one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert one.reply == other.reply
    assert episodes.draw(rows, replace(how, seed=4)) != groups


def test_the_apprentice_asks_its_tool_and_says_what_it_heard() -> None:
    from fairlead.models.apprentice import open_apprentice

    model: Any = open_apprentice()
    goods = world.ITEMS[:6]
    shop = tools({"price": lambda item: str(20 + goods.index(item))})
    episodes = Episodes(LocalSampler(model.tokenizer), shop, model.tokenizer, turns=3, parse=apprentice_calls)
    episodes.refresh(model.module, 0)
    rows = [
        asked(model.tokenizer, [ASK[0], user(f"what does the {item} cost today ?")], key)
        for key, item in enumerate(goods)
    ]
    for number, (drawn,) in enumerate(episodes.draw(rows, Drawing(temperature=0, max_tokens=40))):
        check(model.tokenizer, rows[number], drawn)
        assert [m.role for m in drawn.reply] == ["assistant", "tool", "assistant"] and drawn.finish == "stop"
        assert drawn.reply[0].text.split() == ["call", "price", goods[number]]
        assert str(20 + number) in drawn.reply[-1].text.split()
    assert episodes.counts.calls == 6 and not episodes.counts.recoded


# ---------------------------------------------------------------------------------------------- partners


def test_the_apprentices_calls() -> None:
    assert apprentice_calls("call price red lantern") == (ToolCall("", "price", "red lantern"),)
    assert apprentice_calls("i call the harbour") == (Text("i call the harbour"),)
    for text in ("call", "call price", "call , price"):
        with pytest.raises(ValueError, match="a call is"):
            apprentice_calls(text)


def test_a_model_in_the_users_place(tmp_path: Any) -> None:
    heard: list[str] = []

    def say(text: str, n: int) -> str:
        heard.append(text)
        return "thanks [done]" if "rope costs" in text else "  and the rope ?  "

    model = FakeModel(say)
    partner = SimulatedUser(model, goal="two prices")
    script = Script(WORDS, in_turn("the lantern costs 57", "the rope costs 4"))
    rows = [asked(WORDS, [user("price ?")]), asked(WORDS, [user("<|user|>cost of rope ?")], key=1, goal="rope\nalone")]
    (first,), (second,) = Episodes(script, partner, WORDS, turns=5).draw(rows, Drawing())
    check(WORDS, rows[0], first)
    for drawn in (first, second):
        assert [m.text for m in drawn.reply] == ["the lantern costs 57", "and the rope ?", "the rope costs 4"]
    assert [n for n, _ in model.asked] == [2, 2], "both conversations in one call"
    assert "What you want: two prices\n" in heard[0] and "user: price ?\nassistant: the lantern costs 57\n" in heard[0]
    assert "rope\n    alone" in heard[1] and "<|user|>" not in heard[1]
    own = tmp_path / "own.md"
    own.write_text("{{ transcript }} / {{ done }}")
    asks = SimulatedUser(FakeModel(lambda text, n: text), own)
    assert asks(exchange("a", "b")) is None, "it has said [done]"
    with pytest.raises(MissingResource, match="no connection"):
        SimulatedUser(FakeModel(lambda text, n: FAILED))(exchange("a", "b"))
    own.write_text("{{ transcrpt }}")
    with pytest.raises(InputError, match="transcrpt"):
        asks(exchange("a", "b"))


def test_tools_first_then_a_user() -> None:
    partner = first_of(tools({"price": price}), lambda so_far: [user("thanks")])
    call = Message("assistant", (ToolCall("1", "price", "rope"),))
    assert partner(Exchange((user("a"),), (call,))) == [Message("tool", (ToolResult("1", (Text("4"),)),))]
    assert partner(exchange("a", "b")) == [user("thanks")]


def test_tagged_calls_are_read_and_what_is_none_is_said() -> None:
    text = 'Let me look.\n<tool_call>\n{"name": "price", "arguments": {"item": "rope"}}\n</tool_call>'
    said, call = tagged_calls(text)
    assert isinstance(said, Text) and said.text.strip() == "Let me look."
    assert isinstance(call, ToolCall) and (call.name, json.loads(call.arguments)) == ("price", {"item": "rope"})
    two = tagged_calls('<tool_call>{"name": "a"}</tool_call>\n<tool_call>{"name": "b", "arguments": {}}')
    assert [(part.name, part.arguments) for part in two if isinstance(part, ToolCall)] == [("a", "{}"), ("b", "{}")]
    assert tagged_calls("no call") == (Text("no call"),) and tagged_calls("") == (Text(""),)
    for wrong, why in (("<tool_call>{}</tool_call>", "a call is"), ("<tool_call>price", "no JSON"),
                       ("<tool_call>[1]</tool_call>", "a call is")):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            tagged_calls(wrong)
