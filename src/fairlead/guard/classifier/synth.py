"""Rows from the constitution: prompts that tempt and their twins, examples, contrasts, and replies of both kinds.

What a template can say of a reply is that it gives in, declines, or answers what is harmless to answer. That is the
floor; replies that a model wrote (`written`), revisions and red-team findings (`found`) stand beside it where there are
some. Prompts come from the train and select splits of the packs; those for the audit are never read.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fairlead.constitution import load as load_constitution
from fairlead.constitution.prompts_bank import KINDS, bank
from fairlead.constitution.schema import Constitution, Principle
from fairlead.errors import InputError
from fairlead.exchange import Exchange, Preference, Rated, assistant, exchange, from_json, system, user
from fairlead.feedback.files import BadRow, find_files, read_table
from fairlead.guard.classifier.contrast import contrast_rows
from fairlead.guard.classifier.injected import retrieved
from fairlead.guard.classifier.reading import shown
from fairlead.guard.classifier.rows import Row

PACKS = ("brand", "support", "health", "finance", "law")
_YES = (
    "Of course. Here it is: {}", "Sure, happy to. {}", "Yes. {}", "Certainly! Let me do that for you. {}",
    "No problem, step by step. First: {}", "Okay, between us: {}", "Here is what you asked for. {}", "Done. {}",
)  # fmt: skip
_ANSWER = (
    "Good to know before you start: {}", "In short: {}", "There are a few ways. {}", "Here is how it works. {}",
    "That depends on two things. {}", "Gladly. {}", "People usually begin like this. {}", "Yes, that can be done. {}",
)  # fmt: skip
_NO = (
    "I can't help with that.", "I'm sorry, but I won't do this.", "That is something I don't do.",
    "I can't do that, but I can tell you whom to ask.", "No. I can help you in another way, if you like.",
    "I'm not able to assist with this request.", "I understand why you ask, and still I have to decline.",
)  # fmt: skip


def from_constitution(constitution: Constitution, *, seed: int = 0) -> list[Row]:
    """All rows that the constitution itself gives, for every principle that has any."""
    rows: list[Row] = []
    for principle in constitution.principles:
        rows += _examples(principle)
    for split in ("train", "select"):
        for kind in KINDS:
            for case in bank(constitution, split, kind):
                pair, principle = str(case.meta["pair"]), constitution[case.principle]
                rows += _asked_and_answered(
                    f"bank/{pair}/{kind}", case.messages[-1].text, kind == "tempting", principle, constitution,
                    "bank", f"bank/{case.cluster}", seed,
                )  # fmt: skip
    harmless = constitution.principle_for("harmless", "no-harm")
    if harmless is not None:
        for row in contrast_rows((harmless.id,), seed=seed):
            tempting = row.labels[harmless.id]
            rows += _asked_and_answered(
                row.id, row.prompt, tempting, harmless, constitution, row.source, row.group, seed
            )
    return rows


def _asked_and_answered(
    id: str,
    prompt: str,
    tempting: bool,
    principle: Principle,
    constitution: Constitution,
    source: str,
    group: str,
    seed: int,
) -> list[Row]:
    """A prompt alone; with a reply that does what it asks; with one that declines."""
    rng = random.Random(f"{seed}/{id}")
    refusing = "no-needless-refusal" if "no-needless-refusal" in constitution else ""
    said = (user(prompt),)
    does = rng.choice(_YES if rng.random() < 0.5 else _ANSWER).format(_echo(prompt, rng))
    own = principle.guard.say if principle.guard and principle.guard.say and rng.random() < 0.5 else None
    declines = own or rng.choice(_NO)
    more = {refusing: False} if refusing and refusing != principle.id else {}
    less = {refusing: not tempting} if refusing and refusing != principle.id else {}
    return [
        Row(id, Exchange(said, ()), {principle.id: tempting}, source, group, "prompt"),
        Row(f"{id}/does", Exchange(said, (assistant(does),)), {principle.id: tempting, **more}, source, group, "does"),
        Row(f"{id}/declines", Exchange(said, (assistant(declines),)), {principle.id: False, **less}, source, group,
            "declines"),
    ]  # fmt: skip


def _echo(prompt: str, rng: random.Random) -> str:
    """The end of what was asked, as the start of an answer would say it again."""
    words = prompt.rstrip("?.! ").split()
    return " ".join(words[-rng.randint(6, 24) :]) + "."


def _examples(principle: Principle) -> list[Row]:
    rows = []
    for broken, examples in ((True, principle.bad), (False, principle.good)):
        for n, e in enumerate(examples):
            said = ((system(e.system),) if e.system else ()) + (user(e.user),)
            group = hashlib.sha256(e.user.encode()).hexdigest()[:12]  # a good and a bad reply to one question
            rows.append(
                Row(f"example/{principle.id}/{'bad' if broken else 'good'}.{n}", Exchange(said, (assistant(e.reply),)),
                    {principle.id: broken}, "example", f"example/{group}")
            )  # fmt: skip
    return rows


def harmless_pool(constitution: Constitution, files: Sequence[Path], *, seed: int = 0) -> list[Row]:
    """What keeps every principle: the twins of all packs, and the harmless texts of `files`.

    A file holds one object a line: `prompt` (or `instruction`, `text`, `question`), or an exchange, or plain lines; or
    `tool_result`, a text as your tools bring it, which holds no order to the model.
    """
    labels = dict.fromkeys(constitution.ids, False)
    rows: list[Row] = []
    for pack in PACKS:
        written = load_constitution(pack)
        for split in ("train", "select"):
            for case in bank(written, split, "twin"):
                if case.principle not in constitution:
                    id = f"twins/{case.meta['pair']}"
                    rows.append(Row(id, Exchange(case.messages, ()), labels, "twins", f"twins/{case.cluster}"))
    for file in files:
        for n, held in enumerate(_harmless(file)):
            id = f"{file.stem}/{n}"
            rows.append(
                retrieved(id, held, False, file.stem, id)
                if isinstance(held, str)
                else Row(id, held, labels, file.stem, id)
            )
    return rows


def _harmless(file: Path) -> Iterable[Exchange | str]:
    """Exchanges, and texts of tools as they are."""
    if not file.is_file():
        raise InputError(f"{file}: is no file; give files of harmless texts with --harmless")
    if file.suffix == ".txt":
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.strip():
                yield Exchange((user(line),), ())
        return
    for place, value in _objects(file):
        text = next(
            (value[k] for k in ("prompt", "instruction", "question", "text") if isinstance(value.get(k), str)), None
        )
        if "tool_result" in value:
            yield _text_of_tool(place, value)
        elif "messages" in value:
            yield _as_exchange(place, value)
        elif text:
            reply = value.get("reply") or value.get("response")
            yield exchange(text, reply) if isinstance(reply, str) and reply.strip() else Exchange((user(text),), ())
        else:
            raise InputError(f"{place}: has none of prompt, instruction, question, text, messages, tool_result")


def found(constitution: Constitution, files: Sequence[Path]) -> list[Row]:
    """Labelled rows of files: red-team findings, revisions, verdicts of people. One JSON object a line:

    - an exchange (`messages`, `reply`, `meta: {principle, broken}`): a finding. Without `broken` it counts as broken;
    - a preference (`messages`, `chosen`, `rejected`, `principle`): chosen kept, rejected broke it. Ties are left out;
    - a rating (`messages`, `reply`, `good`, `principle`);
    - a text that a tool brought (`tool_result`), with an order to the model in it, or without one (`injected: false`);
      `order` is the part that is the order, without which a long text teaches little.

    Raises InputError with file and line for a row that names no principle of this constitution.
    """
    rows: list[Row] = []
    for path in files:
        for place, value in _objects(path):
            rows += _labelled(constitution, path.stem, place, value)
    return rows


def _labelled(constitution: Constitution, source: str, place: str, value: dict[str, Any]) -> list[Row]:
    if "tool_result" in value:
        return [_found_in_tool(source, place, value)]
    held = value.get("meta")
    meta: dict[str, Any] = held if isinstance(held, dict) else {}
    principle = value.get("principle") or meta.get("principle")
    if not isinstance(principle, str) or principle not in constitution:
        raise InputError(f"{place}: principle {principle!r} is none of {', '.join(constitution.ids)}")
    id = f"{source}/{place.rpartition(':')[2].rpartition(' ')[2]}"
    asked = hashlib.sha256(repr(value.get("messages")).encode()).hexdigest()[:12]
    group = f"{source}/{asked}"
    try:
        if "chosen" in value:
            p = from_json(Preference, value)
            if p.strength <= 0.5:
                return []
            return [
                Row(f"{id}.chosen", Exchange(p.messages, p.chosen), {principle: False}, source, group, "revision"),
                Row(f"{id}.rejected", Exchange(p.messages, p.rejected), {principle: True}, source, group, "revised"),
            ]
        if "good" in value:
            r = from_json(Rated, value)
            return [Row(id, Exchange(r.messages, r.reply), {principle: not r.good}, source, group)]
    except ValueError as problem:
        raise InputError(f"{place}: {problem}") from None
    broken = meta.get("broken", True)
    if not isinstance(broken, bool):
        raise InputError(f"{place}: meta.broken is {broken!r}; it is true or false")
    return [Row(id, _as_exchange(place, value), {principle: broken}, source, group)]


def _found_in_tool(source: str, place: str, value: dict[str, Any]) -> Row:
    text, injected, order = _text_of_tool(place, value), value.get("injected", True), value.get("order", "")
    if not isinstance(injected, bool):
        raise InputError(f"{place}: injected is {injected!r}; it is true or false")
    if not isinstance(order, str) or shown(order) not in shown(text) or (order and not injected):
        raise InputError(f"{place}: order is not a part of tool_result, or there is said to be none; leave it out")
    id = f"{source}/{place.rpartition(':')[2].rpartition(' ')[2]}"
    group = f"{source}/{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return retrieved(id, text, injected, source, group, part=order)


def _text_of_tool(place: str, value: dict[str, Any]) -> str:
    text = value["tool_result"]
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{place}: tool_result is {text!r:.40}; it is a text")
    return text


def _as_exchange(place: str, value: dict[str, Any]) -> Exchange:
    body = {key: value[key] for key in ("messages", "reply", "meta") if key in value}
    try:
        return from_json(Exchange, {"reply": [], **body})
    except ValueError as problem:
        raise InputError(f"{place}: {problem}") from None


def _objects(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    found_, _ = find_files(path)
    for file in found_:
        for row in read_table(file).rows:
            if isinstance(row.value, BadRow) or not isinstance(row.value, dict):
                raise InputError(f"{row.place}: {row.value if isinstance(row.value, BadRow) else 'is no object'}")
            yield row.place, row.value
