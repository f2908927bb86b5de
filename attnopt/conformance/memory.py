"""Peak memory as the exact sum of the tensors alive, the same on every run: no allocator, no resident set size."""

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Tally(TorchDispatchMode):
    """Counts the bytes of every storage that an operation creates, from its creation to its release."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in self.known | given:
                self._created(t)
        return out

    def _created(self, t: Tensor) -> None:
        storage = t.untyped_storage()
        self.known.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._released, storage._cdata, storage.nbytes())

    def _released(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def peak_bytes(run: Callable[[], object]) -> int:
    """Bytes of the tensors that `run` creates, at the moment when most of them are alive.

    Tensors that exist before do not count, nor does scratch memory inside one operation's kernel.
    """
    with _Tally() as tally:
        run()
    return tally.peak
