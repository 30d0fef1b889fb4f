"""The apprentice without torch: the tokenizer and the forward pass against the packages they do without."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from fairlead import apprentice
from fairlead.apprentice import bpe, corpus, forward

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FREE = [
    "héllo wörld", "日本語 😀🎉", "a\n\nb\t c  d", "", "  ", "YW1iZXI=", "x" * 40, "<|end|> not a token", "what's 1234567 ?",
    "r\x00b", "it’s ok — fine…",
]  # fmt: skip


def test_the_pure_python_tokenizer_equals_the_package_on_world_text_and_on_free_text() -> None:
    raw = transformers.AutoTokenizer.from_pretrained(apprentice.path().absolute()).backend_tokenizer
    raw.encode_special_tokens = True  # what a user typed is text, also where it spells a control token
    mine = bpe.load(apprentice.path())
    texts = FREE + [m.text for row in islice(corpus.rows(9), 400) for m in row.messages]
    for text in texts:
        assert mine.encode(text) == raw.encode(text, add_special_tokens=False).ids, text
        assert mine.decode(mine.encode(text)) == text


def tiny(folder: Path, *, tied: bool, groups: int) -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=groups, tie_word_embeddings=tied, max_position_embeddings=64, dtype="float32",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


class ExactRotary(torch.nn.Module):
    """transformers computes rotary angles (and norms) in float32 whatever the weights are; this one keeps float64."""

    def __init__(self, theta: float, width: int) -> None:
        super().__init__()
        self.rate = theta ** (-torch.arange(width // 2, dtype=torch.float64) * 2 / width)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angle = position_ids[..., None].double() * self.rate
        both = torch.cat([angle, angle], dim=-1)
        return both.cos(), both.sin()


def exact_norm(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


@pytest.mark.parametrize(("tied", "groups"), [(True, 4), (False, 2)])
def test_the_forward_pass_equals_transformers_in_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool, groups: int
) -> None:
    model = tiny(tmp_path, tied=tied, groups=groups).double()
    model.model.rotary_emb = ExactRotary(10_000.0, 8)
    monkeypatch.setattr(type(model.model.norm), "forward", exact_norm)
    ids = np.random.default_rng(0).integers(0, 97, size=(3, 17))
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids)).logits.numpy()
    weights = forward.load(tmp_path, np.float64)
    got = forward.logits(weights, forward.hidden(weights, ids)[0])
    assert np.abs(got - wanted).max() < 1e-9


def test_the_cache_continues_where_the_prompt_ended_and_fans_out(tmp_path: Path) -> None:
    tiny(tmp_path, tied=True, groups=2)
    weights = forward.load(tmp_path, np.float64)
    ids = np.random.default_rng(1).integers(0, 97, size=(2, 12))
    whole, _ = forward.hidden(weights, ids)
    first, cache = forward.hidden(weights, ids[:, :7])
    rest, after = forward.hidden(weights, ids[[0, 1, 1], 7:], cache.take(np.array([0, 1, 1])))
    assert after.length == 12
    assert np.abs(np.concatenate([first, rest[:2]], axis=1) - whole).max() < 1e-9
    assert np.abs(rest[2] - rest[1]).max() == 0


def test_an_unknown_dtype_is_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"w is BF16"):
        forward.read_safetensors(tmp_path / "model.safetensors")
