"""Replies of several turns: after each turn of the policy its partner speaks, and the policy goes on.

A partner (`partners.py`) is a user, simulated by a model or scripted, or what runs the tools. Its tokens
stand in the reply with a False mask and log-prob 0, so losses and judges see a conversation and the policy is paid for
its own words only. The policy's tokens are kept as it drew them, never encoded anew; what is between is rendered.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch

from fairlead.engine import counter
from fairlead.engine.forward import context_of
from fairlead.engine.layout import Tokens
from fairlead.errors import InputError
from fairlead.exchange import Exchange, Message, Part, Text, ToolCall, ToolResult, assistant
from fairlead.methods.partners import Parse, Partner
from fairlead.methods.rollouts import Asked, Drawing, Drawn, Sampler
from fairlead.models.render import decode_reply, encode_reply, is_prefix_stable, render_exchange

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """What became of the replies drawn so far.

    turns       turns of the policy
    calls       tool calls that were read; `bad_calls` could not be, and were answered with an error
    at_budget   replies that ended because the tokens were used up, though the partner had more to say
    at_context  replies that ended because what the partner said left no room in the context
    at_turns    replies that ended at the last turn with a tool call nobody answered
    recoded     replies whose text, encoded anew, gives other tokens than were drawn: what is trained is what was drawn
    """

    replies: int = 0
    turns: int = 0
    calls: int = 0
    bad_calls: int = 0
    at_budget: int = 0
    at_context: int = 0
    at_turns: int = 0
    recoded: int = 0


@dataclass(slots=True)
class _Row:
    """One reply as it grows. `seen` is `reply` with each tool call as a part, also where no template writes it."""

    asked: Asked
    sample: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    reply: list[Message] = field(default_factory=list)
    seen: list[Message] = field(default_factory=list)
    bad_call: str = ""
    finish: Literal["stop", "length"] | None = None

    @property
    def spent(self) -> int:
        return sum(self.mask)

    def calls(self) -> bool:
        return bool(self.bad_call) or any(isinstance(part, ToolCall) for part in self.seen[-1].parts)


class Episodes:
    """A sampler whose replies have up to `turns` turns of the policy.

    sampler     draws each turn; all rows that still run are asked together
    partner     speaks after each turn
    parse       finds the tool calls in a turn; without it there are none. A call that cannot be read is answered with
                an error message as the tool's result
    context     longest prompt plus reply, where what draws allows less than the model's own

    `Drawing.max_tokens` holds for the whole reply's drawn tokens. A reply ends as "stop" where the partner has nothing
    more to say or `turns` is reached, as "length" where a turn was cut, the tokens are used up, the context is full or
    the last turn calls a tool. The first turn draws what the sampler alone would; later ones have random numbers of
    their own, named by the prompt's key, the sample and the turn. `counts` adds up.

    Raises InputError for a tokenizer whose template rewrites earlier turns.
    """

    def __init__(
        self,
        sampler: Sampler,
        partner: Partner,
        tokenizer: Any,
        *,
        turns: int,
        parse: Parse | None = None,
        context: int | None = None,
    ) -> None:
        if turns < 1:
            raise InputError(f"episodes: turns is {turns}; a reply has at least one")
        if not is_prefix_stable(tokenizer):
            raise InputError(
                "episodes: the chat template rewrites earlier turns, so what the policy said would not be what it "
                "later reads; use a prefix-stable template"
            )
        self.name = f"{sampler.name}, up to {turns} turns"
        self.sampler, self.partner, self.tokenizer = sampler, partner, tokenizer
        self.turns, self.parse, self.context = turns, parse, context
        self.room = context
        self.counts = Counts()
        said = getattr(partner, "name", "")
        self.identity = f"{turns} turns, calls by {getattr(parse, '__name__', parse)}, {said}"  # what resuming goes by

    @property
    def exact(self) -> bool:
        return self.sampler.exact

    def refresh(self, module: torch.nn.Module, version: int) -> None:
        self.room = min((c for c in (self.context, context_of(module)) if c is not None), default=None)
        self.sampler.refresh(module, version)

    def draw(self, asked: Sequence[Asked], how: Drawing) -> list[list[Drawn]]:
        """`how.n` replies of several turns to each prompt, in order.

        Raises InputError for stop texts (a turn that one of them ends has no end that the template could go on from),
        and for a partner that speaks as the assistant.
        """
        if how.stop:
            raise InputError("episodes: stop texts end a turn without its end token; leave them out")
        rows = [_Row(one, sample) for one in asked for sample in range(how.n)]
        drawn = [one for group in self.sampler.draw(asked, how) for one in group]
        live = rows
        for turn in range(1, self.turns + 1):
            for row, one in zip(live, drawn, strict=True):
                self._take(row, one, how, turn)
            self._hear([row for row in live if row.finish is None], how, last=turn == self.turns)
            live = [row for row in live if row.finish is None]
            if not live:
                break
            left = [how.max_tokens - row.spent for row in live]
            groups = self.sampler.draw([_next(row, turn) for row in live], replace(how, n=1, max_tokens=max(left)))
            drawn = [self._cut(group[0], most) for group, most in zip(groups, left, strict=True)]
        self.counts.replies += len(rows)
        made = [self._done(row) for row in rows]
        return [made[at : at + how.n] for at in range(0, len(made), how.n)]

    def _take(self, row: _Row, one: Drawn, how: Drawing, turn: int) -> None:
        """Add a turn of the policy's."""
        if one.mask is not None or len(one.reply) != 1:
            raise InputError(f"episodes: {self.sampler.name} draws replies of several turns by itself")
        message, row.bad_call = one.reply[0], ""
        seen = message
        if self.parse is not None and one.finish == "stop":
            try:
                parts = _numbered(self.parse(message.text), turn)
            except ValueError as error:
                row.bad_call = str(error) or "it cannot be read"
                self.counts.bad_calls += 1
            else:
                calls = sum(isinstance(part, ToolCall) for part in parts)
                self.counts.calls += calls
                if calls:
                    seen = Message("assistant", parts)
                    # recorded as a call only where the template writes it with the very tokens that were drawn
                    message = seen if self._writes(row, seen) == one.tokens else message
        row.tokens += one.tokens
        row.logprobs += one.logprobs
        row.mask += [True] * len(one.tokens)
        row.reply.append(message)
        row.seen.append(seen)
        self.counts.turns += 1
        row.finish = "length" if one.finish == "length" else None

    def _hear(self, rows: Sequence[_Row], how: Drawing, *, last: bool) -> None:
        """Let the partner speak to these rows, and end those where nothing follows."""
        if last:
            for row in rows:
                row.finish = "length" if row.calls() else "stop"
                self.counts.at_turns += row.calls()
            return
        waiting = [row for row in rows if not row.bad_call]
        so_far = [replace(row.asked.exchange, reply=tuple(row.seen)) for row in waiting]
        batch: Any = getattr(self.partner, "batch", None)
        answers = list(batch(so_far)) if batch is not None else [self.partner(exchange) for exchange in so_far]
        if len(answers) != len(waiting):
            raise InputError(f"episodes: the partner gives {len(answers)} answers to {len(waiting)} conversations")
        said = {id(row): answer for row, answer in zip(waiting, answers, strict=True)}
        for row in rows:
            answer = [_misread(row)] if row.bad_call else list(said[id(row)] or ())
            if not answer:
                row.finish = "stop"
            elif row.spent >= how.max_tokens:
                row.finish = "length"
                self.counts.at_budget += 1
            else:
                self._add(row, answer)

    def _add(self, row: _Row, answer: Sequence[Message]) -> None:
        """Append what the partner said, where there is room to go on after it."""
        if any(message.role == "assistant" for message in answer):
            raise InputError("episodes: the partner speaks as the assistant; that is the policy's part")
        between = self._between(row, answer)
        if self.room is not None and len(row.asked.tokens) + len(row.tokens) + len(between) >= self.room:
            row.finish = "length"
            self.counts.at_context += 1
            return
        row.tokens += between
        row.logprobs += [0.0] * len(between)
        row.mask += [False] * len(between)
        row.reply += answer
        row.seen += answer

    def _between(self, row: _Row, answer: Sequence[Message]) -> Tokens:
        """The tokens from the end of the policy's turn to the start of its next: what no turn of its own claims."""
        ahead = "x"
        turns = (*row.reply, *answer, assistant(ahead))
        whole = render_exchange(self.tokenizer, Exchange(row.asked.exchange.messages, turns))
        end = len(whole.reply) - len(encode_reply(self.tokenizer, ahead))
        start = next(at for at in range(end, 0, -1) if whole.mask[at - 1])
        return whole.reply[start:end]

    def _writes(self, row: _Row, turn: Message) -> Tokens | None:
        said = (*row.asked.exchange.messages, *row.reply)
        try:
            return render_exchange(self.tokenizer, Exchange(said, (turn,))).reply
        except InputError:  # the template has no place for calls
            return None

    def _cut(self, one: Drawn, most: int) -> Drawn:
        """A turn that was drawn beside rows with more tokens left; its own numbers are those of a shorter draw."""
        if len(one.tokens) <= most:
            return one
        tokens = one.tokens[:most]
        return Drawn(tokens, one.logprobs[:most], "length", (assistant(decode_reply(self.tokenizer, tokens)),))

    def _done(self, row: _Row) -> Drawn:
        again = render_exchange(self.tokenizer, Exchange(row.asked.exchange.messages, tuple(row.reply)))
        have = len(row.tokens)
        same = again.reply[:have] == tuple(row.tokens) and again.mask[:have] == tuple(row.mask)
        self.counts.recoded += not (same and (row.finish == "length" or len(again.reply) == have))
        assert row.finish is not None
        mask = None if all(row.mask) else tuple(row.mask)
        return Drawn(tuple(row.tokens), tuple(row.logprobs), row.finish, tuple(row.reply), mask)

    def told(self) -> dict[str, int]:
        """`counts` by name, for the log."""
        return {one.name: getattr(self.counts, one.name) for one in fields(Counts)}


def _next(row: _Row, turn: int) -> Asked:
    key = int(counter.streams(row.asked.key, turn, row.sample)[0] >> 1)  # 63 bits: a key is a signed number
    so_far = replace(row.asked.exchange, messages=(*row.asked.exchange.messages, *row.reply))
    return Asked((*row.asked.tokens, *row.tokens), so_far, key)


def _numbered(parts: Sequence[Part], turn: int) -> tuple[Part, ...]:
    return tuple(
        replace(part, id=f"call-{turn}-{k}") if isinstance(part, ToolCall) else part for k, part in enumerate(parts)
    )


def _misread(row: _Row) -> Message:
    """The answer to a call that could not be read."""
    return Message("tool", (ToolResult("", (Text(f"error : {row.bad_call}"),), is_error=True),))
