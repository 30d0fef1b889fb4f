"""What the processes of test_parallel.py do: importable, so that they can be started."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from engine.helpers import all_in_float64, forest, keep_float64, make
from fairlead.engine import parallel
from fairlead.engine.checkpoint import save_model, weights_hash
from fairlead.engine.forward import hidden_states
from fairlead.engine.layout import Tree
from fairlead.engine.logprobs import batch_of, reply_logprobs


def pair(prompt: int, chosen: int, rejected: int, start: int) -> Tree:
    ids = [(7 * i + start) % 61 for i in range(prompt + chosen + rejected)]
    return Tree(tuple(ids[:prompt]), (tuple(ids[prompt : prompt + chosen]), tuple(ids[prompt + chosen :])))


# 1, 2 and 4 processes with a budget of 24 tokens: 1x4, 2x2, 4x1 (processes x micro-batches)
EVEN = [pair(9, 8, 7, 1), pair(12, 4, 7, 20), pair(3, 11, 8, 33), pair(14, 2, 5, 50)]
# 2 processes with a budget of 24 tokens: one has one micro-batch to do, the other two
UNEVEN = [pair(9, 8, 7, 1), pair(6, 4, 4, 20), pair(5, 3, 4, 33)]
BUDGET = 24


class Headed(nn.Module):
    """A language model with a scalar head beside it, as reward models are; one parameter has no axes, one another type."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.model = model
        self.head = nn.Linear(32, 1, bias=False).double()
        self.bias = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.scale = nn.Parameter(torch.tensor([1.5], dtype=torch.float32))


def adapted(model: nn.Module) -> Any:
    """The model under low-rank adapters that do something, its own weights frozen."""
    from peft import LoraConfig, PeftModel

    torch.manual_seed(5)
    under = PeftModel(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    return under.double().eval()


def margins(module: Any, trees: list[Tree], kind: str) -> torch.Tensor:
    """What the loss sees of each pair, [pairs]."""
    if kind == "head":
        batch = batch_of(module.model, trees, keep_last=True)
        last = hidden_states(module.model, batch).index_select(0, batch.last_R)
        values = module.head(last)[:, 0].view(-1, 2)
        return values[:, 0] + module.bias**2 * module.scale.double() * values[:, 1]
    sums = reply_logprobs(module, trees).sum_R().view(-1, 2)
    return sums[:, 0] - 0.7 * sums[:, 1]


def one_step(kind: str, name: str, trees: list[Tree], budget: int, shard: bool) -> tuple[nn.Module, int, float]:
    """The gradient of one step, left in the module: (module, micro-batches, norm).

    The loss divides by the step's count, and compares each pair with the mean over the step, which no micro-batch
    and no process knows by itself.
    """
    with all_in_float64():
        return _one_step(kind, name, trees, budget, shard)


def _one_step(kind: str, name: str, trees: list[Tree], budget: int, shard: bool) -> tuple[nn.Module, int, float]:
    model = keep_float64(make(name))
    module = {"head": Headed, "lora": adapted, "pairs": lambda m: m}[kind](model)
    if shard:
        from fairlead.engine import sharded

        sharded.shard(module)
    dealt = parallel.deal(trees, budget)
    with torch.no_grad():
        found = [margins(module, [trees[i] for i in rows], kind).sum() * weight for rows, weight in dealt]
    mean = parallel.total(torch.stack(found).sum()) / len(trees)
    for rows, weight in dealt:
        margin = margins(module, [trees[i] for i in rows], kind)
        loss = nn.functional.softplus(-0.3 * (margin - mean)).sum() / len(trees)
        (loss * weight).backward()
    parameters = [p for p in module.parameters() if p.requires_grad]
    parallel.add_gradients([p for p in parameters if not parallel.is_split(p)])
    norm = parallel.clip_gradients(parameters, float("inf"))
    return module, len(dealt), norm


def full_gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    grads: dict[str, Any] = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in grads.items()}


CASES = {
    "even": ("pairs", "llama-untied", EVEN, BUDGET),
    "whole": ("pairs", "llama-untied", EVEN, 1000),
    "uneven": ("pairs", "llama-tied", UNEVEN, BUDGET),
    "one row": ("pairs", "gpt2-untied", EVEN[:1], BUDGET),
    "head": ("head", "llama-tied", UNEVEN, BUDGET),
    "lora": ("lora", "llama-untied", UNEVEN, BUDGET),
    "experts": ("pairs", "mixtral", UNEVEN, BUDGET),
}


def gradients(folder: str, names: list[str], shard: bool) -> dict[str, Any]:
    found = {}
    for name in names:
        module, count, norm = one_step(*CASES[name], shard=shard)
        grads = full_gradients(module)
        save_file({n: g.contiguous() for n, g in grads.items()}, Path(folder) / f"{name}-{parallel.world().rank}.st")
        found[name] = {"count": count, "norm": norm}
    return found


def conversation() -> dict[str, Any]:
    """What processes tell each other."""
    rank = parallel.world().rank
    values = [
        torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
        torch.tensor(3.25, dtype=torch.float64),
        torch.zeros(0, 4),
        torch.tensor([[True], [False]]),
        torch.arange(6).view(2, 3).t(),
        torch.tensor(float("nan")),
    ]
    told = [parallel.from_first(value if rank == 0 else None) for value in values]
    errors = []
    try:
        parallel.same("alike", "thing")
        parallel.same(f"data {rank}", "data")
    except ValueError as error:
        errors.append(str(error))
    module = nn.Linear(3, 2).to(torch.bfloat16)
    with torch.no_grad():
        module.weight.fill_(rank + 1.0)
    parallel.share_weights(module)
    return {
        "texts": parallel.texts("é" * rank),
        "told": [repr((t.dtype, t.tolist())) for t in told if t is not None],
        "expected": [repr((v.dtype, v.tolist())) for v in values],
        "nothing": parallel.from_first(None) is None,
        "total": parallel.total(torch.tensor([[rank + 1, 10]])).tolist(),
        "errors": errors,
        "weight": module.weight.flatten().tolist(),
    }


def sums(bucket: int) -> list[Any]:
    """Gradients that some processes lack, of several types, in buckets of a few bytes."""
    parallel.BUCKET = bucket
    rank = parallel.world().rank
    types = [torch.float64, torch.float64, torch.float32, torch.bfloat16, torch.float64]
    parameters = [nn.Parameter(torch.zeros(3, dtype=dtype)) for dtype in types]
    for number, parameter in enumerate(parameters[:4]):
        if number != 1 or rank == 0:  # the second has a gradient on process 0 alone, the last on none
            parameter.grad = torch.full_like(parameter, rank + 1.0 + number)
    parallel.add_gradients(parameters)
    return [None if p.grad is None else p.grad.tolist() for p in parameters]


def small_beside_large() -> list[float]:
    """bfloat16 keeps 8 bits: 256 + 1 + 1 + 1 is 256 where every sum is rounded, and 260 where the last one is."""
    parameter = nn.Parameter(torch.zeros(16, dtype=torch.bfloat16))
    parameter.grad = torch.ones_like(parameter)
    parameter.grad[parallel.world().rank :: 4] = 256.0  # whatever the order of the sum, somewhere it begins with this
    parallel.add_gradients([parameter])
    return parameter.grad.tolist()


def writes(folder: str) -> dict[str, Any]:
    rank = parallel.world().rank
    own, shared = Path(folder) / f"own-{rank}", Path(folder) / "shared"
    done = []
    for path in (own, shared):
        with parallel.writing(path) as mine:
            if mine:
                path.write_text(str(rank))
            done.append(mine)
    try:
        with parallel.writing(shared) as mine:
            if mine:
                raise OSError("full")
        failed = ""
    except OSError as error:
        failed = str(error)
    return {"done": done, "seen": shared.read_text(), "failed": failed}


def scores(folder: str, shard: bool) -> None:
    model = keep_float64(make("llama-untied"))
    if shard:
        from fairlead.engine import sharded

        sharded.shard(model)
    got = parallel.score(model, forest(3, 7), 30, temperature=0.7, entropy=True)
    assert got.entropy_N is not None
    kept = {"logp": got.logp_N, "entropy": got.entropy_N, "reply": got.reply_N, "count": got.count_R}
    save_file(kept, Path(folder) / f"{parallel.world().rank}.st")


def there_and_back(folder: str, name: str) -> dict[str, Any]:
    """Split, train one step, and put together again; process 0 saves."""
    from fairlead.engine import sharded

    model = make(name, torch.float32)
    cls, before = type(model), weights_hash(model)
    sharded.shard(model)
    parts = {n: tuple(parallel.local(p).shape) for n, p in model.named_parameters()}
    # A step of no length: whatever is lost or mixed up on the way shows in the hash.
    reply_logprobs(model, EVEN).logp_N.sum().backward()
    torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True).step()
    sharded.whole(model)
    if parallel.first():
        save_model(model, None, Path(folder) / "model")
    logp = reply_logprobs(model, EVEN).logp_N
    logp.sum().backward()
    return {
        "before": before,
        "after": weights_hash(model),
        "plain": type(model) is cls and not any(parallel.is_split(p) for p in model.parameters()),
        "parts": parts,
        "tied": model.get_output_embeddings().weight is model.get_input_embeddings().weight,  # type: ignore[operator]
        "logp": float(logp.detach().sum()),
    }


def under_adapters() -> dict[str, Any]:
    """Split what trains, step, and put together: the frozen weights stay the input model's own."""
    from fairlead.engine import sharded

    model = make("llama-untied")
    own = {p.data_ptr() for p in model.parameters()}
    module = adapted(model)
    sharded.shard(module)
    split = [n for n, p in module.named_parameters() if parallel.is_split(p)]
    reply_logprobs(module, EVEN).logp_N.sum().backward()
    torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-2).step()
    sharded.whole(module)
    logp = reply_logprobs(module, EVEN).logp_N
    return {
        "split": split,
        "own": all(p.data_ptr() in own for p in module.parameters() if not p.requires_grad),
        "trainable": [n for n, p in module.named_parameters() if p.requires_grad],
        "logp": float(logp.detach().sum()),
        "left": any(parallel.is_split(p) for p in module.parameters()),
    }


def refusals() -> list[str]:
    """Modules that cannot be split say why."""
    from fairlead.engine import sharded

    frozen, held, bare = make("llama-tied").requires_grad_(False), make("llama-tied"), nn.Linear(2, 2)
    held.__dict__["seen"] = held.get_parameter("model.norm.weight")
    said = []
    for module in (frozen, held, bare):
        try:
            sharded.shard(module)
        except ValueError as error:
            said.append(str(error))
    return said


def leaves(folder: str, shard: bool) -> tuple[list[str], list[str]]:
    """The group's threads before and after this process leaves it, at the end of a step and its writing."""
    gc.disable()  # what the step leaves in cycles is there to the end
    module, _, _ = one_step(*CASES["uneven"], shard=shard)
    if shard:
        from fairlead.engine import sharded

        sharded.whole(module)
    save_model(module, None, Path(folder) / f"model-{torch.distributed.get_rank()}")
    before = _group_threads()
    parallel._leave()
    return before, _group_threads()


def _group_threads() -> list[str]:
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]
