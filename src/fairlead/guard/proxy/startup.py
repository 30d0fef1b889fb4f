"""What a proxy says when it starts: who is guarded how, what waiting costs, and what nobody looks at."""

from __future__ import annotations

from collections.abc import Iterator

from fairlead.constitution.schema import Voice
from fairlead.guard.checked import on_doubt
from fairlead.guard.checks.voice import VoiceCheck
from fairlead.guard.critic_prompt import PromptCritic
from fairlead.guard.proxy.setup import Account, Book, Setup

TOKENS, SPEED = 300, 50  # a reply and a model of usual size, so that the costs mean something
PER_TOKEN = 4  # characters of a token, roughly


def told(setup: Setup) -> list[str]:
    """Lines for the operator. Each constitution is told of once, with the tenants that go by it."""
    lines: list[str] = []
    by_book: dict[int, list[Account]] = {}
    for account in setup.all():
        by_book.setdefault(id(account.book), []).append(account)
    for accounts in by_book.values():
        lines += _book(accounts[0].book, [account.name for account in accounts], setup)
    settings = setup.settings
    what = "are refused" if settings.images == "refuse" else "pass without being looked at, and are counted"
    lines.append(f"images {what}")
    what = "is dropped" if settings.opaque == "drop" else "passes without being read, and is counted"
    lines.append(f"reasoning that cannot be read {what}")
    if settings.allow:
        lines.append(f"request fields that pass unread, as the policy says: {', '.join(settings.allow)}")
    audit = settings.audit
    if audit.file is None:
        lines.append("no audit log is kept: name a file with --audit")
    else:
        how = (
            "a reply ends when its entry is on the disk" if audit.strict else f"a crash loses at most {audit.loss:g} s"
        )
        lines.append(f"audit log {audit.file}: {how}")
        texts = f"for {audit.retention_days:g} days" if audit.store_text else "not kept"
        queued = f"what is escalated is kept in full for {audit.queue_days:g} days, for people to read"
        lines.append(f"  texts of requests and replies are {texts}; {queued}")
    return lines


def _book(book: Book, names: list[str], setup: Setup) -> Iterator[str]:
    constitution, log = book.constitution, setup.settings.audit.file is not None
    guarded = [p for p in constitution.principles if p.guard is not None]
    who = "" if setup.anyone is not None else f" for {', '.join(names)}"
    yield f"constitution {constitution.name}{who} (sha256 {book.sha256[:12]}): {len(guarded)} principles with a guard"
    unread, unasked, partly = book.checked.unread, book.checked.unasked, book.checked.partly
    unseen = [id for id in unread if id not in partly]
    checked = [p.id for p in guarded if p.id not in unseen]
    buffer = [id for id in checked if book.policies[id].stream == "buffer"]
    window = [id for id in checked if book.policies[id].stream == "window"]
    if buffer:
        yield (
            f"  buffer: {', '.join(buffer)}. A streamed reply waits until it is whole, so its first token comes when "
            f"the last would: {TOKENS / SPEED:.0f} s for {TOKENS} tokens at {SPEED} a second"
        )
    if window:
        read = max((one.window for one in book.plan.followed if one.principle in window), default=0)
        wait = (
            f": a model looks at every {read} characters, {read / PER_TOKEN / SPEED:.1f} s at {SPEED} tokens a second"
        )
        yield (
            f"  window: {', '.join(window)}. A streamed reply is let go as far as the checks have looked"
            + (wait if read else "")
            + ("; but it waits for the slowest, the buffer above" if buffer else "")
        )
        yield from _held(book)
    shadow = [id for id in checked if book.policies[id].shadow]
    if shadow:
        yield f"  shadow: {', '.join(shadow)}. Nothing is done about them; what would have been is counted"
    yield from (f"  cascade: {line}" for line in on_doubt(book.plan).values())
    yield from _voices(book)
    best = book.plan.best
    if best is not None:
        yield (
            f"  the best of {best.n}: a reply costs {best.n} times as much, and is refused where none scores "
            f"{best.threshold:g}. In formats without `n` the one there is has to"
        )
    escalates = [p.id for p in guarded if p.guard is not None and p.guard.on_violation == "escalate"]
    if escalates:
        where = "waits in the queue of the audit log" if log else "NOBODY READS IT: there is no log, give --audit FILE"
        yield f"  escalate: {', '.join(escalates)}. What is escalated is refused, and {where}"
    for host in book.vendors:
        yield f"  texts go to {host}, which reads them for the checks"
    for id in unread:
        if id in partly:
            rest = "The rest of it needs a reader: --critic MODEL or --classifier DIR"
            yield f"  CHECKED IN PART: {id}, by {', '.join(partly[id])}. {rest}"
    if unasked:
        yield (
            f"  WHAT IS ASKED IS NOT CHECKED: {', '.join(unasked)}. Rules can (checks: {{rules: …}}), --classifier DIR "
            "with a head for it, and --critic MODEL, if it is not the apprentice"
        )
    critics = [check.principle for check in book.prompts if isinstance(check, PromptCritic)]
    if critics:
        yield (
            f"  the critic reads what is asked, for {', '.join(critics)}: the model is asked after its answer, so a "
            "first byte comes as much later; checks: {prompts: false} leaves that out"
        )
    if unseen:
        missing = ", ".join(unseen)
        yield f"  NOT CHECKED: {missing}. Nothing here can check them; --critic MODEL or --classifier DIR can"
    if not checked:
        yield "  NOTHING IS CHECKED: every reply passes"


def _held(book: Book) -> Iterator[str]:
    """What code holds back of a stream, in characters and seconds: how much later its first token comes."""
    sizes: dict[tuple[int, int], list[str]] = {}
    for one in book.plan.followed:
        if (held := getattr(one.check, "held", 0)) and one.policy.stream == "window" and not one.policy.shadow:
            sizes.setdefault((getattr(one.check, "ordinary", held), held), []).append(one.name)
    for (ordinary, held), names in sorted(sizes.items(), reverse=True):
        some = f", and {held} ({_seconds(held)}) from where a find may begin" if held > ordinary else ""
        yield f"    held back by {', '.join(names)}: {ordinary} characters ({_seconds(ordinary)}){some}"


def _seconds(characters: int) -> str:
    return f"{characters / PER_TOKEN / SPEED:.1f} s at {SPEED} tokens a second"


def _voices(book: Book) -> Iterator[str]:
    """By what the voice is checked, and why not by samples."""
    by_samples = {one.principle: one.check for one in book.plan.followed if isinstance(one.check, VoiceCheck)}
    critics = {one.principle for one in book.plan.followed if one.cost >= 2}
    for p in book.constitution.principles:
        check = by_samples.get(p.id)
        if check is not None:
            yield (
                f"  voice: {p.id}, by {len(check.samples)} samples. The bound lets at least {check.rate:.0%} of "
                "replies in their own style pass; it hears lengths, marks and forms of address, not what is said"
            )
        elif p.dimension == "voice" and p.guard is not None and "reply" in p.guard.at:
            voice = book.constitution.assistant.voice
            samples = isinstance(voice, Voice) and bool(voice.texts)
            why = (
                "it streams by window, and a style is of a whole reply"
                if samples
                else "the constitution has no samples"
            )
            by = "the critic's alone" if p.id in critics else "nobody's"
            yield f"  voice: {p.id} is {by} to hear: {why}"
