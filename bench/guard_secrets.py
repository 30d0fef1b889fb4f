"""Canaries: leaks by encoding and depth, false alarms, CPU time. `python bench/guard_secrets.py --out secrets.json`.

A leak is 32 or more of a canary's 128 bits released over the whole conversation, counted by the generator
(`tests/support/leaks.py`, which imports nothing of the guard). CPU time is `time.process_time` per exchange.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from fairlead.exchange import Exchange, Message, Text, ToolCall, assistant, system, user  # noqa: E402
from fairlead.guard.checks.secrets import Secret, SecretsCheck  # noqa: E402
from fairlead.guard.watch import Seen  # noqa: E402
from fairlead.guard.wire.events import Channel  # noqa: E402
from fairlead.stats import wilson  # noqa: E402
from support.leaks import Case, Tracked, bits_released, case, cut_out, said  # noqa: E402

PARTS = ["whole", "streamed", "names", "harmless", "harmless-names", "not-listed", "cpu"]
DATA = ROOT.parent / "shared" / "data"


def whole(check: SecretsCheck, messages: list[Message], turn: tuple[Tracked, ...], rng: random.Random) -> list[Tracked]:
    """What leaves of a reply that is looked at when it is whole."""
    reply = Message("assistant", tuple(Text(said(text)) for text in turn))
    [decision] = check.decide([Exchange(tuple(messages), (reply,))])
    spans = [[(s.start, s.end) for s in decision.spans if s.at == (0, n)] for n in range(len(turn))]
    return [cut_out(text, cuts) for text, cuts in zip(turn, spans, strict=True)]


def streamed(
    check: SecretsCheck, messages: list[Message], turn: tuple[Tracked, ...], rng: random.Random
) -> list[Tracked]:
    """What leaves of a reply that comes in pieces: only what is let go, and of that nothing that was cut before. That a
    text is whole is told by itself, as a proxy hears of it."""
    watch = check.watch(messages)
    gone: dict[Channel, set[int]] = {}
    safe: dict[Channel, int] = {}
    left: dict[Channel, set[int]] = {}

    def take(ruling: Any) -> None:
        for cut in ruling.cuts:
            gone.setdefault(cut.channel, set()).update(range(cut.start, cut.end))
        for channel, n in ruling.safe.items():
            for index in range(safe.get(channel, 0), n):
                if index not in gone.get(channel, ()):
                    left.setdefault(channel, set()).add(index)
            safe[channel] = max(safe.get(channel, 0), n)

    for part, text in enumerate(turn):
        channel, at = Channel(0, part), 0
        while at < len(text):
            size = rng.choice((1, 2, 3, 5, 8, 40))
            take(watch.feed(Seen(channel, "reply", said(text[at : at + size]))))
            at += size
        take(watch.feed(Seen(channel, "reply", "", last=True)))
    take(watch.finish(0))
    out = []
    for part, text in enumerate(turn):
        stay = left.get(Channel(0, part), set())
        out.append(cut_out(text, [(n, n + 1) for n in range(len(text)) if n not in stay]))
    return out


def named(check: SecretsCheck, messages: list[Message], turn: tuple[Tracked, ...], rng: random.Random) -> list[Tracked]:
    """What leaves of calls by these names: each as it is, or nothing of it."""
    reply = Message("assistant", tuple(ToolCall("c", said(name), '{"n":1}') for name in turn))
    [decision] = check.decide([Exchange(tuple(messages), (reply,))])
    gone = {span.at[1] for span in decision.spans}
    return [[] if n in gone else name for n, name in enumerate(turn)]


def released(how: Any, made: Case, rng: random.Random) -> float:
    """Bits of the canary that a reader holds at the end of the conversation."""
    check = SecretsCheck((Secret("canary", (made.secret,), anywhere=True),))
    messages = [system("be kind"), user("what is it?")]
    out: list[Tracked] = []
    for turn in made.turns:
        left = how(check, messages, turn, rng)
        out += left
        messages += [Message("assistant", tuple(Text(said(text)) for text in left)), user("go on")]
    return bits_released(made, out)


def leaks(n: int, how: Any, seed: int, split: str | None) -> dict[str, Any]:
    rng = random.Random(seed)
    tried: Counter[str] = Counter()
    leaked: Counter[str] = Counter()
    which: list[str] = []
    most = 0.0
    for _ in range(n):
        depth = rng.choice((1, 2, 3))
        made = case(rng, depth, split)
        bits = released(how, made, rng)
        for name in {f"depth {depth}", f"split: {made.split}", *(f"has {name}" for name in made.names)}:
            tried[name] += 1
            leaked[name] += bits >= 32
        if bits >= 32:
            which.append(f"{made.id} ({bits:.0f} bits)")
        else:
            most = max(most, bits)
    total = len(which)
    return {
        "n": n,
        "leaks": total,
        "upper_95": 3 / n if not total else wilson(total, n).high,
        "most_bits_without_leak": round(most, 1),
        "by": {name: [leaked[name], tried[name]] for name in sorted(tried)},
        "cases": which[:40],
    }


def harmless() -> Iterator[str]:
    """Sentences of the data folder, each once."""
    seen: set[str] = set()
    for path in sorted(DATA.rglob("*")):
        if not re.search(r"\.(jsonl?|csv|txt)(\.gz)?$", path.name) or path.name == "SOURCE.txt":
            continue
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.name.endswith(".gz") else data)[:400_000].decode(errors="replace")
        for found in re.findall(r"[A-Z][^\"\\{}<>]{25,400}?[.!?](?=[\s\"\\])", text):
            if found not in seen:
                seen.add(found)
                yield found


def false_alarms(n: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    texts = list(harmless())
    rng.shuffle(texts)
    texts = texts[:n]
    secrets = tuple(Secret(f"c{i}", (f"{rng.getrandbits(128):032x}",), anywhere=True) for i in range(4))
    check = SecretsCheck(secrets)
    alarms = 0
    start = time.process_time()
    for text in texts:
        alarms += check.decide([Exchange((user("?"),), (assistant(text),))])[0].outcome != "allow"
    spent = time.process_time() - start
    return {
        "n": len(texts),
        "alarms": alarms,
        "upper_95": 3 / max(1, len(texts)),
        "us_each": round(1e6 * spent / max(1, len(texts)), 1),
    }


def names_of_calls() -> list[str]:
    """Names as programs have them: every function, method and class of Python's own library that parses."""
    found: set[str] = set()
    for path in Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"):
        if "site-packages" not in path.parts:
            found.update(
                re.findall(r"^\s*(?:async def|def|class) ([A-Za-z]\w{2,63})", path.read_text("utf-8", "replace"), re.M)
            )
    return sorted(found)


def false_names(n: int, seed: int) -> dict[str, Any]:
    """Conversations of 1 to 40 harmless calls, of 1 to 12 tools, some with a name of a server before ("files.read")."""
    rng, names = random.Random(seed), names_of_calls()
    check = SecretsCheck(tuple(Secret(f"c{i}", (f"{rng.getrandbits(128):032x}",), anywhere=True) for i in range(4)))
    calls = gone = conversations = 0
    while conversations < n:
        before = rng.choice(("", "", f"{rng.choice(names).lower()}.", f"{rng.choice(names).lower()}_", "mcp__x__"))
        tools = [before + name for name in rng.sample(names, rng.randint(1, 12))]
        messages, taken = [system("be kind"), user("do it")], 0
        for _ in range(rng.randint(1, 10)):
            turn = [rng.choice(tools) for _ in range(rng.randint(1, 4))]
            reply = Message("assistant", tuple(ToolCall("c", name, '{"n":1}') for name in turn))
            [decision] = check.decide([Exchange(tuple(messages), (reply,))])
            calls, taken = calls + len(turn), taken + len({span.at[1] for span in decision.spans})
            messages += [reply, user("go on")]
        conversations, gone = conversations + 1, gone + (taken > 0)
    return {
        "names": len(names),
        "conversations": n,
        "calls": calls,
        "with_an_alarm": gone,
        "high_95": wilson(gone, n).high,
    }


def not_listed(n: int, most: int, seed: int) -> dict[str, Any]:
    """Encodings that are not listed and secrets that are words: what is seen, and what is painted over for it."""
    from guard_unlisted import markdown, of_canaries, of_words, on_harmless

    found = {
        "canaries": of_canaries(n, seed), "words": of_words(seed), "harmless": on_harmless(harmless(), most, seed),
    }  # fmt: skip
    return {**found, "markdown": markdown(found)}


def cpu(n: int, seed: int) -> dict[str, float]:
    """Microseconds of CPU time per exchange: 1 kB asked, 1 kB answered, four canaries."""
    rng = random.Random(seed)
    texts = [text for text in harmless() if text.isascii()]
    secrets = tuple(Secret(f"c{i}", (f"{rng.getrandbits(128):032x}",), anywhere=True) for i in range(4))
    check = SecretsCheck(secrets)

    def kilobyte() -> str:
        start = rng.randrange(len(texts) - 60)
        return " ".join(texts[start : start + 60])[:1000]

    times = []
    for _ in range(n):
        item = [Exchange((system("be kind"), user(kilobyte())), (assistant(kilobyte()),))]
        check.decide(item)
        start = time.process_time()
        for _ in range(10):
            check.decide(item)
        times.append((time.process_time() - start) * 1e5)
    times.sort()
    return {
        "p10": round(times[n // 10], 1),
        "p50": round(times[n // 2], 1),
        "p90": round(times[9 * n // 10], 1),
        "mean": round(sum(times) / n, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--harmless", type=int, default=50_000, help="texts; a tenth as many conversations of calls")
    parser.add_argument("--split", help="cases split in this way alone (turns, sentences, …); by default any")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--only", nargs="*", default=PARTS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {"seed": given.seed}
    if "cpu" in given.only:
        result["cpu_us"] = cpu(300, given.seed)
    if "harmless" in given.only:
        result["harmless"] = false_alarms(given.harmless, given.seed)
    if "harmless-names" in given.only:
        result["harmless_names"] = false_names(given.harmless // 10, given.seed)
    if "not-listed" in given.only:
        result["not_listed"] = not_listed(200, 5_000, given.seed)
        print(result["not_listed"].pop("markdown"), file=sys.stderr)
    if "whole" in given.only:
        result["whole"] = leaks(given.cases, whole, given.seed, given.split)
    if "streamed" in given.only:
        result["streamed"] = leaks(given.cases // 4, streamed, given.seed + 1, given.split)
    if "names" in given.only:
        result["names"] = leaks(given.cases // 4, named, given.seed + 2, "names")
    print(json.dumps(result, indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
