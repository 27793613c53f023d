"""Runs a model without computing: every tensor is there, nothing is written into it.

Fake tensors are of another type and on other storage, so that code that asks for either takes another way.
Here tensors are real and on the CPU, but their memory is only reserved: what nobody writes takes no place.
Views, addresses and storage sizes are those of a real run, and so are the branches that a model takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ..core.backend import Backend, can_always
from ..core.layout import memory_format_of
from ..core.op import NAMESPACE, Call, all_ops, call_of

Operator = torch._ops.OpOverload

COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
# They return what they were given, in another shape, and their schema does not say so.
_HIDDEN_VIEWS = ("aten::_unsafe_view", "aten::_reshape_alias")


class HollowRun(TorchDispatchMode):
    """Inside, operators return tensors of the right shape, strides and dtype that hold nothing.

    An operator of this package is not run, unless the backend that it takes is made of framework operators:
    then these are dispatched one by one. Code that asks for a number in a tensor raises.

    Args:
        see: Called for each operator of the framework that is not a view: with the operator, its positional
            and its keyword arguments, and what it returned.
        see_kernel: Called for each kernel of ours: with its backend, and the call.
    """

    def __init__(
        self,
        see: Callable[[Operator, tuple[Any, ...], dict[str, Any], Any], None] = lambda *_: None,
        see_kernel: Callable[[Backend, Call], None] = lambda *_: None,
    ) -> None:
        super().__init__()
        self._see, self._see_kernel = see, see_kernel
        self._fakes = FakeTensorMode()
        self._known: dict[Any, Any] = {}

    def __torch_dispatch__(
        self, func: Operator, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer for an operator."""
        kwargs = kwargs or {}
        if func.namespace == NAMESPACE:
            return self._ours(func, args)
        if is_composite(func):
            with self:
                return func._op_dk(COMPOSITE, *args, **kwargs)
        if is_view(func):
            return func(*args, **kwargs)
        result = self._results(func, args, kwargs)
        self._see(func, args, kwargs, result)
        return result

    def _ours(self, func: Operator, args: tuple[Any, ...]) -> Any:
        call = call_of(func, args)
        chosen = call.choose()
        if chosen.moves is None:
            with self:
                return call.run()
        self._see_kernel(chosen, call)
        return self._results(func, args, {})

    def _results(self, func: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        returns = func._schema.returns
        if not returns:
            return None
        if all(r.alias_info is not None and r.alias_info.is_write for r in returns):
            written = [a for _, a, w in arguments_of(func, args, kwargs) if w]
            return written[0] if len(returns) == 1 else tuple(written)
        # A chunk asks what the chunk before it asked, and fake tensors take their time.
        key = (func, _described(args), _described(kwargs))
        if key not in self._known:
            with self._fakes:
                given, named = tree_map(_like, (args, kwargs))
                self._known[key] = _FAKES.get(func, func)(*given, **named)
        return tree_map(_like, self._known[key])


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    y = torch.ops.aten.convolution(
        x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups
    )
    # Of small frames the framework's own would be contiguous; oneDNN's never is, where the frames are not.
    return y.contiguous(memory_format=memory_format_of(x, weight)) if y.dim() == 5 else y


# Operators that know no fake tensors, and what returns the like of theirs.
_FAKES = {torch.ops.aten.mkldnn_convolution.default: _convolution}


def is_composite(func: Operator) -> bool:
    """Tell whether an operator is a name for others, into which it was not taken apart yet."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE)


def is_view(func: Operator) -> bool:
    """Tell whether an operator returns memory that it was given and reads none of it."""
    if func._schema.name in _HIDDEN_VIEWS:
        return True
    returned = [r.alias_info for r in func._schema.returns]
    return bool(returned) and all(a is not None and not a.is_write for a in returned)


def arguments_of(
    func: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[tuple[Any, Any, bool]]:
    """Return (schema, value, whether it is written) of every argument that is given."""
    schema = func._schema.arguments
    given = {**{a.name: v for a, v in zip(schema, args, strict=False)}, **kwargs}
    return [
        (a, given[a.name], a.alias_info is not None and a.alias_info.is_write)
        for a in schema
        if a.name in given
    ]


def _like(value: Any) -> Any:
    """Return a tensor like this one, fake where fakes are on; what is no tensor as it is."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _described(value: Any) -> Any:
    """Return something to look arguments up by."""
    if isinstance(value, Tensor):
        return Tensor, value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (list, tuple)):
        return tuple(map(_described, value))
    if isinstance(value, dict):
        return tuple((name, _described(v)) for name, v in value.items())
    return type(value), value


@contextmanager
def assumed(backend: str) -> Iterator[None]:
    """Let a backend of a GPU that is not here be asked for; only a hollow run may run it.

    An op that has no such backend takes `aten`, as it would by default there. Weights must be channels last,
    as activations are on a GPU.

    Args:
        backend: Its name.
    """
    before = {op: op.backends for op in all_ops()}
    try:
        for op, backends in before.items():
            found = backends.get(backend, backends["aten"])
            op.backends = {**backends, backend: replace(found, why_not=can_always)}
        yield
    finally:
        for op, backends in before.items():
            op.backends = backends
