"""A question with two possible answers, put to a model: by log-probs where it has them, by the alternatives to the
first token of one answer where it tells those, else by counting answers."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fairlead.models.protocol import CapabilityError, Model, Prompt, Reply, Sampling
from fairlead.models.toolong import where_it_fits

Options: TypeAlias = tuple[str, str]  # the word that counts for, the word that counts against

YES_NO: Options = ("yes", "no")
A_B: Options = ("a", "b")
ALTERNATIVES = 20  # to a token; no provider tells more
LIMIT = 100.0  # nats; keeps log-odds finite where one option has no probability at all


@dataclass(frozen=True, slots=True)
class Read:
    """One two-way answer: P(first option), its log-odds in nats, or None and why.

    Where answers were counted, `p` is the share of those that could be read, `answers` how many were drawn and
    `unreadable` how many of them named neither option.
    """

    p: float | None
    log_odds: float | None = None
    reason: str = ""
    answers: int = 0
    unreadable: int = 0

    @property
    def estimate(self) -> float | None:
        """P(first option) that few answers do not make certain, in (0, 1).

        Of y among n counted answers it is (y + 1/2) / (n + 1), the mean of the Beta posterior under Jeffreys' prior;
        read from log-probs it is `p`.
        """
        return self.p if self.log_odds is None else sigmoid(self.log_odds)


def ask_two_way(
    model: Model, prompts: Sequence[Prompt], options: Options, *, samples: int = 5, max_tokens: int = 16
) -> list[Read]:
    """P(first option against the second) for each prompt, in order. Equal prompts are asked once.

    A question too long for the model's context has no answer, with that reason; the others are asked without it.
    """
    if not prompts:
        return []
    unique = list(dict.fromkeys(tuple(prompt) for prompt in prompts))

    def ask(fitting: Sequence[Prompt]) -> list[Read]:
        if "logprobs" in model.capabilities:
            return _by_logprobs(model, fitting, options)
        if "alternatives" in model.capabilities:
            return _by_first_token(model, fitting, options, samples, max_tokens)
        return _by_counting(model, fitting, options, samples, max_tokens)

    reads = where_it_fits(ask, unique, lambda why: Read(None, reason=why))
    answer = dict(zip(unique, reads, strict=True))
    return [answer[tuple(prompt)] for prompt in prompts]


def _by_logprobs(model: Model, prompts: Sequence[Prompt], options: Options) -> list[Read]:
    """Each option is the sum over its spellings at the start of a reply: with a space, without, capitalised.

    A model that brings its own wording answers in its own lower-case words; capitals are not asked of it.
    """
    capitals = not getattr(model, "prompts", None)
    spellings = [_spellings(word, capitals) for word in options]
    texts = [text for group in spellings for text in group]
    border = len(spellings[0])
    reads = []
    for logps in model.logprobs(prompts, [texts] * len(prompts)):
        log_odds = logsumexp(logps[:border]) - logsumexp(logps[border:])
        if math.isnan(log_odds):
            reads.append(Read(None, reason=f"the log-probs of {options[0]} and {options[1]} are not numbers"))
        else:
            bounded = max(-LIMIT, min(LIMIT, log_odds))
            reads.append(Read(sigmoid(bounded), bounded))
    return reads


def _spellings(word: str, capitals: bool) -> tuple[str, ...]:
    small = (f" {word}", word)
    return (*small, *(item.replace(word, word.capitalize()) for item in small)) if capitals else small


def _by_first_token(
    model: Model, prompts: Sequence[Prompt], options: Options, samples: int, max_tokens: int
) -> list[Read]:
    """One answer each; where its first token tells nothing, further ones are drawn and all of them counted."""
    sampling = _sampling(model, samples, max_tokens)
    try:
        drawn = model.generate(prompts, dataclasses.replace(sampling, n=1, top_logprobs=ALTERNATIVES))
    except CapabilityError as error:  # its own word against what was known of it
        if error.capability not in ("top_logprobs", "logprobs"):
            raise
        return _by_counting(model, prompts, options, samples, max_tokens)
    reads = [_first_token(reply, options) for (reply,) in drawn]
    silent = [row for row, read in enumerate(reads) if read is None]
    more: Sequence[Sequence[Reply]] = [()] * len(silent)
    if silent and samples > 1:
        more = model.generate([prompts[row] for row in silent], dataclasses.replace(sampling, n=samples - 1))
    counted = {row: _count((*drawn[row], *others), options) for row, others in zip(silent, more, strict=True)}
    return [counted[row] if read is None else read for row, read in enumerate(reads)]


def _first_token(reply: Reply, options: Options) -> Read | None:
    """The share of the first option among what the first token might have been; None where that is not the answer.

    An option that is not among the alternatives is given the least likely one's probability, which bounds it from
    above: the answer is then less certain than the model, never more.
    """
    if reply.finish in _SILENT or not reply.top_logprobs or not _option_of(reply.text.split(maxsplit=1)[:1], options):
        return None
    logps: dict[str, list[float]] = {option: [] for option in options}
    for other in reply.top_logprobs[0]:
        option = _option_of([other.token], options)
        if option is not None:
            logps[option].append(other.logprob)
    if not any(logps.values()):
        return None
    least = min(other.logprob for other in reply.top_logprobs[0])
    first, second = (logsumexp(logps[option] or [least]) for option in options)
    if math.isnan(first - second):
        return None
    log_odds = max(-LIMIT, min(LIMIT, first - second))
    return Read(sigmoid(log_odds), log_odds)


def _option_of(words: Sequence[str], options: Options) -> str | None:
    """The option that a single word is, whatever its case, space and marks around it."""
    word = "".join(words).strip().strip("*\"'`.,:;!()[]").lower()
    return word if word in options else None


def _sampling(model: Model, samples: int, max_tokens: int) -> Sampling:
    tokens = max_tokens if "max_tokens" in model.capabilities else None
    greedy = 0.0 if samples == 1 and "temperature" in model.capabilities else None
    return Sampling(n=samples, max_tokens=tokens, temperature=greedy)


def _by_counting(
    model: Model, prompts: Sequence[Prompt], options: Options, samples: int, max_tokens: int
) -> list[Read]:
    drawn = model.generate(prompts, _sampling(model, samples, max_tokens))
    return [_count(replies, options) for replies in drawn]


_SILENT = ("error", "filter", "refusal")  # a critic that declines to judge has given no verdict, whatever its words


def _count(replies: Sequence[Reply], options: Options) -> Read:
    """The share of first options among the readable answers; log-odds with half an answer added to each side."""
    read = [parse_option(reply.text, options) for reply in replies if reply.finish not in _SILENT]
    yes, no = read.count(options[0]), read.count(options[1])
    n, neither = len(replies), len(replies) - yes - no
    if yes + no == 0:
        return Read(None, None, _why_unreadable(replies, options), n, neither)
    return Read(yes / (yes + no), math.log((yes + 0.5) / (no + 0.5)), "", n, neither)


def _why_unreadable(replies: Sequence[Reply], options: Options) -> str:
    errors = [reply for reply in replies if reply.finish in _SILENT]
    if len(errors) == len(replies):
        first = errors[0].error or errors[0].finish if errors else "no answer"
        return f"the critic did not answer: {first}"
    shown = next(reply.text for reply in replies if reply.finish not in _SILENT)
    return f"the critic's answer is neither {options[0]} nor {options[1]}: {shown[:80]!r}"


def parse_option(text: str, options: Options) -> str | None:
    """The option an answer names, or None.

    The first word decides where it is an option; otherwise an explicit last line (`verdict: yes`, `**no**`). A letter
    option must stand alone: "a better reply…" is not the option a.
    """
    words = "|".join(re.escape(word) for word in options)
    letters = all(len(word) == 1 for word in options)
    # A bare letter may be an article: it counts only alone, marked, or after a word such as "answer" or "reply".
    end = r"(?:\W*$|\s*[).:,*\n])" if letters else r"\b"
    start = re.match(rf"\W*(?:(?:answer|reply|response|option|verdict|choice)\W+(?:is\W+)?)?({words}){end}", text, re.I)
    if start:
        return start.group(1).lower()
    lines = [line for line in text.strip().splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    before = r"(?:^\W*|\b(?:answer|reply|response|option|verdict|choice)\b\W*(?:is\W+)?)"
    named = re.search(rf"{before}({words})\W*$", last, re.I)
    return named.group(1).lower() if named else None


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) without overflow."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    z = math.exp(x)
    return z / (1.0 + z)


def logsumexp(values: Sequence[float]) -> float:
    """log of the summed exponentials, nats; -inf for nothing but -inf."""
    top = max(values)
    if math.isinf(top):
        return top
    return top + math.log(sum(math.exp(value - top) for value in values))
