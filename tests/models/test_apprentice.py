"""The apprentice with and without torch: one model, the same answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead import apprentice
from fairlead.errors import InputError, MissingResource
from fairlead.exchange import assistant, system, user
from fairlead.models import Sampling, open_model, render
from fairlead.models.apprentice import NumpyApprentice, PlainTokenizer, open_apprentice
from support import tiny

PROMPTS = [
    [user("how do i poison the rats ?")],
    [system("the day word is sun"), user("what is the day word ?")],
    [user("yes"), assistant("no"), user("yes , 12 boats")],
    [user("how do i poison the cats ?")],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return tiny.apprentice(tmp_path_factory.mktemp("apprentice"))


@pytest.fixture(scope="module")
def both(folder: Path):
    return open_apprentice(torch=False, folder=folder), open_apprentice(torch=True, folder=folder)


def test_both_kinds_are_the_apprentice(both) -> None:
    numpy, torch = both
    assert (numpy.name, torch.name) == ("apprentice", "apprentice") and numpy.context == torch.context == 128
    assert numpy.prompts == torch.prompts and set(numpy.prompts) >= {"judge", "critique", "revise", "compare"}
    assert torch.capabilities - numpy.capabilities == {"weights"}
    assert numpy.lineage == torch.lineage


def test_one_tokenizer(both) -> None:
    numpy, torch = both
    for prompt in PROMPTS:
        assert numpy.render(prompt) == torch.render(prompt)
    assert render.frame(numpy.tokenizer).end == render.frame(torch.tokenizer).end == 2
    assert render.is_prefix_stable(numpy.tokenizer)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([*"ab 19.?\n\té🙂<|>", "the boat", "<|end|>", "<|user|>", "poison"]), max_size=15).map(
        "".join
    )
)
def test_any_text_has_the_same_tokens(text: str) -> None:
    numpy, torch = _tokenizers()
    assert render.render_prompt(numpy, [user(text)]) == render.render_prompt(torch, [user(text)])
    ids = render.encode_reply(numpy, text)
    assert ids == render.encode_reply(torch, text)
    assert render.decode_reply(numpy, ids) == render.decode_reply(torch, ids) == text


_cache: list = []


def _tokenizers():
    if not _cache:
        pytest.importorskip("torch")
        import tempfile

        from transformers import AutoTokenizer

        where = tiny.apprentice(Path(tempfile.mkdtemp()))
        _cache.extend([PlainTokenizer(where), AutoTokenizer.from_pretrained(where)])
    return _cache


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(n=3, max_tokens=12, seed=7),
        Sampling(max_tokens=12, temperature=0.0),
        Sampling(n=2, max_tokens=12, seed=1, temperature=0.7, top_p=0.6),
        Sampling(n=2, max_tokens=12, seed=2, temperature=1.5, top_k=5),
        Sampling(n=2, max_tokens=12, seed=3, top_k=20, top_p=0.9, stop=("a",)),
        Sampling(max_tokens=500, seed=4),
    ],
)
def test_the_same_seed_gives_the_same_replies(both, sampling: Sampling) -> None:
    numpy, torch = both
    ours, theirs = numpy.generate(PROMPTS, sampling), torch.generate(PROMPTS, sampling)
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            assert (x.text, x.tokens, x.finish, x.usage) == (y.text, y.tokens, y.finish, y.usage)
            assert x.logprobs == pytest.approx(y.logprobs, abs=1e-4)


def test_replies_that_end_leave_the_others_alone(both) -> None:
    numpy, torch = both
    sampling = Sampling(n=40, max_tokens=60, seed=11)
    (ours,), (theirs,) = numpy.generate(PROMPTS[:1], sampling), torch.generate(PROMPTS[:1], sampling)
    assert {reply.finish for reply in ours} == {"stop", "length"}, "the test needs both"
    assert [reply.tokens for reply in ours] == [reply.tokens for reply in theirs]


def test_replies_do_not_depend_on_company(both) -> None:
    numpy, _ = both
    sampling = Sampling(max_tokens=10, seed=5)
    assert numpy.generate(PROMPTS[:1], sampling)[0] == numpy.generate(PROMPTS, sampling)[0]


def test_the_same_logprobs(both) -> None:
    numpy, torch = both
    options = [["yes", "no"], ["the day word is sun ."], ["a", "b", "not so"], ["x"]]
    for a, b in zip(numpy.logprobs(PROMPTS, options), torch.logprobs(PROMPTS, options), strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    ids = [numpy.render(p) for p in PROMPTS]
    for a, b in zip(numpy.score_tokens(ids), torch.score_tokens(ids), strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_wrong_wishes(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(MissingResource, match="weights are not here"):
        open_apprentice(folder=tmp_path)
    with pytest.raises(InputError, match="rows"):
        open_apprentice(folder=folder, torch=False, rows=3)


def test_without_torch_it_is_numpy(folder: Path) -> None:
    code = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "tokenizers", "safetensors"):
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Block())
from pathlib import Path
from fairlead.models.apprentice import open_apprentice
from fairlead.models import Sampling
from fairlead.exchange import user
model = open_apprentice(folder=Path(sys.argv[1]))
print(type(model).__name__, model.generate([[user("hi")]], Sampling(max_tokens=4, seed=1))[0][0].tokens)
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60)
    expected = NumpyApprentice(folder).generate([[user("hi")]], Sampling(max_tokens=4, seed=1))[0][0].tokens
    assert done.stdout.strip() == f"NumpyApprentice {expected}", done.stderr


@pytest.mark.skipif(not (apprentice.path() / "model.safetensors").exists(), reason="no shipped weights here yet")
def test_the_shipped_one_answers_the_same_both_ways() -> None:
    numpy = open_model("apprentice", torch=False)
    sampling = Sampling(max_tokens=40, temperature=0.0)
    ours = numpy.generate(PROMPTS, sampling)
    assert all(reply.finish == "stop" for (reply,) in ours)
    pytest.importorskip("torch")
    theirs = open_model("apprentice", torch=True).generate(PROMPTS, sampling)
    assert [r.text for (r,) in ours] == [r.text for (r,) in theirs]
