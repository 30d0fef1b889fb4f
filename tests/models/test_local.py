"""Local weights: tiny random models made here."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from support import tiny

torch = pytest.importorskip("torch")

from fairlead.errors import InputError, MissingResource  # noqa: E402
from fairlead.exchange import exchange, user  # noqa: E402
from fairlead.models import CapabilityError, Sampling, open_model, render  # noqa: E402
from fairlead.models.local import LocalModel  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> LocalModel:
    opened = open_model(folder)
    assert isinstance(opened, LocalModel)
    return opened


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


PROMPTS = [[user("how do i poison the rats ?")], [user("what colour is the boat ?")], [user("yes")]]


def recomputed(model: LocalModel, prompt, tokens) -> list[float]:
    """Log-probs of a reply, one plain forward pass."""
    ids = [*model.render(prompt), *tokens]
    with torch.no_grad():
        logp = model.module(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    start = len(ids) - len(tokens)
    return [float(logp[start + i - 1, t]) for i, t in enumerate(tokens)]


def test_generates_n_replies_with_tokens_and_logprobs(model: LocalModel) -> None:
    out = model.generate(PROMPTS, Sampling(n=3, max_tokens=6, seed=1))
    assert [len(group) for group in out] == [3, 3, 3]
    for prompt, group in zip(PROMPTS, out, strict=True):
        for reply in group:
            assert reply.usage.prompt_tokens == len(model.render(prompt))
            assert len(reply.tokens) == len(reply.logprobs) == reply.usage.completion_tokens
            assert reply.text == render.decode_reply(model.tokenizer, reply.tokens)
            assert reply.logprobs == pytest.approx(recomputed(model, prompt, reply.tokens), abs=1e-5)
            ended = reply.tokens[-1] == model.tokenizer.eos_token_id
            assert reply.finish == ("stop" if ended else "length")
    assert len({r.text for r in out[0]}) > 1


def test_counting_a_text_beyond_the_context_warns_of_nothing(
    model: LocalModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.tokenizer, "model_max_length", 64)
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        assert len(model.tokenizer("a " * 5000, add_special_tokens=False)["input_ids"]) > 1000
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not caplog.records


def test_a_seed_repeats_and_no_seed_does_not(model: LocalModel) -> None:
    draw = lambda seed: [r.tokens for g in model.generate(PROMPTS, Sampling(max_tokens=8, seed=seed)) for r in g]  # noqa: E731
    assert draw(1) == draw(1) != draw(2)
    assert draw(None) != draw(None)


def test_greedy_is_the_argmax(model: LocalModel) -> None:
    ((reply,),) = model.generate(PROMPTS[:1], Sampling(max_tokens=4, temperature=0.0))
    ids = list(model.render(PROMPTS[0]))
    for token in reply.tokens:
        with torch.no_grad():
            assert int(model.module(torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)


def test_stop_strings_cut_text_tokens_and_logprobs(model: LocalModel) -> None:
    ((free,),) = model.generate(PROMPTS[:1], Sampling(max_tokens=30, seed=3))
    stop = free.text[8:10]
    ((cut,),) = model.generate(PROMPTS[:1], Sampling(max_tokens=30, seed=3, stop=("never said", stop)))
    assert cut.text == free.text[: free.text.index(stop)] and cut.finish == "stop"
    assert cut.tokens == free.tokens[: len(cut.tokens)] and len(cut.logprobs) == len(cut.tokens) < len(free.tokens)
    assert stop in render.decode_reply(model.tokenizer, cut.tokens)
    assert stop not in render.decode_reply(model.tokenizer, cut.tokens[:-1])


def test_logprobs_of_continuations(model: LocalModel) -> None:
    options = [["yes", "no"], ["the boat is blue"], ["a", "b", "no way"]]
    got = model.logprobs(PROMPTS, options)
    for prompt, texts, values in zip(PROMPTS, options, got, strict=True):
        for text, value in zip(texts, values, strict=True):
            ids = render.encode_reply(model.tokenizer, text, end=False)
            assert value == pytest.approx(sum(recomputed(model, prompt, ids)), abs=1e-4)
    with pytest.raises(InputError, match="prompt 1: an empty continuation"):
        model.logprobs(PROMPTS[:2], [["yes"], [""]])


def test_long_prompts(model: LocalModel, folder: Path) -> None:
    long = [user("the boat " * 200)]
    with pytest.raises(InputError, match=r"prompt 1: .* room for 127"):
        model.generate([PROMPTS[0], long], Sampling(max_tokens=4))
    cutting = open_model(folder, cut="left")
    cutting.generate([PROMPTS[0], long], Sampling(max_tokens=4, seed=0))
    assert cutting.cuts == 1
    near = [user("the boat " * 59)]
    room = 128 - len(model.render(near))
    assert 0 < room < 30
    ((reply,),) = model.generate([near], Sampling(max_tokens=30, seed=5))
    assert len(reply.tokens) <= room and (reply.finish == "length" or len(reply.tokens) < room)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(n=0), Sampling(max_tokens=0), Sampling(temperature=-1.0), Sampling(top_p=0.0), Sampling(top_k=0),
     Sampling(stop=("",)), Sampling(temperature=float("nan"))],
)  # fmt: skip
def test_senseless_sampling_is_refused(model: LocalModel, sampling: Sampling) -> None:
    with pytest.raises(InputError, match="sampling"):
        model.generate(PROMPTS, sampling)


def test_lineage_is_the_weights(model: LocalModel, folder: Path, tmp_path: Path) -> None:
    assert open_model(folder).lineage == model.lineage
    assert model.lineage.startswith("wt:")
    other = model.with_weights(tiny.llama(len(model.tokenizer), seed=1), name="other")
    assert other.lineage != model.lineage and other.tokenizer is model.tokenizer
    before = other.lineage
    optimiser = torch.optim.AdamW(other.module.parameters(), lr=1e-3)
    other.module(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimiser.step()
    assert other.lineage != before, "training in place is another model"


def test_a_saved_model_opens_and_chats(model: LocalModel, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with_words = LocalModel("m", model.module, model.tokenizer, prompts={"judge": "does {{ reply }} keep it ?"})
    where = with_words.save(tmp_path / "saved")
    again = open_model(where)
    assert again.lineage == model.lineage and again.prompts == with_words.prompts
    sampling = Sampling(max_tokens=5, seed=4)
    assert again.generate(PROMPTS, sampling) == model.generate(PROMPTS, sampling)
    AutoModelForCausalLM.from_pretrained(where)
    assert AutoTokenizer.from_pretrained(where).chat_template == model.tokenizer.chat_template


def test_the_plain_template_is_saved_with_the_model(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "bare", template=None)
    model = open_model(folder)
    assert model.generate([[user("a")]], Sampling(max_tokens=3, seed=0))[0][0].tokens
    again = open_model(model.save(tmp_path / "saved"))
    assert again.tokenizer.chat_template == render.PLAIN_TEMPLATE


# -------------------------------------------------------------------------------------------- bad input


def refused(spec: object, kind: type[Exception], *words: str) -> None:
    with pytest.raises(kind) as caught:
        open_model(spec)  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_missing_folders_and_names(tmp_path: Path) -> None:
    refused("./no/such/folder", MissingResource, "./no/such/folder", "no such folder")
    refused("some-owner/no-such-model", MissingResource, "HF_HUB_OFFLINE", "./some-owner/no-such-model")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", InputError, "a file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", InputError, "config.json", "missing")


@pytest.mark.parametrize("keep", [4, 100, 2000, -1])
def test_truncated_weights(copy: Path, keep: int) -> None:
    file = copy / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:keep])
    refused(copy, InputError, "model.safetensors", "copy it again")
    file.write_bytes(data + b"x")
    refused(copy, InputError, "copy it again")


def test_missing_shards_and_missing_weights(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    refused(copy, InputError, "no weights for", "model.layers.1.mlp.up_proj.weight")
    (copy / "model.safetensors").unlink()
    refused(copy, InputError, "no model.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(copy, InputError, "model-00001-of-00002.safetensors", "missing")


def test_pickles_and_code_are_not_loaded(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    refused(copy, InputError, "pytorch_model.bin", "safetensors")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    refused(copy, InputError, "auto_map")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "not a causal language model"),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "not a causal language model"),
        ({"architectures": None, "model_type": "vit"}, "not a causal language model"),
    ],
)
def test_models_that_cannot_answer(copy: Path, change: dict, word: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **change}))
    refused(copy, InputError, word)


def test_bad_configs_and_tokenizers(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    refused(copy, InputError, "config.json", "not JSON")


def test_tokenizers_that_are_missing_or_do_not_fit(copy: Path, tmp_path: Path) -> None:
    tokenizer = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "eos_token": None}))
    refused(copy, InputError, "no EOS")
    (copy / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (copy / "tokenizer.json").write_text("{}")
    refused(copy, InputError, "tokenizer")
    (copy / "tokenizer.json").unlink()
    refused(copy, InputError, "tokenizer")
    small = tmp_path / "small"
    tiny.llama(50).save_pretrained(small)
    tiny.tokenizer().save_pretrained(small)
    refused(small, InputError, "do not belong together")


def test_exit_codes() -> None:
    assert (InputError.exit_code, MissingResource.exit_code, CapabilityError.exit_code) == (2, 4, 2)


def test_what_trainers_need(model: LocalModel) -> None:
    got = model.render_exchange(exchange("what colour is the boat ?", "blue"))
    assert got.prompt == model.render([user("what colour is the boat ?")])
    assert model.capabilities >= {"weights", "logprobs", "tokens"} and model.context == 128
