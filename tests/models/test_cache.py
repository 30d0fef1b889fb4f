"""Replies on disk: asked once, told apart by everything in the request, whole or absent, and never a key in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.exchange import Message, Refusal, Text, ToolCall, assistant, system, user
from fairlead.models import Reply, ResponseCache, Sampling, Usage, open_model
from fairlead.models.cache import request_key
from fairlead.models.protocol import Alternative
from fairlead.models.remote import Limits
from support.fakes import Echo, Fault, Faulty

QUICK = Limits(backoff=0.01, backoff_cap=0.05, attempts=2)
WARM = Sampling(max_tokens=9, temperature=0.7)


def opened(server: Faulty, cache: ResponseCache | Path, provider: str = "openai"):
    url = server.url + ("" if provider == "anthropic" else "/v1")
    return open_model(f"{provider}/echo@{url}", limits=QUICK, cache=cache)


def fine(i: int, body: bytes) -> Fault | None:
    return None


@pytest.mark.parametrize("provider", ["openai", "openai-responses", "anthropic"])
def test_asked_once_and_free_the_second_time(provider: str, tmp_path: Path) -> None:
    prompts = [[system("be kind"), user("good day")], [user("filter me")], [user("be long")]]
    sampling = Sampling(n=2, max_tokens=9)
    with Faulty(Echo(), fine) as server:
        first = opened(server, tmp_path, provider).generate(prompts, sampling)
        asked = server.count
        again = opened(server, tmp_path, provider)
        assert again.generate(prompts, sampling) == first
        assert server.count == asked and again.spent.calls == 0 and again.cache.hits == asked
        fresh = opened(server, ResponseCache(tmp_path, fresh=True), provider)
        assert fresh.generate(prompts, sampling) == first and server.count == 2 * asked
    size = ResponseCache(tmp_path).size()
    assert size.entries == asked and size.bytes > 100 and f"{asked} replies kept" in str(size)


def test_every_part_of_the_request_is_in_the_key() -> None:
    endpoint = {"api": "chat", "url": "http://a/v1", "model": "m"}
    prompt = [system("s"), user("u")]
    base = Sampling(n=1, max_tokens=5, temperature=0.5, top_p=0.9, top_k=3, stop=("a",), seed=1, top_logprobs=2)
    keys = {request_key(endpoint, prompt, base)}
    others = [
        ({**endpoint, "model": "m2"}, prompt, base), ({**endpoint, "url": "http://b/v1"}, prompt, base),
        ({**endpoint, "api": "responses"}, prompt, base), (endpoint, [user("su")], base),
        (endpoint, [user("s"), user("u")], base), (endpoint, [system("s"), user("u"), assistant("a")], base),
        (endpoint, [system("s"), Message("user", (Text("u"), ToolCall("1", "f", "{}")))], base),
    ]  # fmt: skip
    changed = {"n": 2, "max_tokens": 6, "temperature": 0.6, "top_p": 0.8, "top_k": 4, "stop": ("b",), "seed": 2}
    changed |= {"top_logprobs": 3}
    assert set(changed) == set(base.__dataclass_fields__), "a new field of Sampling belongs in this test"
    others += [(endpoint, prompt, replace(base, **{name: value})) for name, value in changed.items()]
    others += [(endpoint, prompt, replace(base, **{name: None})) for name in changed if name != "n"]
    keys |= {request_key(*other) for other in others} | {request_key(endpoint, prompt, base, 1)}
    assert len(keys) == len(others) + 2


def test_draws_differ_where_luck_is_not_fixed_and_come_back_in_order(tmp_path: Path) -> None:
    class Counting(Echo):
        def generate(self, prompts, sampling=Sampling()):  # noqa: B008
            start = len(self.asked) + 1
            self.asked += [(p[-1].text, sampling) for p in prompts]
            said = [assistant(f"draw {start + i}") for i in range(len(prompts))]
            return [(Reply((message,), "stop", usage=Usage(1, 1)),) for message in said]

    texts = lambda got: sorted(r.text for group in got for r in group)  # noqa: E731
    with Faulty(Counting(), fine) as server:
        model = opened(server, tmp_path)
        rows = model.generate([[user("hi")]] * 3, WARM)  # three equal rows are three draws
        later = model.generate([[user("hi")]], WARM)  # and one asked later is a fourth
        assert texts(rows) == ["draw 1", "draw 2", "draw 3"] and texts(later) == ["draw 4"]
        second = opened(server, tmp_path)  # as in a second run of the program
        assert second.generate([[user("hi")]] * 3, WARM) == rows and second.generate([[user("hi")]], WARM) == later
        assert server.count == 4
        greedy = replace(WARM, temperature=0.0)
        assert len(set(texts(model.generate([[user("hi")]], greedy) + model.generate([[user("hi")]], greedy)))) == 1
        assert server.count == 5


def test_errors_are_not_kept_and_a_torn_entry_is_asked_again(tmp_path: Path, caplog) -> None:
    with Faulty(Echo(), lambda i, body: Fault(500) if i < 2 else None) as server:
        model = opened(server, tmp_path)
        assert model.generate([[user("hi")]])[0][0].finish == "error" and model.cache.size().entries == 0
        opened(server, tmp_path).generate([[user("hi")]])
        (file,) = tmp_path.glob("*/*.json")
        whole = file.read_bytes()
        for torn in (whole[:-20], b"", whole.replace(b"hi #0", b"ho #0")):
            file.write_bytes(torn)
            before, model = server.count, opened(server, tmp_path)
            assert model.generate([[user("hi")]])[0][0].text == "hi #0"
            assert server.count == before + 1 and model.cache.broken == 1 and "not whole" in caplog.text
            assert file.read_bytes() == whole, "written anew"


def test_a_disk_that_takes_nothing_loses_no_reply(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("not a folder")
    with Faulty(Echo(), fine) as server:
        model = opened(server, tmp_path / "file")
        replies = model.generate([[user("a")], [user("b")]])
    assert [r.text for (r,) in replies] == ["a #0", "b #0"] and model.cache.unwritten == 2
    assert caplog.text.count("cannot be kept") == 1


def test_every_part_of_a_reply_comes_back(tmp_path: Path) -> None:
    reply = Reply(
        (Message("assistant", (Text("a"), ToolCall("1", "f", "{}"), Refusal("no"))),), "refusal", (1, 2), (-0.5, -1.0),
        Usage(3, 4), mended=1, top_logprobs=((Alternative("a", -0.5), Alternative("b", -1.0)), (Alternative("c", -0.1),)),
    )  # fmt: skip
    cache = ResponseCache(tmp_path)
    cache.put("ab" * 32, [reply])
    assert cache.get("ab" * 32) == (reply,)
    assert os.stat(next(tmp_path.glob("*"))).st_mode & 0o077 == 0, "replies are nobody else's to read"


WRITER = """
import sys
from pathlib import Path
from fairlead.exchange import assistant
from fairlead.models import Reply, ResponseCache
cache = ResponseCache(Path(sys.argv[1]))
text = sys.argv[2] * 20000
for turn in range(60):
    for key in range(4):
        name = f"{key:02d}" * 32
        cache.put(name, [Reply((assistant(text),), "stop")])
        got = cache.get(name)
        assert got is not None and set(got[0].text) in ({"a"}, {"b"}), "half of one and half of the other"
assert cache.broken == 0
"""


def test_two_processes_write_the_same_entries_and_read_whole_ones(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    runs = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), x], env=env) for x in "ab"]
    assert [run.wait(120) for run in runs] == [0, 0]
    assert ResponseCache(tmp_path).size().entries == 4 and not list(tmp_path.glob("*/.*")), "nothing half-made is left"


def test_entries_hold_replies_and_no_prompt(tmp_path: Path) -> None:
    with Faulty(Echo(), lambda i, body: None) as server:
        opened(server, tmp_path).generate([[system("the secret instruction"), user("good day")]])
    (file,) = tmp_path.glob("*/*.json")
    row = json.loads(file.read_bytes())
    assert set(row) == {"key", "sha256", "replies"} and b"secret instruction" not in file.read_bytes()
