"""Messages become token ids here, and only here.

One masking contract for every trainer and decoder: the tokens the model has to say count, which are the reply's own
tokens and the one that ends its turn; the prompt, template text and tool results do not. The reply is encoded apart
from the prompt, so no token spans their border. The end-of-turn token is part of the reply by its position, never by
its id: a tokenizer whose padding token is its EOS loses nothing.

Text is text: `<|end|>` typed by a user is spelled out in ordinary tokens and never becomes the control token. Templates
see it as a placeholder, so this holds for any template. Added tokens that are not special (`<think>`, `<tool_call>`)
are spelled out only where they come from outside (user, tool, retrieved text).

A tokenizer here is a transformers tokenizer or anything with the few members of `Tokenizer` below.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from jinja2 import TemplateError

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Media, Message, Reasoning, Refusal, Text, ToolCall, ToolResult, assistant, user
from fairlead.models.toolong import TooLong

log = logging.getLogger("fairlead.models")

Ids = tuple[int, ...]

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}\n\n"
    "{% elif message.role == 'user' %}User: {{ message.content }}\n\n"
    "{% elif message.role == 'tool' %}Tool: {{ message.content }}\n\n"
    "{% else %}Assistant: {{ message.content }}{{ eos_token }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""What a tokenizer without a chat template is given: `User: …`, blank line, `Assistant: …`, EOS after each answer."""

_OUTSIDE = ("user", "tool", "retrieved")
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"  # private-use characters around a placeholder's number


class Tokenizer(Protocol):
    """What rendering needs. Transformers' fast tokenizers have it; so has the torch-free one of the apprentice."""

    chat_template: Any
    eos_token_id: int | None

    def __call__(self, text: str, *, add_special_tokens: bool = ...) -> Any: ...
    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str: ...
    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...
    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...


class Rendered(NamedTuple):
    """An exchange as token ids. `mask` runs along `reply`: True where the model spoke and the token counts."""

    prompt: Ids
    reply: Ids
    mask: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """How one tokenizer's template frames an answer, probed once.

    lead     text between the prompt and the answer ("" or a space), part of the reply
    trail    text between the answer and the end of the turn, part of the reply
    end      id of the token that ends the turn
    after    text the template writes after that token
    stops    ids at which decoding stops: `end` and EOS
    controls all added tokens by text, with True where the tokenizer calls them special
    anchor   "\\n" where the tokenizer puts a space before the first word of a text, else ""
    """

    lead: str
    trail: str
    end: int
    after: str
    stops: frozenset[int]
    controls: Mapping[str, bool]
    anchor: str


_frames: WeakKeyDictionary[Any, tuple[Any, Frame]] = WeakKeyDictionary()


def prepare(tokenizer: Any, where: str, *, plain: Literal["say", "refuse"] = "say") -> None:
    """Check a freshly loaded tokenizer: it needs an EOS, and a chat template or the plain one.

    The plain template is set on the tokenizer itself, so that a folder saved with it chats the same way elsewhere.
    Raises InputError where there is no EOS token, or no template and `plain="refuse"`.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{where}: the tokenizer has no EOS token, so no reply would ever end. "
            'Set "eos_token" in its tokenizer_config.json.'
        )
    if not tokenizer.chat_template:
        if plain == "refuse":
            raise InputError(f"{where}: the tokenizer has no chat template. Add chat_template.jinja to the folder.")
        bos = tokenizer("a")["input_ids"][:1] == [getattr(tokenizer, "bos_token_id", None)]
        tokenizer.chat_template = ("{{ bos_token }}" if bos else "") + PLAIN_TEMPLATE
        log.warning("%s: no chat template; using the plain one ('User: …', blank line, 'Assistant: …', EOS)", where)


# ------------------------------------------------------------------------------------------- rendering


def render_prompt(tokenizer: Any, messages: Sequence[Message]) -> Ids:
    """Token ids of a conversation up to the point where the assistant speaks, BOS at most once."""
    return _encode(tokenizer, *_write(tokenizer, messages, generation=True))


def render_exchange(tokenizer: Any, exchange: Exchange) -> Rendered:
    """Prompt ids, reply ids with the end of turn, and which of the reply's tokens count.

    A reply of several turns (tool calls and their results) needs a prefix-stable template; what lies between the
    assistant's turns is in `reply` with a False mask. Raises InputError where the template rewrites earlier turns.
    """
    said = list(exchange.messages)
    reply: list[int] = []
    mask: list[bool] = []
    turns = list(exchange.reply)
    if not turns or turns[0].role != "assistant":
        raise InputError("a reply must begin with an assistant turn: there is nothing the model said here")
    for i, turn in enumerate(turns):
        if turn.role == "assistant":
            ids = _turn(tokenizer, said, turn)
            counts = True
        else:
            ids = _between(tokenizer, said, turn, generation=i + 1 < len(turns) and turns[i + 1].role == "assistant")
            counts = False
        said.append(turn)
        reply += ids
        mask += [counts] * len(ids)
    return Rendered(render_prompt(tokenizer, exchange.messages), tuple(reply), tuple(mask))


def encode_reply(tokenizer: Any, text: str, *, end: bool = True) -> Ids:
    """Ids of an answer as it follows the prompt; with `end`, the end of the turn too."""
    shape = frame(tokenizer)
    if not end:
        return tuple(_plain(tokenizer, shape, shape.lead + text))
    return (*_plain(tokenizer, shape, shape.lead + text + shape.trail), shape.end)


def decode_reply(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of generated ids: the end of turn goes, control tokens inside the answer stay visible."""
    shape = frame(tokenizer)
    kept = list(ids)
    while kept and kept[-1] in shape.stops:
        kept.pop()
    text = str(tokenizer.decode(kept, skip_special_tokens=False))
    if shape.trail and len(kept) < len(ids):
        text = text.removesuffix(shape.trail)
    return text.removeprefix(shape.lead)


def render_prompts(
    tokenizer: Any,
    prompts: Sequence[Sequence[Message]],
    *,
    limit: int | None,
    cut: Literal["left"] | None = None,
) -> tuple[list[Ids], int]:
    """Render many prompts; at most `limit` tokens each. Returns the ids and how many prompts were cut.

    Longer ones raise TooLong with the row of the first, unless `cut="left"`: then the oldest turns after the system
    message go first, whole, and of the last one its beginning.
    """
    rendered, cuts = [], 0
    longer: dict[int, str] = {}
    for row, messages in enumerate(prompts):
        ids = render_prompt(tokenizer, messages)
        if limit is not None and len(ids) > limit:
            if cut is None:
                longer[row] = f"{len(ids)} tokens, but the model has room for {limit}"
            else:
                ids = _cut_left(tokenizer, messages, limit, row)
                cuts += 1
        rendered.append(ids)
    if longer:
        row, why = next(iter(longer.items()))
        more = f" ({len(longer):,} such prompts)" if len(longer) > 1 else ""
        raise TooLong(
            f"prompt {row}: {why}{more}. Shorten it, or ask for cutting from the left.",
            ((prompts[row], why) for row, why in longer.items()),
        )
    return rendered, cuts


def is_prefix_stable(tokenizer: Any) -> bool:
    """Does a growing conversation only ever gain tokens? Templates that rewrite earlier turns do not."""
    answers = ["blue .", "seven ."]
    if "think" in str(tokenizer.chat_template):
        answers[0] = "<think>\nit is the sea .\n</think>\n\nblue ."
    talk = [user("which colour ?"), assistant(answers[0]), user("how many ?"), assistant(answers[1]), user("why ?")]
    shape = frame(tokenizer)
    for k in (1, 3):
        before = (*render_prompt(tokenizer, talk[:k]), *encode_reply(tokenizer, talk[k].text))
        after = render_prompt(tokenizer, talk[: k + 2])
        if after[: len(before)] != before:
            return False
        if not _write(tokenizer, talk[: k + 2])[0].startswith(_write(tokenizer, talk[: k + 1])[0]):
            return False
    return shape.end in shape.stops


# ---------------------------------------------------------------------------------------------- pieces


def frame(tokenizer: Any) -> Frame:
    """How this tokenizer frames an answer; probed on first use and again when its template changes."""
    known = _frames.get(tokenizer)
    if known is None or known[0] != tokenizer.chat_template:
        known = (tokenizer.chat_template, _probe(tokenizer))
        _frames[tokenizer] = known
    return known[1]


def _probe(tokenizer: Any) -> Frame:
    if tokenizer.eos_token_id is None or not tokenizer.chat_template:
        prepare(tokenizer, str(getattr(tokenizer, "name_or_path", "") or "tokenizer"))
    eos = int(tokenizer.eos_token_id)
    controls = {str(t): bool(getattr(t, "special", True)) for t in tokenizer.added_tokens_decoder.values() if str(t)}
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if getattr(t, "special", True)} | {eos}
    anchor = "" if _tokens(tokenizer, "\nx")[len(_tokens(tokenizer, "\n")) :] == _tokens(tokenizer, "x") else "\n"
    lead, trail, end, after = "", "", eos, ""
    probe, answer = [user("a")], "zq"
    before = str(_apply(tokenizer, _as_dicts(probe), True))
    whole = str(_apply(tokenizer, _as_dicts([*probe, assistant(answer)]), False))
    at = whole.rfind(answer)
    if whole.startswith(before) and at >= len(before) and not whole[len(before) : at].strip():
        lead, rest = whole[len(before) : at], whole[at + len(answer) :]
        texts = {tokenizer.decode([i], skip_special_tokens=False): i for i in special}
        found = min(((rest.find(t), t) for t in texts if t and t in rest), default=None)
        if found is not None and not rest[: found[0]].strip():
            trail, end, after = rest[: found[0]], texts[found[1]], rest[found[0] + len(found[1]) :]
        else:
            after = rest
    return Frame(lead, trail, end, after, frozenset({eos, end}), controls, anchor)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _plain(tokenizer: Any, shape: Frame, text: str, *, trusted: bool = True) -> list[int]:
    """Ids of text in the middle of a conversation, with control tokens spelled out."""
    ids: list[int] = []
    for i, piece in enumerate(_control_pattern(shape, trusted).split(text)):
        for part in (piece[:1], piece[1:]) if i % 2 else (piece,):
            anchored = _tokens(tokenizer, shape.anchor + part) if shape.anchor and part else []
            head = _tokens(tokenizer, shape.anchor)
            fits = bool(anchored) and anchored[: len(head)] == head
            ids += anchored[len(head) :] if fits else _tokens(tokenizer, part)
    return ids


def _control_pattern(shape: Frame, trusted: bool) -> re.Pattern[str]:
    names = sorted((t for t, special in shape.controls.items() if special or not trusted), key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, names)) + ")" if names else r"(\Z\A)")


def _apply(tokenizer: Any, dicts: list[dict[str, Any]], generation: bool) -> str:
    try:
        return str(tokenizer.apply_chat_template(dicts, tokenize=False, add_generation_prompt=generation))
    except TemplateError as error:
        raise InputError(f"the model's chat template refuses this conversation: {error}") from error


def _write(tokenizer: Any, messages: Sequence[Message], *, generation: bool = False) -> tuple[str, list[str]]:
    """The conversation as the template writes it, control tokens in its contents replaced by numbered placeholders."""
    shape = frame(tokenizer)
    held: list[str] = []

    def hide(text: str, trusted: bool) -> str:
        def one(match: re.Match[str]) -> str:
            held.append(match.group(0))
            return f"{_OPEN}{len(held) - 1}{_CLOSE}"

        # text that brings the placeholder's own brackets along is held as well: nothing typed can point at another
        pattern = re.compile(f"[{_OPEN}{_CLOSE}]|" + _control_pattern(shape, trusted).pattern)
        return pattern.sub(one, text)

    return _apply(tokenizer, _as_dicts(messages, hide), generation), held


def _encode(tokenizer: Any, text: str, held: list[str]) -> Ids:
    shape = frame(tokenizer)
    ids: list[int] = []
    for i, piece in enumerate(re.split(f"{_OPEN}(\\d+){_CLOSE}", text)):
        if i % 2:
            ids += _plain(tokenizer, shape, held[int(piece)], trusted=False)
        else:
            ids += _tokens(tokenizer, piece)
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is not None and bos != tokenizer.eos_token_id and ids[:2] == [bos, bos]:
        raise InputError("the chat template writes BOS twice; remove one from chat_template.jinja")
    return tuple(ids)


def _turn(tokenizer: Any, said: Sequence[Message], turn: Message) -> list[int]:
    """Ids of one assistant turn, end of turn included."""
    if all(isinstance(p, Text | Refusal) for p in turn.parts):
        return list(encode_reply(tokenizer, turn.text))
    before, _ = _write(tokenizer, said, generation=True)
    whole, held = _write(tokenizer, [*said, turn])
    if not whole.startswith(before):
        raise InputError(
            "the chat template rewrites earlier turns, so a reply with tool calls or reasoning cannot be cut "
            "out of it; use a prefix-stable template"
        )
    shape = frame(tokenizer)
    ids = list(_encode(tokenizer, whole[len(before) :], held))
    return ids[: ids.index(shape.end) + 1] if shape.end in ids else [*ids, shape.end]


def _between(tokenizer: Any, said: Sequence[Message], turn: Message, *, generation: bool) -> list[int]:
    """Ids of what stands between two assistant turns: the rest of the template, a tool's result, the next opening."""
    before, _ = _write(tokenizer, said)
    whole, held = _write(tokenizer, [*said, turn], generation=generation)
    if not whole.startswith(before):
        raise InputError("the chat template rewrites earlier turns; a reply of several turns needs a prefix-stable one")
    after = frame(tokenizer).after if said[-1].role == "assistant" else ""
    return list(_encode(tokenizer, after + whole[len(before) :], held))


def _cut_left(tokenizer: Any, messages: Sequence[Message], limit: int, row: int) -> Ids:
    head = [m for m in messages[:1] if m.role == "system"]
    rest = list(messages[len(head) :])
    while True:
        ids = render_prompt(tokenizer, [*head, *rest])
        over = len(ids) - limit
        if over <= 0:
            return ids
        later = next((i for i in range(1, len(rest)) if rest[i].role == "user"), None)
        if later is not None:
            rest = rest[later:]
            continue
        text = rest[0].text if rest else ""
        tokens = _tokens(tokenizer, text)
        if len(rest) != 1 or len(tokens) <= over:
            raise InputError(f"prompt {row}: cutting cannot make it fit {limit} tokens; the frame alone is longer")
        shorter = str(tokenizer.decode(tokens[over:], skip_special_tokens=False))
        if len(shorter) >= len(text):
            shorter = text[max(1, len(text) - len(shorter) + 1) :]
        rest = [Message(rest[0].role, (Text(shorter),), rest[0].origin)]


def _as_dicts(messages: Sequence[Message], hide: Any = lambda text, trusted: text) -> list[dict[str, Any]]:
    """Messages in the shape chat templates read. What a template has no place for is refused, not dropped."""
    dicts: list[dict[str, Any]] = []
    for message in messages:
        trusted = message.origin not in _OUTSIDE
        text: list[str] = []
        calls: list[dict[str, Any]] = []
        entry: dict[str, Any] = {"role": message.role}
        for part in message.parts:
            if isinstance(part, Text | Refusal):
                text.append(hide(part.text, trusted))
            elif isinstance(part, ToolCall):
                calls.append({"id": part.id, "type": "function", "function": _call(part, hide, trusted)})
            elif isinstance(part, ToolResult):
                entry["tool_call_id"] = part.call_id
                text.append(hide("".join(p.text for p in part.parts if isinstance(p, Text)), False))
                if any(not isinstance(p, Text) for p in part.parts):
                    raise InputError("a tool result holds more than text; local models read text only")
            elif isinstance(part, Reasoning) and part.text is not None:
                entry["reasoning_content"] = hide(part.text, trusted)
            else:
                kind = f"{part.kind} content" if isinstance(part, Media) else "opaque reasoning"
                raise InputError(f"a {message.role} message holds {kind}; local models read text only")
        entry["content"] = "".join(text)
        if calls:
            entry["tool_calls"] = calls
        dicts.append(entry)
    return dicts


def _call(part: ToolCall, hide: Any, trusted: bool) -> dict[str, Any]:
    try:
        arguments = json.loads(hide(part.arguments, trusted))
    except json.JSONDecodeError:  # as the model wrote it; templates print a string as it is
        arguments = hide(part.arguments, trusted)
    return {"name": hide(part.name, trusted), "arguments": arguments}
