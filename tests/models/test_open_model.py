"""Names of models: what they mean, and what is said of those that mean nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fairlead.errors import InputError, MissingResource
from fairlead.models import is_remote, open_model, read_prices
from fairlead.models.prices import price_of
from fairlead.models.serve import Server
from support import tiny
from support.fakes import Echo
from support.tiny import SPECIALS


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("opnai/gpt-4o@http://127.0.0.1:1/v1", "unknown provider 'opnai'. Did you mean 'openai'?"),
        ("mistral/large@https://api.mistral.ai/v1", "unknown provider 'mistral'"),
        ("openai/", "which model?"),
        ("openai/m@localhost:8000", "must be a URL"),
        ("openai/m@ftp://host/v1", "not an http"),
        ("vertex/claude@2025@x", "must be a URL"),
        ("openai-response/m@http://h/v1", "Did you mean 'openai-responses'?"),
        ("openai/m@http://user:sk-canary@host/v1", "environment only"),
        ("openai/m@http://host/v1?key=1", "without"),
        ("openai/m@http://host/v1,http://other/v1", "one URL belongs here"),
        ("vllm/m", "where is the server"),
        ("aprentice", "Did you mean 'apprentice'"),
        ("anthropc/claude", "Did you mean 'anthropic/…'"),
        ("a/b/c", "not apprentice"),
        ("", "name one"),
        (" apprentice", "name one"),
    ],
)
def test_specs_that_mean_nothing(spec: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        open_model(spec)
    assert words in str(caught.value) and "sk-canary" not in str(caught.value)


@pytest.mark.parametrize("name", ["mymodel", "runs/latest/model", "my model"])
def test_a_name_that_is_a_folder_here_means_the_folder(name: str, tmp_path: Path, monkeypatch) -> None:
    """For the model that answers and for the stack's source alike; a hub name of that spelling is not asked for."""
    pytest.importorskip("torch")
    from fairlead.stack.source import locate

    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    tiny.folder(tmp_path / name)
    model = open_model(name)
    assert model.name == name and model.lineage == open_model(f"./{name}").lineage
    assert locate(name).identity == locate(f"./{name}").identity


HUB = """
import sys
from fairlead.errors import FairleadError
from fairlead.exchange import user
from fairlead.models import Sampling, open_model
from fairlead.stack.source import locate

source, hub, own = locate("harbour/tiny"), open_model("harbour/tiny"), open_model(sys.argv[1])
said = [m.generate([[user("the boat")]], Sampling(max_tokens=4, temperature=0))[0][0].tokens for m in (hub, own)]
print(source.kind, source.folder.name, hub.name, hub.lineage == own.lineage, said[0] == said[1])
for find in (locate, open_model):
    try:
        find("harbour/nothing")
    except FairleadError as error:
        print(error.exit_code, "harbour/nothing" in str(error))
"""


def test_a_hub_name_is_found_in_the_hubs_cache_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    own = tiny.folder(tmp_path / "own")
    cached = tmp_path / "hub" / "models--harbour--tiny"
    shutil.copytree(own, cached / "snapshots" / "abc123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc123")
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", HUB, str(own)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["local abc123 harbour/tiny True True", "4 True", "4 True"]


def test_which_names_cost_money() -> None:
    assert all(is_remote(f"{p}/x") for p in ("azure", "bedrock", "vertex", "openai-responses"))
    assert is_remote("vertex/claude-opus-5@20260101"), "as Google names the versions of a model"
    assert is_remote("openai/x") and is_remote("vllm/x@http://h/v1") and not is_remote("./x") and not is_remote("o/x")


def test_prices(tmp_path: Path) -> None:
    assert price_of("claude-haiku-4-5-20251001") == price_of("claude-haiku-4-5") and price_of("no-such") is None
    long = price_of("gpt-6-sol")
    assert long is not None and long.cost(272_001, 0) > 1.9 * long.cost(272_000, 0)
    file = tmp_path / "prices.json"
    file.write_text(json.dumps({"gpt-6-sol": {"input": 1, "output": 1}}))
    assert price_of("gpt-6-sol", read_prices(file)).cost(1_000_000, 1_000_000) == 2
    for text, words in (('{"m": {"inptu": 1}}', "'m'"), ("{", "not a JSON"), ("[]", "expected")):
        file.write_text(text)
        with pytest.raises(InputError, match=words):
            read_prices(file)
    with pytest.raises(InputError, match="no such"):
        read_prices(tmp_path / "gone.json")


BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Block())
"""
HEAVY = "('torch', 'transformers', 'tokenizers', 'safetensors')"


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_models_loads_neither_torch_nor_an_sdk() -> None:
    code = BLOCK.format(names=HEAVY[:-1] + ", 'openai', 'anthropic')") + "import fairlead.models; print('fine')"
    assert python(code) == "fine"


def test_remote_models_and_servers_need_no_torch() -> None:
    code = BLOCK.format(names=HEAVY) + (
        "from fairlead.models import open_model; from fairlead.exchange import user\n"
        "print(open_model(sys.argv[1]).generate([[user('hi')]])[0][0].text)"
    )
    with Server(Echo()) as server:
        assert python(code, f"openai/echo@{server.url}/v1") == "hi #0"
        assert python(code, f"anthropic/echo@{server.url}") == "hi #0"


def test_local_weights_without_torch_say_what_is_missing(tmp_path: Path) -> None:
    code = BLOCK.format(names=HEAVY) + (
        "from fairlead.models import open_model\n"
        "try: open_model(sys.argv[1])\n"
        "except Exception as e: print(type(e).__name__, getattr(e, 'exit_code', None), e)"
    )
    said = python(code, str(tmp_path))
    assert said.startswith("MissingResource 4") and "fairlead[train]" in said


def test_torch_is_asked_for_and_absent() -> None:
    code = BLOCK.format(names=HEAVY) + (
        "from fairlead.models import open_model\n"
        "try: open_model('apprentice', torch=True)\n"
        "except Exception as e: print(type(e).__name__)"
    )
    assert python(code) == "MissingResource"
    assert MissingResource.exit_code == 4 and SPECIALS
