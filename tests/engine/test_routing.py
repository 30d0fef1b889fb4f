"""What the routers of a mixture of experts say: transformers' own load-balancing loss from either path."""

from __future__ import annotations

import gc
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from engine.helpers import forest, make  # noqa: E402
from fairlead.engine import routing  # noqa: E402
from fairlead.engine.forward import hidden_states, path_of  # noqa: E402
from fairlead.engine.layout import Tree, lay_out  # noqa: E402
from fairlead.engine.logprobs import reply_logprobs  # noqa: E402

NAMES = ["mixtral", "qwen3 moe"]


def theirs(model: Any, trees: list[Tree], drop: int) -> Any:
    """transformers' loss of all rows, padded on the right."""
    rows = [torch.tensor([*t.prompt, *reply[: len(reply) - drop]]) for t in trees for reply in t.replies]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
    return model(input_ids=ids, attention_mask=mask.long(), output_router_logits=True).aux_loss


def ours(heard: routing.Heard) -> Any:
    return len(heard.count_E) * (heard.count_E @ heard.probability_E) / heard.tokens**2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("keep_last", [True, False])
def test_it_is_transformers_own_loss_and_gradient(name: str, packed: bool, keep_last: bool) -> None:
    model: Any = make(name)
    # of replies of one token nothing is fed where the last is not: their rows are left out
    trees = [Tree(t.prompt, tuple((*reply, 5) for reply in t.replies)) for t in forest(3)]
    routers = routing.listen(model)
    hidden_states(model, lay_out(trees, keep_last=keep_last), packed=packed)
    heard = routers.take()
    assert heard is not None and heard.fed == sum(t.tokens - (0 if keep_last else len(t.replies)) for t in trees)
    loss, right = ours(heard), theirs(model, trees, 0 if keep_last else 1)
    assert loss.item() == pytest.approx(right.item(), rel=1e-6) and right.item() > 2.0
    gates = [p for n, p in model.named_parameters() if n.endswith("gate.weight")]
    for a, b in zip(torch.autograd.grad(loss, gates), torch.autograd.grad(right, gates), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_it_hears_the_first_pass_with_gradients_and_nothing_else() -> None:
    model, trees = make("mixtral"), forest(0)
    routers = routing.listen(model)
    with torch.no_grad():
        reply_logprobs(model, trees)
    assert routers.take() is None
    reply_logprobs(model, trees[:2])
    reply_logprobs(model, trees)
    first = routers.take()
    assert first is not None and first.fed == sum(t.tokens - len(t.replies) for t in trees[:2])
    assert routers.take() is None
    model(input_ids=torch.tensor([[1, 2, 3]]))  # not by way of the engine
    assert routers.take() is None


def test_who_no_longer_listens_leaves_no_hook() -> None:
    model: Any = make("mixtral")
    before = sum(len(m._forward_hooks) for m in model.modules())
    routers = routing.listen(model)
    assert sum(len(m._forward_hooks) for m in model.modules()) == before + 2
    del routers
    gc.collect()
    assert sum(len(m._forward_hooks) for m in model.modules()) == before
    reply_logprobs(model, forest(0))


def test_which_models_have_such_a_loss() -> None:
    assert routing.weight_of(make("mixtral")) == routing.weight_of(make("qwen3 moe")) == 0.001
    assert routing.weight_of(make("llama-tied")) is routing.weight_of(make("gpt2-tied")) is None


def test_a_model_that_is_listened_to_keeps_its_path() -> None:
    model = make("mixtral")
    routers = routing.listen(model)
    assert path_of(model).packed and routers.take() is None  # the trial's tokens are not training
