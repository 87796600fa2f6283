"""Counts the operators of a step: each is at least one kernel on a GPU, and some make the host wait for the device."""

from __future__ import annotations

import traceback
from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


# Operators whose result has a size, or is a number, that the host has to know.
WAITING = {
    *("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::bincount"),
    *("aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::unique_dim_consecutive"),
    "aten::is_nonzero",
}
# Methods that read a tensor; on a CPU not all of them call an operator.
READING = {
    getattr(torch.Tensor, name)
    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")
}
# Operators that launch nothing, beside those that return views.
_FREE = ("aten::_unsafe_view", "aten::detach", "aten::lift_fresh", "aten::_to_cpu")


def launches(operator: Any) -> bool:
    """Whether an operator computes something, rather than return a view or record a profile."""
    schema = operator._schema
    is_view = any(one.alias_info is not None and not one.alias_info.is_write for one in schema.arguments)
    return schema.name.startswith(("aten::", "torchvision::")) and not is_view and schema.name not in _FREE


def waits(operator: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether the host has to wait for the device, if the arguments are there."""
    name = operator._schema.name
    if name in ("aten::index", "aten::index_put", "aten::index_put_"):  # by a mask, which has to be counted
        return any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
    if name == "aten::repeat_interleave":
        return kwargs.get("output_size") is None
    return name in WAITING


class CountOperators(TorchDispatchMode):
    """
    Counts what runs inside `with CountOperators() as counter`.

    Attributes:
        launched (`Counter`): Operators that compute, by name.
        waiting (`list[str]`): Each operator or method that makes the host wait, and the lines of this repository that
            led to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()
        self.waiting: list[str] = []
        self._reading = _CountReadings(self)

    def __enter__(self) -> CountOperators:
        self._reading.__enter__()
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        self._reading.__exit__(*args)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if launches(func):
            self.launched[func._schema.name] += 1
        if waits(func, args, kwargs) and not self._reading.is_inside:
            self.note(func._schema.name)
        return func(*args, **kwargs)

    def note(self, name: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if "c2fmae_hf" in frame.filename]
        self.waiting.append(f"{name} in " + " < ".join(frame.name for frame in reversed(frames[-3:])))


class _CountReadings(TorchFunctionMode):
    def __init__(self, counter: CountOperators) -> None:
        super().__init__()
        self.counter = counter
        self.is_inside = False

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func not in READING or self.is_inside:
            return func(*args, **(kwargs or {}))
        self.counter.note(func.__name__)
        self.is_inside = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.is_inside = False
