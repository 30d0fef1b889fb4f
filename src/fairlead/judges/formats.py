"""Judges of form: a reply in tags, and in one language, as DeepSeek R1 is rewarded for (2025, arXiv 2501.12948).

They say nothing about whether the answer is right; beside a verifier they are a small part of a reward.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Message, Reasoning, Refusal, Text
from fairlead.judges.rules import Rule, rule

THINK_THEN_ANSWER = (
    r"\s*<think>(?:(?!</?(?:think|answer)>).)+</think>\s*<answer>(?:(?!</?(?:think|answer)>).)+</answer>\s*"
)
"""Reasoning in tags, then the answer in tags, each once, and nothing beside them."""


def formatted(pattern: str = THINK_THEN_ANSWER, *, name: str = "rule:format") -> Rule:
    """1 = the whole reply has the form of the regular expression (`.` is any character, case counts), 0 = it has not.

    Raises InputError for a pattern that is none, or that an empty reply has.
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise InputError(f"format: {pattern!r} is no regular expression: {error}") from error
    if compiled.fullmatch(""):
        raise InputError(f"format: an empty reply has the form {pattern!r}; it would be rewarded")

    def score(item: Exchange) -> tuple[float | None, str]:
        return (1.0, "") if compiled.fullmatch(item.reply_text) else (0.0, "not in the form asked for")

    return rule(name, score, text="has the form", code=pattern, exact=True)


# ------------------------------------------------------------------------------------------- one language


def language_consistent(language: str | None = None) -> Rule:
    """The share of the reply's words, its readable reasoning included, that are in the language of the prompt.

    A heuristic: letters tell the script, and where the script is Latin, function words tell the language of each
    sentence. A sentence without any, or with as many of two languages, counts as the prompt's. Code, formulas, links
    and digits are no words; Chinese characters and kana count one by one. Known: the languages of `STOPWORDS`, and one
    language (or family) per other script. Names and loanwords in another script count against the reply.

    language    what is asked for, where it is not the prompt's: a key of `STOPWORDS`, or of `SCRIPTS` but "latin"
    No verdict where the prompt's language or any word of the reply cannot be told.
    """
    known = {*STOPWORDS, *SCRIPTS} - {"latin"}
    if language is not None and language not in known:
        raise InputError(f"language is {language!r}; known: {', '.join(sorted(known))}")

    def score(item: Exchange) -> tuple[float | None, str]:
        asked = [m for m in item.messages if m.role == "user"][-1:]
        wanted = language or language_of("\n".join(_words_of(m) for m in asked))
        if wanted is None:
            return None, "the language of the prompt cannot be told"
        counted = [part for m in item.reply if m.role == "assistant" for part in _counted(_words_of(m), wanted)]
        total = sum(words for _, words in counted)
        if not total:
            return None, "the reply has no words whose language could be told"
        others = {name for name, _ in counted if name != wanted}
        inside = sum(words for name, words in counted if name == wanted)
        return inside / total, f"not {wanted}: {', '.join(sorted(others))}" if others else ""

    return rule("rule:language", score, text=f"in the language of the prompt {language or ''}", code=_CODE)


def language_of(text: str) -> str | None:
    """The language that most of a text's words are in; None without words, or where Latin words do not tell."""
    bare = _NO_WORDS.sub(" ", text)
    scripts: dict[str, int] = {}
    for name, words in _scripts(bare, japanese=_has_kana(bare)):
        scripts[name] = scripts.get(name, 0) + len(words)
    most = max(scripts, key=lambda name: scripts[name], default="")
    if most != "latin":
        return most or None
    votes = _votes([word for name, words in _scripts(bare, japanese=False) if name == "latin" for word in words])
    first = [name for name, count in votes.items() if count == max(votes.values()) > 0]
    return first[0] if len(first) == 1 else None


def _counted(text: str, wanted: str) -> Iterator[tuple[str, int]]:
    """(language, words) of each sentence and script; a Latin sentence that does not tell has the language wanted."""
    bare = _NO_WORDS.sub(" ", text)
    for sentence in re.split(r"[.!?;:\n\u3002\uff01\uff1f]+", bare):
        for name, words in _scripts(sentence, japanese=wanted == "japanese"):
            if name != "latin":
                yield name, len(words)
                continue
            votes = _votes(words)
            first = [name for name, count in votes.items() if count == max(votes.values()) > 0]
            unsure = wanted if wanted in STOPWORDS else "latin"
            yield (unsure if not first or wanted in first else first[0]), len(words)


def _scripts(text: str, *, japanese: bool) -> Iterator[tuple[str, list[str]]]:
    """The words of a text by script; Chinese characters are Japanese where that is said."""
    for name, letters in SCRIPTS.items():
        many = "" if name in ("chinese", "japanese", "thai") else f"+(?:['\u2019][{letters}]+)*"
        if words := re.findall(f"[{letters}]{many}", text):
            yield ("japanese" if name == "chinese" and japanese else name), words


def _votes(words: list[str]) -> dict[str, int]:
    lower = [word.casefold().replace("\u2019", "'") for word in words]
    return {name: sum(word in common for word in lower) for name, common in STOPWORDS.items()}


def _has_kana(text: str) -> bool:
    return bool(re.search(f"[{SCRIPTS['japanese']}]", text))


def _words_of(message: Message) -> str:
    return "\n".join(p.text for p in message.parts if isinstance(p, Text | Refusal | Reasoning) and p.text)


_NO_WORDS = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\[a-zA-Z]+|https?://\S+|</?\w+>|[\d_]+", re.DOTALL
)

SCRIPTS = {
    "latin": "a-zA-Z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
    "chinese": "\u4e00-\u9fff\u3400-\u4dbf",  # japanese where there is kana beside it
    "japanese": "\u3040-\u30ff",
    "korean": "\uac00-\ud7af\u1100-\u11ff",
    "cyrillic": "\u0400-\u04ff",
    "greek": "\u0370-\u03ff\u1f00-\u1fff",
    "arabic": "\u0600-\u06ff",
    "hebrew": "\u0590-\u05ff",
    "devanagari": "\u0900-\u097f",
    "thai": "\u0e00-\u0e7f",
}
"""Letters of each script, as the inside of a character class."""

STOPWORDS = {
    name: frozenset(words.split())
    for name, words in {
        "english": "the and of to is are was were it that this with for not you we they have has be what how which so "
        "then from but i my there can will would if its let your by an plus minus",
        "german": "der die das und ist sind war nicht ein eine einen mit für auf zu den dem des ich wir sie es wie "
        "auch von dass im aus sich wenn oder aber wird werden hat haben bei nach",
        "french": "le la les des et est sont était ne pas un une avec pour sur dans que qui je nous vous il elle ce "
        "cette au aux du mais ou donc plus par être c'est",
        "spanish": "el la los las y es son era no un una con para por que en del se lo su como más pero o este esta "
        "yo hay si muy al qué",
        "italian": "il lo la gli le e è sono era non un una con per che di del della in si come più ma o questo questa "
        "io anche nel al",
        "portuguese": "o a os as e é são era não um uma com para por que em do da no na se como mais mas ou este esta "
        "eu ao dos das",
        "dutch": "de het een en is zijn was niet met voor op van te dat dit ik we wij ze je hoe ook maar of wordt aan "
        "er naar bij",
    }.items()
}
"""Common function words of languages written in Latin letters."""

_CODE = repr(sorted((name, sorted(words)) for name, words in STOPWORDS.items()) + sorted(SCRIPTS.items()))
