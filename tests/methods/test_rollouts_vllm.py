"""Rollouts from vLLM servers, against servers in this process that behave as vLLM does, and then do not."""

from __future__ import annotations

import copy
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fairlead.engine.layout import Tree  # noqa: E402
from fairlead.engine.logprobs import score  # noqa: E402
from fairlead.errors import InputError, MissingResource  # noqa: E402
from fairlead.exchange import Exchange, user  # noqa: E402
from fairlead.methods import rollouts_vllm_server as wire  # noqa: E402
from fairlead.methods.rollouts import Asked, Drawing, LocalSampler  # noqa: E402
from fairlead.methods.rollouts_vllm import VllmSampler, sampler_of, unfit  # noqa: E402
from fairlead.methods.rollouts_vllm_weights import start_folder  # noqa: E402
from fairlead.models.access import Transient  # noqa: E402
from fairlead.models.remote import Limits  # noqa: E402
from support import ranks, tiny  # noqa: E402
from support.fake_vllm import FakeVllm  # noqa: E402

WORDS = tiny.tokenizer()
LIMITS = Limits(concurrency=4, attempts=4, timeout=30, deadline=60, backoff=0.01)
HOW = Drawing(n=3, max_tokens=8, seed=5)
DRAW = "/v1/completions"
Fakes = Callable[..., list[FakeVllm]]


@pytest.fixture(scope="module")
def base() -> Any:
    return tiny.llama(len(WORDS))


@pytest.fixture
def serve(base: Any) -> Iterator[Fakes]:
    with ExitStack() as stack:
        yield lambda n=1, **how: [stack.enter_context(FakeVllm(base, WORDS, **how)) for _ in range(n)]


def sampler(fakes: list[FakeVllm], where: Path, **more: Any) -> VllmSampler:
    return VllmSampler("tiny", [fake.url for fake in fakes], WORDS, weights=where, **{"limits": LIMITS, **more})


def prompts(n: int) -> list[Asked]:
    return [Asked((7, 20 + i, 30 + 2 * i, 9), Exchange((user(f"{i}"),), ()), key=100 + i) for i in range(n)]


def moved(module: Any, by: float, seed: int = 1) -> Any:
    """The module after a step of that size."""
    torch.manual_seed(seed)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return other


def far(module: Any, asked: list[Asked], groups: list[Any], temperature: float = 1.0) -> float:
    """The largest distance of the replies' log-probs from the training path's."""
    trees = [Tree(one.tokens, tuple(d.tokens for d in group)) for one, group in zip(asked, groups, strict=True)]
    said = torch.tensor([x for group in groups for d in group for x in d.logprobs])
    return float((score(module, trees, temperature=temperature).logp_N - said).abs().max())


def faults(**when: dict[int, str]) -> Callable[[str, int], str | None]:
    """A plan: fault by path (draw, load, …) and count."""
    paths = {"draw": DRAW, "load": "/collective_rpc", "info": "/weight_info"}
    by_path = {paths[name]: plan for name, plan in when.items()}
    return lambda path, i: by_path.get(path, {}).get(i)


# ------------------------------------------------------------------------------------------------- drawing


def test_replies_come_whole_in_order_with_the_log_probs_of_the_policy(serve: Fakes, base: Any, tmp_path: Path) -> None:
    fakes, asked = serve(), prompts(5)
    ours = sampler(fakes, tmp_path)
    ours.refresh(base, 0)
    groups = ours.draw(asked, HOW)
    assert [len(group) for group in groups] == [3] * 5
    assert far(base, asked, groups) < 1e-5
    assert len({d.tokens for group in groups for d in group}) == 15
    for group in groups:
        for d in group:
            assert len(d.tokens) == len(d.logprobs) == d.scored
            assert d.finish == ("stop" if d.tokens[-1] in ours.stops else "length") and d.reply[0].role == "assistant"
    assert ours.name == "vllm/tiny" and not ours.exact
    assert fakes[0].drawn[-1]["stop_token_ids"] == LocalSampler(WORDS).stops


def test_the_same_key_and_seed_are_drawn_alike_however_they_are_dealt(serve: Fakes, base: Any, tmp_path: Path) -> None:
    one, two, asked = serve(1), serve(2), prompts(5)
    alone, shared = sampler(one, tmp_path / "1"), sampler(two, tmp_path / "2")
    for each in (alone, shared):
        each.refresh(base, 0)
    groups = alone.draw(asked, HOW)
    assert shared.draw(asked, HOW) == groups
    assert shared.draw(asked[::-1], HOW) == groups[::-1]
    assert shared.draw(asked, Drawing(n=3, max_tokens=8, seed=6)) != groups


def test_prompts_are_dealt_over_the_servers_a_group_whole_on_one(serve: Fakes, base: Any, tmp_path: Path) -> None:
    fakes, asked = serve(2), prompts(7)
    ours = sampler(fakes, tmp_path)
    ours.refresh(base, 0)
    ours.draw(asked, HOW)
    assert sorted(len(fake.asked()) for fake in fakes) == [3, 4]
    assert Counter(p for fake in fakes for p in fake.asked()) == Counter(one.tokens for one in asked)
    assert all(body["n"] == 3 for fake in fakes for body in fake.drawn if "stop" in body)


def test_a_reply_ends_at_a_stop_text_and_keeps_the_tokens_that_spell_it(
    serve: Fakes, base: Any, tmp_path: Path
) -> None:
    ours, asked = sampler(serve(), tmp_path), prompts(4)
    ours.refresh(base, 0)
    free = ours.draw(asked, Drawing(n=2, max_tokens=20, seed=5))
    text = free[0][0].reply[0].text
    stop = text[4:6]
    assert stop.strip()
    cut = ours.draw(asked, Drawing(n=2, max_tokens=20, seed=5, stop=(stop,)))
    reply = cut[0][0]
    assert reply.finish == "stop" and reply.reply[0].text == text[: text.find(stop)]
    assert stop in WORDS.decode(reply.tokens) and stop not in WORDS.decode(reply.tokens[:-1])
    assert free[0][0].tokens[: len(reply.tokens)] == reply.tokens and len(reply.logprobs) == len(reply.tokens)


# ------------------------------------------------------------------------------------- which log-probs


@pytest.mark.parametrize(
    ("mode", "how", "words"),
    [
        ("raw", Drawing(temperature=1.0), None),
        ("raw", Drawing(temperature=0.0), None),
        ("raw", Drawing(temperature=1.0, top_p=0.9, top_k=20), None),
        ("raw", Drawing(temperature=0.7), "--logprobs-mode processed_logprobs"),
        ("raw", Drawing(temperature=0.7, top_p=0.9), "without top_p"),
        ("raw", Drawing(temperature=0.001), "draws at temperature 0.01"),
        ("processed", Drawing(temperature=1.0), None),
        ("processed", Drawing(temperature=0.0, top_k=5), None),
        ("processed", Drawing(temperature=0.7, top_p=1.0), None),
        ("processed", Drawing(temperature=1.0, top_k=20), "--logprobs-mode raw_logprobs"),
        ("processed", Drawing(temperature=0.7, top_k=20), "without top_p"),
    ],
)
def test_log_probs_that_are_not_those_promised_are_refused(mode: Any, how: Drawing, words: str | None) -> None:
    why = unfit(how, mode)
    assert (why is None) if words is None else (why is not None and words in why)


@pytest.mark.parametrize("mode", ["raw", "processed"])
def test_the_probe_finds_out_which_log_probs_a_server_tells(serve: Fakes, base: Any, tmp_path: Path, mode: str) -> None:
    fakes, asked = serve(mode=mode), prompts(3)
    ours = sampler(fakes, tmp_path)
    ours.refresh(base, 0)
    assert ours.servers[0].mode == mode
    warm = Drawing(n=2, max_tokens=8, temperature=0.7)
    if mode == "processed":
        assert far(base, asked, ours.draw(asked, warm), 0.7) < 1e-5
        return
    with pytest.raises(MissingResource, match=f"{fakes[0].url}.*processed_logprobs"):
        ours.draw(asked, warm)


# ------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("fault", ["503", "429", "reset", "short", "torn", "text"])
def test_a_failed_try_is_made_again_and_changes_nothing(serve: Fakes, base: Any, tmp_path: Path, fault: str) -> None:
    [fake], asked = serve(), prompts(3)
    ours = sampler([fake], tmp_path)
    ours.refresh(base, 0)
    clean = ours.draw(asked, HOW)
    seen = fake.counts[DRAW]
    fake.plan = faults(draw={seen: fault, seen + 2: fault})
    assert ours.draw(asked, HOW) == clean
    assert ours.servers[0].retried == 2 and fake.counts[DRAW] == seen + 5


def test_a_server_that_dies_loses_nothing_and_is_reported(
    serve: Fakes, base: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fakes, asked = serve(2), prompts(6)
    ours = sampler(fakes, tmp_path)
    ours.refresh(base, 0)
    clean = ours.draw(asked, HOW)
    seen = fakes[0].counts[DRAW]
    fakes[0].plan = faults(draw={seen + 1: "die"})
    with caplog.at_level(logging.WARNING):
        assert ours.draw(asked, HOW) == clean
    assert fakes[0].url in caplog.text and "3 of 6 prompts are drawn again" in caplog.text
    assert ours.moved == 3 and ours.servers[0].down
    assert ours.draw(asked, HOW) == clean  # and it is not waited for again
    fakes[1].kill()
    with pytest.raises(MissingResource) as caught:
        ours.draw(asked, HOW)
    assert caught.value.exit_code == 4
    assert all(fake.url in str(caught.value) for fake in fakes)
    with pytest.raises(MissingResource, match="no server is left"):
        ours.refresh(base, 1)


def test_a_server_that_hangs_is_given_up_at_the_deadline(serve: Fakes, base: Any, tmp_path: Path) -> None:
    fakes, asked = serve(2), prompts(2)
    ours = sampler(fakes, tmp_path, limits=LIMITS.model_copy(update={"deadline": 20.0, "timeout": 20.0}))
    ours.refresh(base, 0)
    clean = ours.draw(asked, HOW)
    fakes[0].plan = lambda path, i: "hang" if path == DRAW else None
    for server in ours.servers:
        server.limits = LIMITS.model_copy(update={"attempts": 2, "timeout": 1.0 if server is ours.servers[0] else 30})
    assert ours.draw(asked, HOW) == clean
    assert "no answer within 1 s (after 2 tries)" in str(ours.servers[0].down)


def test_a_server_that_was_restarted_does_not_draw_with_its_old_weights(
    serve: Fakes, base: Any, tmp_path: Path
) -> None:
    fakes, asked, policy = serve(2), prompts(6), moved(base, 0.1)
    ours = sampler(fakes, tmp_path)
    ours.refresh(policy, 1)
    clean = ours.draw(asked, HOW)
    seen = fakes[1].counts[DRAW]
    fakes[1].plan = faults(draw={seen + 1: "restart"})  # in the middle: what it then draws is thrown away
    groups = ours.draw(asked, HOW)
    assert groups == clean and far(policy, asked, groups) < 1e-5
    assert ours.moved == 3 and "restarted" in str(ours.servers[1].down)
    fakes[0].restart()  # between two draws
    with pytest.raises(MissingResource, match="restarted"):
        ours.draw(asked, HOW)
    ours.refresh(policy, 2)  # both get another chance
    assert ours.draw(asked, HOW) == clean and len(ours._live()) == 2


def test_a_prompt_that_does_not_fit_is_named(serve: Fakes, base: Any, tmp_path: Path) -> None:
    ours = sampler(serve(), tmp_path)
    ours.refresh(base, 0)
    asked = [*prompts(2), Asked(tuple(range(50)) * 3, Exchange((user("long"),), ()), key=9)]
    with pytest.raises(InputError, match=r"prompt 2 \(150 tokens\).*--max-model-len"):
        ours.draw(asked, HOW)


def test_a_server_that_reads_other_tokens_is_refused(serve: Fakes, base: Any, tmp_path: Path) -> None:
    [fake] = serve()
    ours = sampler([fake], tmp_path)
    ours.refresh(base, 0)
    fake.plan = faults(draw={fake.counts[DRAW]: "other"})
    with pytest.raises(InputError, match="prompt 0: .*read other tokens"):
        ours.draw(prompts(1), HOW)


def test_what_is_no_whole_answer() -> None:
    row = {
        "index": 0, "finish_reason": "stop", "token_ids": [1, 2], "logprobs": {"token_logprobs": [-1.0, -2.0]},
        "prompt_token_ids": [5],
    }  # fmt: skip
    [choice] = wire.read_choices({"choices": [row]}, (5,), 1, "u")
    assert choice == wire.Choice((1, 2), (-1.0, -2.0), "stop")
    transient: list[dict[str, Any]] = [
        {},
        {"choices": [row, row]},
        {"choices": [{**row, "index": 1}]},
        {"choices": [{**row, "finish_reason": "abort"}]},
        {"choices": [{**row, "token_ids": []}]},
        {"choices": [{**row, "logprobs": {"token_logprobs": [-1.0, float("nan")]}}]},
        {"choices": [{**row, "logprobs": {"token_logprobs": [-1.0, None]}}]},
        {"choices": [7]},
    ]
    for data in transient:
        with pytest.raises(Transient):
            wire.read_choices(data, (5,), 1, "u")
    for missing in ("token_ids", "logprobs"):
        with pytest.raises(InputError, match="vLLM"):
            wire.read_choices({"choices": [{**row, missing: None}]}, (5,), 1, "u")


def test_nothing_is_drawn_before_weights_and_nothing_of_nothing(serve: Fakes, base: Any, tmp_path: Path) -> None:
    ours = sampler(serve(), tmp_path)
    with pytest.raises(ValueError, match="refresh"):
        ours.draw(prompts(1), HOW)
    ours.refresh(base, 0)
    assert ours.draw([], HOW) == []


# ------------------------------------------------------------------------------------------- weights


def test_refreshed_weights_are_in_use_on_every_server(serve: Fakes, base: Any, tmp_path: Path) -> None:
    fakes, asked = serve(2), prompts(4)
    ours = sampler(fakes, tmp_path)
    for version in range(3):
        policy = moved(base, 0.05 * version)
        ours.refresh(policy, version)
        groups = ours.draw(asked, HOW)  # the same prompts: what the prefix cache knew of them must be gone
        assert far(policy, asked, groups) < 1e-5
        assert version == 0 or far(base, asked, groups) > 0.01
        assert len(list(tmp_path.iterdir())) == 1  # the weights of one step lie there, no more
    assert all(f"step{2}" in fake.version for fake in fakes)


def test_a_prefix_cache_that_stays_is_refused(
    serve: Fakes, base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "CACHE_WAITS", (0.01, 0.01))
    [fake] = serve()
    ours = sampler([fake], tmp_path)
    ours.refresh(base, 0)
    fake.held = True
    with pytest.raises(MissingResource, match="prefix cache"):
        ours.refresh(moved(base, 0.1), 1)
    with pytest.raises(ValueError, match="refresh"):  # and nothing is drawn from a server in that state
        ours.draw(prompts(1), HOW)
    assert not list(tmp_path.glob("*step1"))


@pytest.mark.parametrize(("by", "words"), [(0.1, "does not compute what the trainer does"), (1e-6, "is as before")])
def test_weights_that_are_not_taken_up_are_noticed(
    serve: Fakes, base: Any, tmp_path: Path, by: float, words: str
) -> None:
    fakes = serve(2)
    ours = sampler(fakes, tmp_path)
    ours.refresh(base, 0)
    fakes[1].deaf = True
    with pytest.raises(MissingResource, match=words) as caught:
        ours.refresh(moved(base, by), 1)
    assert fakes[1].url in str(caught.value) and fakes[0].url not in str(caught.value)


def test_the_same_weights_again_are_no_error(serve: Fakes, base: Any, tmp_path: Path) -> None:
    ours = sampler(serve(), tmp_path)
    for version in range(2):
        ours.refresh(base, version)


def test_adapters_are_folded_in_and_tied_heads_go_along(serve: Fakes, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    tied = tiny.llama(len(WORDS), tie=True, seed=3)
    settings = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(tied), settings).eval()
    with FakeVllm(tied, WORDS) as fake:
        ours, asked = sampler([fake], tmp_path), prompts(3)
        ours.refresh(adapted, 1)
        groups = ours.draw(asked, HOW)
    assert far(adapted, asked, groups) < 1e-5 and far(tied, asked, groups) > 0.01
    assert hasattr(adapted, "get_base_model")  # the trainer's module is as it was


def test_a_tied_head_that_stays_behind_is_noticed_and_one_apart_is_sent(serve: Fakes, tmp_path: Path) -> None:
    tie = tiny.llama(len(WORDS), tie=True, seed=3)
    policy, asked = moved(tie, 1e-3), prompts(3)
    with FakeVllm(tie, WORDS) as fake:
        fake.stuck_head = True
        ours = sampler([fake], tmp_path)
        ours.refresh(tie, 0)
        with pytest.raises(MissingResource, match="trainer does after step 1: .*start_folder"):
            ours.refresh(policy, 1)
    folder = start_folder(tie, WORDS, tmp_path / "start")
    loaded = type(tie).from_pretrained(folder)
    assert loaded.lm_head.weight is not loaded.get_input_embeddings().weight
    with FakeVllm(loaded, WORDS) as fake:
        ours = sampler([fake], tmp_path)
        for version, module in enumerate((tie, moved(tie, 0.1))):
            ours.refresh(module, version)
            assert far(module, asked, ours.draw(asked, HOW)) < 1e-5
    assert tie.lm_head.weight is tie.get_input_embeddings().weight  # the trainer's own stays tied


def test_weights_that_are_stale_in_part_are_noticed_below_the_bound(serve: Fakes, base: Any, tmp_path: Path) -> None:
    [fake] = serve()
    ours = sampler([fake], tmp_path)
    ours.refresh(base, 0)
    fake.stuck_head = True
    with pytest.raises(MissingResource, match="does not compute what the trainer does") as caught:
        ours.refresh(moved(base, 3e-3), 1)
    off = float(re.search(r"differ by ([\d.e-]+) nats", str(caught.value))[1])  # type: ignore[index]
    assert 1e-4 < off < ours.bound


def test_a_server_without_its_own_paths_says_what_to_do(serve: Fakes, base: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match="VLLM_SERVER_DEV_MODE=1"):
        sampler(serve(dev=False), tmp_path).refresh(base, 0)


def test_a_server_that_does_not_see_the_folder_says_so(serve: Fakes, base: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match="/elsewhere/.*--weights DIR"):
        sampler(serve(), tmp_path, seen_as="/elsewhere/").refresh(base, 0)
    other = tmp_path / "there"
    other.symlink_to(tmp_path / "here")
    sampler(serve(), tmp_path / "here", seen_as=str(other)).refresh(base, 0)


def test_a_server_whose_load_failed_is_not_taken_for_what_it_was(serve: Fakes, base: Any, tmp_path: Path) -> None:
    fakes, asked = serve(), prompts(2)
    ours = sampler(fakes, tmp_path)
    ours.refresh(base, 0)
    with pytest.raises(MissingResource, match="holds no weights now"):
        sampler(fakes, tmp_path / "2", seen_as="/elsewhere").refresh(base, 0)
    with pytest.raises(MissingResource, match="being loaded"):
        ours.draw(asked, HOW)


def test_without_a_folder_the_weights_lie_in_one_that_goes_with_the_sampler(serve: Fakes, base: Any) -> None:
    ours = VllmSampler("tiny", [serve()[0].url], WORDS, limits=LIMITS)
    ours.refresh(base, 0)
    where = ours._weights
    assert where is not None and where.is_dir()
    del ours
    assert not where.exists()


def test_a_model_without_preferences_is_refused(serve: Fakes, base: Any, tmp_path: Path) -> None:
    flat = moved(base, 0.0)
    with torch.no_grad():
        for parameter in flat.parameters():
            parameter.zero_()
    with pytest.raises(MissingResource, match="uniform"):
        sampler(serve(), tmp_path).refresh(flat, 0)


def test_two_processes_refresh_once_and_both_draw(base: Any, serve: Fakes, tmp_path: Path) -> None:
    fakes = serve(2)
    found = ranks.run(refreshed, 2, tmp_path / "out", [fake.url for fake in fakes], str(tmp_path / "weights"))
    assert found[0] == found[1] and max(row["far"] for row in found) < 1e-5
    assert all(fake.counts["/collective_rpc"] == 1 for fake in fakes)  # process 0 alone
    assert [len(fake.asked()) for fake in fakes] == [3, 3]  # and they begin with different servers
    for fake in fakes:
        fake.kill()
    said = ranks.run(refused, 2, tmp_path / "dead", [fake.url for fake in fakes], str(tmp_path / "weights"))
    assert "no server is left" in said[0] and "process 0 could not refresh" in said[1]


def refreshed(urls: list[str], where: str) -> dict[str, Any]:
    module = moved(tiny.llama(len(WORDS)), 0.1)
    ours = VllmSampler("tiny", urls, WORDS, weights=where, limits=LIMITS)
    ours.refresh(module, 1)
    asked = prompts(3)
    groups = ours.draw(asked, HOW)
    return {"far": far(module, asked, groups), "tokens": [[list(d.tokens) for d in group] for group in groups]}


def refused(urls: list[str], where: str) -> str:
    try:
        VllmSampler("tiny", urls, WORDS, weights=where, limits=LIMITS).refresh(tiny.llama(len(WORDS)), 1)
    except MissingResource as error:
        return str(error)
    return ""


def test_nothing_is_drawn_while_weights_change(serve: Fakes, base: Any, tmp_path: Path) -> None:
    [fake], asked = serve(), prompts(4)
    ours = sampler([fake], tmp_path)
    ours.refresh(base, 0)
    policy = moved(base, 0.1)
    out: list[Any] = []
    drawing = threading.Thread(target=lambda: out.append(ours.draw(asked, HOW)))
    drawing.start()
    ours.refresh(policy, 1)
    drawing.join()
    assert min(far(base, asked, out[0]), far(policy, asked, out[0])) < 1e-5  # all of the old or all of the new


# --------------------------------------------------------------------------------------------- specs


def test_what_draws_is_named_as_models_are() -> None:
    assert isinstance(sampler_of("local", WORDS, rows=8), LocalSampler)
    one = sampler_of("vllm/owner/name@http://127.0.0.1:8000/v1", WORDS)
    assert isinstance(one, VllmSampler) and one.name == "vllm/owner/name"
    two = sampler_of("vllm/name@http://a:1/v1,https://b:2/v1/", WORDS)
    assert isinstance(two, VllmSampler)
    assert [server.url for server in two.servers] == ["http://a:1/v1", "https://b:2/v1"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("vllm/name", "where is the server"),
        ("vllm/@http://a:1/v1", "which model"),
        ("vllm", "rollouts come from here or from vLLM"),
        ("locl", "write local"),
        ("openai/gpt@http://a:1/v1", "only vLLM takes new weights"),
        ("vllm/name@http://a:1/v1,b:2/v1", "'b:2/v1' is no URL"),
        ("vllm/name@http://a:1/v1,", "'' is no URL"),
        ("vllm/name@http://a:1", "end with /v1"),
        ("vllm/name@http://me:secret@a:1/v1", "credentials"),
        ("vllm/name@http://a:1/v1,http://a:1/v1/", "twice"),
    ],
)
def test_a_spec_that_cannot_be_understood_says_why(spec: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        sampler_of(spec, WORDS)
    assert "secret" not in str(caught.value) or "me:" in spec


def test_a_key_stays_out_of_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sk-1")
    with pytest.raises(InputError, match="plain http"):
        sampler_of("vllm/name@http://far.example.org:1/v1", WORDS)
