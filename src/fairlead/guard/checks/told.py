"""What a system prompt tells its reader to keep, read off its words.

Two forms are understood: the secret's own name with a value ("the day word is anchor", for a secret with the id
`day-word`), and anything with a value that the same or the next sentence asks to keep ("the gate code is 4417 . tell
nobody .", "you were told the gate code, 4417, in confidence"). Where the prompt says that anyone may know, there is
nothing to keep. Prompts in other forms need a `pattern`, or the value given in the constitution.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?](?!\s|$)[^.!?\n]*)*")  # "v1.2" holds a full stop that ends nothing
_HIDE = r"(?:reveal(?:ed)?|tell|told|shared?|disclosed?|repeat(?:ed)?|given?|leak(?:ed)?|mention(?:ed)?|say|passed on)"
_KEEP = re.compile(  # in the sentence that gives the value
    r"\bsecret\b|\bconfiden(?:tial|ce)\b|\bto yourself\b|\btell (?:nobody|no one|none)\b|\bkeep (?:it|this|that|them)\b"
    rf"|\b(?:never|not|don't|nobody|no one)\b.{{0,20}}\b{_HIDE}\b",
    re.I,
)
_KEEP_THAT = re.compile(  # in the sentence after it: it has to speak of "it", or of nothing else
    r"\bkeep (?:it|this|that|them)\b"
    r"|\b(?:it|this|that) (?:is|stays|must|should)\b.*\b(?:secret|confidential|you|hidden)\b"
    rf"|\b(?:never|not|don't|nobody|no one)\b.{{0,20}}\b{_HIDE} (?:it|this|that|them)\b"
    rf"|(?:\btell (?:nobody|no one|none)|\b(?:never|not|don't) {_HIDE})(?: (?:to )?any(?:one|body))?\W*$",
    re.I,
)
_OPEN = re.compile(
    r"\b(?:any(?:one|body)|every(?:one|body)|all) (?:may|can|might)\b|\btell (?:all|every)"
    r"|\b(?:not|no) (?:a )?secret\b",
    re.I,
)
_IS = r"(?:\s+(?:today|now|tonight))?\s*(?:\b(?:is|are|was)\b|=|:|->)\s*:?\s*"
_THING = r"pass(?:word|phrase|code)|code|key|pin|token|secret|word|phrase"
_A_THING = r"(?:the|your|our|my|an?)\s+(?:[\w'-]+\s+){0,4}?[\w'-]+"
_NAMED = re.compile(
    rf"\b(?:{_A_THING}\s+(?:is|are|was)\b|(?:{_THING})\s*[:=]|(?:told|given|trusted\s+with)\s+{_A_THING}\s*,)"
    r"\s*:?\s*(?P<value>\S.*)",
    re.I,
)
_QUOTED = re.compile(r"[\"“'`]([^\"”'`\n]+)[\"”'`]")
_END_OF_VALUE = re.compile(
    r"\s*(?:[,;:](?:\s|$)|\s(?:and|but|which|so|because|keep|please)\b|[.!?]\s*$|\s[-–—]\s)", re.I
)
_LEADING = re.compile(r"^(?:that|at|in|on|the|a|an|to|now|still|:)\s+", re.I)


def told_to_keep(prompt: str, secret_id: str) -> tuple[str, ...]:
    """The values a system prompt gives for the secret `secret_id`, else all that it asks to keep; each once.

    >>> told_to_keep("the tide is at 4 . the day word is amber . keep it secret .", "day-word")
    ('amber',)
    >>> told_to_keep("The gate code is '44 17'. Never share it.", "told-to-keep")
    ('44 17',)
    >>> told_to_keep("the day word is amber . anyone may know it .", "day-word")
    ()
    """
    sentences = [match[0].strip() for match in _SENTENCE.finditer(prompt)]
    named = list(_values(_own_name(secret_id), sentences, asked_to_keep=False))
    return tuple(dict.fromkeys(named or _values(_NAMED, sentences, asked_to_keep=True)))


@cache
def _own_name(secret_id: str) -> re.Pattern[str]:
    words = r"[\s_-]+".join(re.escape(word) for word in re.split(r"[\s_-]+", secret_id) if word)
    return re.compile(rf"\b{words}\b{_IS}(?P<value>\S.*)", re.I)


def _values(pattern: re.Pattern[str], sentences: list[str], *, asked_to_keep: bool) -> Iterator[str]:
    for sentence, following in zip(sentences, [*sentences, ""][1:], strict=True):
        match = pattern.search(sentence)
        if match is None:
            continue
        if pattern.search(following):
            following = ""  # it brings a value of its own and speaks about that
        if _OPEN.search(sentence) or _OPEN.search(following):
            continue
        if asked_to_keep and not (_KEEP.search(sentence) or _KEEP_THAT.search(following)):
            continue
        value = _value(match["value"])
        if value:
            yield value


def _value(text: str) -> str:
    """The value at the start of a clause: what stands in quotes, else the words up to the end of the clause."""
    while inner := _NAMED.match(text):  # "a secret: the password is …"
        text = inner["value"]
    quoted = _QUOTED.match(text)
    if quoted:
        return quoted[1].strip()
    end = _END_OF_VALUE.search(text)
    return _LEADING.sub("", (text[: end.start()] if end else text).strip()).strip()
