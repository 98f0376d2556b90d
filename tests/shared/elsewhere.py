"""A device that there is none of: its tensors hold real numbers; what mixes it with the CPU raises, as with CUDA.

They say that they are on `meta`, which needs no hardware. So code for a GPU is seen to work, with its values, on a CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

ELSEWHERE = torch.device("meta")
INDEXING = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")


class There(Tensor):
    """A tensor of that device."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        made = Tensor._make_wrapper_subclass(cls, here.shape, device="meta", **layout)
        made.here = here
        return made

    def __init__(self, here: Tensor) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} outside of `elsewhere`")

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(
            torch.tensor(index) if isinstance(index, list) else index
        )  # of meta it has no values

    def tolist(self) -> Any:
        return self.here.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"There({tuple(self.shape)}, {self.dtype})"


class Elsewhere(TorchDispatchMode):
    """Runs operations of that device, and counts them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: dict[str, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        inside = [value for value in given if isinstance(value, There)]
        name = function._schema.name
        asked = kwargs.pop("device", None)
        if name in ("aten::_to_copy", "aten::copy_"):
            place = asked if asked is not None else (inside[0] if given[0] in inside else given[0]).device
            is_there = given[0].device == ELSEWHERE if name == "aten::copy_" else torch.device(place) == ELSEWHERE
        else:
            outside = [value for value in given if not isinstance(value, There) and value.dim()]
            if name in INDEXING and isinstance(given[0], There):  # indices may lie on the CPU, values may not
                outside = [value for value in outside if value.dtype not in (torch.bool, torch.int64)]
            if inside and outside:
                raise RuntimeError(f"{name}: tensors on the CPU and elsewhere: {[tuple(v.shape) for v in given]}")
            is_there = bool(inside) or (asked is not None and torch.device(asked) == ELSEWHERE)
        if asked is not None:
            kwargs["device"] = "cpu"
        if not is_there and not inside:
            return function(*args, **kwargs)
        self.ran[name] = self.ran.get(name, 0) + is_there
        back = {id(value.here): value for value in inside}
        plain_args, plain_kwargs = pytree.tree_map_only(There, lambda value: value.here, (args, kwargs))
        found = function(*plain_args, **plain_kwargs)

        def out(value: Tensor) -> Tensor:
            if not is_there:
                return value
            return back[id(value)] if id(value) in back else There(value)  # in place: the same tensor

        if name.endswith("_local_scalar_dense"):
            return found
        return pytree.tree_map_only(Tensor, out, found)


@contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    with Elsewhere() as mode:
        yield mode
