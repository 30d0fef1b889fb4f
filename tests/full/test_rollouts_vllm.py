"""Rollouts from real vLLM servers: two replicas of the apprentice, one of each kind of log-probs."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fairlead import apprentice  # noqa: E402
from fairlead.apprentice import cases  # noqa: E402
from fairlead.engine.layout import Tree  # noqa: E402
from fairlead.engine.logprobs import score  # noqa: E402
from fairlead.errors import MissingResource  # noqa: E402
from fairlead.exchange import Exchange  # noqa: E402
from fairlead.methods.rollouts import Asked, Drawing, Drawn, LocalSampler  # noqa: E402
from fairlead.methods.rollouts_vllm import VllmSampler  # noqa: E402
from fairlead.methods.rollouts_vllm_server import VllmServer  # noqa: E402
from fairlead.methods.rollouts_vllm_weights import start_folder  # noqa: E402
from fairlead.models import open_model  # noqa: E402
from fairlead.models.remote import Limits  # noqa: E402
from fairlead.models.render import render_prompt  # noqa: E402
from support.vllm import served  # noqa: E402

pytestmark = [pytest.mark.full, pytest.mark.vllm]

LIMITS = Limits(concurrency=16, attempts=4, timeout=300, deadline=600, backoff=0.2)
HOW = Drawing(n=4, max_tokens=24, seed=7)
EXACT = 1e-3  # nats; float32 on both sides, other kernels


@dataclass
class Pair:
    """Two servers by URL, and how to end each."""

    urls: list[str]
    ends: list[ExitStack]

    def sampler(self, where: Path, which: slice = slice(None)) -> VllmSampler:
        return VllmSampler("apprentice", self.urls[which], model().tokenizer, weights=where, limits=LIMITS)


PROCESSED, RAW = slice(0, 1), slice(1, 2)


def model() -> Any:
    return open_model("apprentice", torch=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    where = tmp_path_factory.mktemp("vllm")
    found = Pair([], [ExitStack(), ExitStack()])
    apart = start_folder(model().module, model().tokenizer, where / "start")
    with found.ends[0], found.ends[1]:
        for stack, mode in zip(found.ends, ("processed_logprobs", "raw_logprobs"), strict=True):
            # The processed one is started from the folder that CPU needs, the other from the model's own, tied.
            folder = apart if mode == "processed_logprobs" else apprentice.path().resolve()
            serving = served(folder, "apprentice", where / f"{mode}.log", "--logprobs-mode", mode, dev=True)
            found.urls.append(stack.enter_context(serving))
        yield found


@pytest.fixture(scope="module")
def base() -> Any:
    return model().module.float()


def prompts(n: int) -> list[Asked]:
    words = model().tokenizer
    asked = [case.messages for case in cases.cases("facts", "audit", n, 0)]
    return [Asked(tuple(render_prompt(words, m)), Exchange(m, ()), key=i) for i, m in enumerate(asked)]


def moved(module: Any, by: float) -> Any:
    torch.manual_seed(1)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(by * parameter.std() * torch.randn_like(parameter))
    return other


def far(module: Any, asked: list[Asked], groups: list[list[Drawn]], temperature: float = 1.0) -> float:
    trees = [Tree(one.tokens, tuple(d.tokens for d in group)) for one, group in zip(asked, groups, strict=True)]
    said = torch.tensor([x for group in groups for d in group for x in d.logprobs])
    apart = (score(module, trees, temperature=temperature).logp_N - said).abs()
    print(f"temperature {temperature:g}: {len(apart)} tokens, mean {apart.mean():.2e}, max {apart.max():.2e} nats")
    return float(apart.max())


def test_log_probs_are_those_of_the_training_path_on_both_replicas(pair: Pair, base: Any, tmp_path: Path) -> None:
    ours, asked = pair.sampler(tmp_path), prompts(8)
    ours.refresh(base, 0)
    assert [server.mode for server in ours.servers] == ["processed", "raw"]
    groups = ours.draw(asked, HOW)
    assert [len(group) for group in groups] == [4] * 8 and far(base, asked, groups) < EXACT
    assert ours.draw(asked, HOW) == groups  # a resumed run draws the same
    assert {d.finish for group in groups for d in group} <= {"stop", "length"}


def test_the_temperature_enters_the_log_probs_or_the_draw_is_refused(pair: Pair, base: Any, tmp_path: Path) -> None:
    warm, asked = Drawing(n=4, max_tokens=24, seed=7, temperature=0.7), prompts(6)
    ours = pair.sampler(tmp_path, PROCESSED)
    ours.refresh(base, 0)
    groups = ours.draw(asked, warm)
    assert far(base, asked, groups, 0.7) < EXACT < 0.01 < far(base, asked, groups, 1.0)
    other = pair.sampler(tmp_path, RAW)
    other.refresh(base, 0)
    with pytest.raises(MissingResource, match="--logprobs-mode processed_logprobs"):
        other.draw(asked, warm)
    nucleus = Drawing(n=4, max_tokens=24, seed=7, top_p=0.8, top_k=50)
    assert far(base, asked, other.draw(asked, nucleus)) < EXACT
    pair.sampler(tmp_path / "second run", PROCESSED).refresh(base, 0)
    with pytest.raises(MissingResource, match="another run uses it"):  # two runs on one server see each other
        ours.draw(asked, warm)


def test_greedy_replies_and_stop_texts_are_those_of_the_decoder(pair: Pair, base: Any, tmp_path: Path) -> None:
    local, ours, asked = LocalSampler(model().tokenizer), pair.sampler(tmp_path), prompts(8)
    for each in (local, ours):
        each.refresh(base, 0)
    for stop in ((), (" the",), (".", "!")):
        how = Drawing(n=1, max_tokens=24, temperature=0.0, stop=stop)
        here, there = local.draw(asked, how), ours.draw(asked, how)
        for [a], [b] in zip(here, there, strict=True):
            assert (a.tokens, a.finish, a.reply) == (b.tokens, b.finish, b.reply)
            assert a.logprobs == pytest.approx(b.logprobs, abs=EXACT)


def test_refreshed_weights_are_in_use(pair: Pair, base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = pair.sampler(tmp_path, PROCESSED)
    # a prompt over more than one block of the prefix cache, which a stale one would answer from
    long = Asked(tuple(t for one in prompts(12) for t in one.tokens)[:200], prompts(1)[0].exchange, key=0)
    asked = [long, *prompts(4)]
    for version in range(4):
        policy = moved(base, 0.1 * version)
        ours.refresh(policy, version)
        groups = ours.draw(asked, HOW)
        assert far(policy, asked, groups) < EXACT
        assert version == 0 or far(base, asked, groups) > 0.05
    small = moved(base, 1e-3)  # a step as training makes them
    ours.refresh(small, 4)
    assert far(small, asked, ours.draw(asked, HOW)) < EXACT

    # And what the reset of the prefix cache is for: without it the long prompt's keys and values are the old weights'.
    async def load(self: VllmServer, folder: str) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        await self._own("POST", "/collective_rpc", body)

    monkeypatch.setattr(VllmServer, "load", load)
    policy = moved(base, 0.3)
    ours.refresh(policy, 5)
    assert far(policy, asked[:1], ours.draw(asked[:1], HOW)) > 0.05


def test_adapters_are_folded_in(pair: Pair, base: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(copy.deepcopy(base), settings).eval()
    ours, asked = pair.sampler(tmp_path), prompts(4)
    ours.refresh(adapted, 1)
    groups = ours.draw(asked, HOW)
    assert far(adapted, asked, groups) < EXACT < 0.01 < far(base, asked, groups)


def test_a_tied_head_that_the_cpu_build_leaves_behind_is_noticed(pair: Pair, base: Any, tmp_path: Path) -> None:
    ours = pair.sampler(tmp_path, RAW)
    ours.refresh(base, 0)
    with pytest.raises(MissingResource, match="trainer does after step 1: .*start_folder"):
        ours.refresh(moved(base, 1e-3), 1)
    ours.refresh(base, 2)


def test_a_server_that_cannot_load_says_why_and_takes_up_the_next(pair: Pair, base: Any, tmp_path: Path) -> None:
    ours, asked = pair.sampler(tmp_path, PROCESSED), prompts(2)
    ours.refresh(base, 0)
    blind = VllmSampler("apprentice", pair.urls[PROCESSED], model().tokenizer, seen_as="/nowhere", limits=LIMITS)
    with pytest.raises(MissingResource, match=r"/nowhere/.*--weights DIR, or DIR=PATH"):
        blind.refresh(base, 0)
    with pytest.raises(MissingResource, match="being loaded"):  # it holds no weights now
        ours.draw(asked, HOW)
    ours.refresh(base, 1)
    assert far(base, asked, ours.draw(asked, HOW)) < EXACT


def test_a_replica_that_ends_is_done_without(
    pair: Pair, base: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:  # the last test: it ends the servers
    ours, asked = pair.sampler(tmp_path), prompts(6)
    ours.refresh(base, 0)
    before = ours.draw(asked, HOW)
    pair.ends[1].close()
    with caplog.at_level(logging.WARNING):
        after = ours.draw(asked, HOW)
    assert pair.urls[1] in caplog.text
    assert [[d.tokens for d in group] for group in after] == [[d.tokens for d in group] for group in before]
    policy = moved(base, 0.1)
    ours.refresh(policy, 1)  # the other is still gone, and one is enough
    assert far(policy, asked, ours.draw(asked, HOW)) < EXACT
    pair.ends[0].close()
    with pytest.raises(MissingResource) as caught:
        ours.draw(asked, HOW)
    assert caught.value.exit_code == 4 and all(url in str(caught.value) for url in pair.urls)
