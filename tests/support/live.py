"""How many bytes of tensors are alive at once."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """`most` is the largest sum of the bytes of all tensors made inside that were alive together, views counted once.

    Backward passes count too; what a kernel takes and gives back by itself does not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {
            StorageWeakRef(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)
        }
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                storage = leaf.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference in self._alive or reference not in given:
                    self._alive[reference] = storage.nbytes()
        self._alive = {reference: size for reference, size in self._alive.items() if not reference.expired()}
        self.most = max(self.most, sum(self._alive.values()))
        return out
