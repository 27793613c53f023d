"""`Bound`: a call that was checked and has its backend, kept for calls like it.

Checking a call, choosing its backend and describing its tensors to a kernel takes longer than a small
kernel does. All of it depends on shapes, strides, dtypes, the device, words, and on what was asked for: these
are the key of a `Bound`. What may change between two such calls stays outside of it: addresses, whether
packed weights are fresh and have room, how many threads there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import env
from .backend import Backend, Write
from .dry_run import PLAIN
from .overlap import check_destination
from .precision import SETTING as PRECISION
from .selection import SETTING as BACKEND
from .traffic import Work

if TYPE_CHECKING:
    from .op import Op

Key = tuple[Any, ...]
# A model calls with few different shapes; who calls with ever new ones begins again.
_MOST = 4096


def is_watched() -> bool:
    """Tell whether a compiler, a tracer, a dispatch mode or a transform has to see operators."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    )


@dataclass
class Bound:
    """A call that was checked, but for its addresses.

    Attributes:
        op: The op.
        backend: What runs it.
        precision: The tier.
        options: The arguments that are no tensors, as the backend takes them.
        reads_state_in_place: Whether it reads the state and the frames where they lie.
        residual_may_be_out: Whether the residual may be the destination.
        work: The operations and bytes that it needs.
        shape: Of the result.
        dtype: Of the result.
        memory_format: Of a fresh result.
        empty: Allocates it.
        write: What runs the backend, given addresses alone; None: it is given the record.
        otherwise: The backend in its place where `write` cannot.
    """

    op: Op
    backend: Backend
    precision: str
    options: tuple[Any, ...]
    reads_state_in_place: bool
    residual_may_be_out: bool
    work: Work
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    empty: Callable[..., Tensor] = torch.empty
    write: Write | None = None
    otherwise: Backend | None = None

    def run(self, tensors: tuple[Any, ...], out: Tensor | None) -> Tensor | None:
        """Run the call on tensors like those that it was bound for; return a fresh result, or None."""
        if self.write is None:
            return self._run_on(self.backend, tensors, out)
        if out is None:
            result = self.empty(self.shape, dtype=self.dtype, device="cpu", memory_format=self.memory_format)
            return result if self.write(result, tensors) else self._run_on(self.otherwise, tensors, None)
        if not self.write(out, tensors):
            return self._run_on(self.otherwise, tensors, out)
        if not out.is_inference():  # a native kernel writes behind autograd's back
            torch.autograd.graph.increment_version(out)
        return None

    def _run_on(self, backend: Backend, tensors: tuple[Any, ...], out: Tensor | None) -> Tensor | None:
        return self.op.run_on(backend, self.op.args(*tensors, *self.options), out, self.precision)


class Bindings:
    """The calls of an op that were bound."""

    def __init__(self, op: Op) -> None:
        self._op = op
        self._known: dict[Key, Bound] = {}

    def __len__(self) -> int:
        """Return how many are known."""
        return len(self._known)

    def find(
        self,
        tensors: tuple[Any, ...],
        options: tuple[Any, ...],
        out: Tensor | None,
        backend: str | None,
        precision: str | None,
    ) -> Bound | None:
        """Return the call with these arguments, bound; None if something observes the call, or off the CPU.

        Args:
            tensors: The fields of the op's record that are tensors or None, as the public function was given
                them.
            options: The other fields, as given.
            out: As given, but for a `FrameBuffer` its body.
            backend: As given.
            precision: As given.

        Raises:
            InvalidInput: The op's check refuses it.
            BackendUnavailable: No backend runs it.
        """
        if is_watched() or torch._C._is_any_autocast_enabled():
            return None
        grad = torch.is_grad_enabled()
        kinds = (*map(type, options),)  # 1, 1.0 and True are equal, and one of them is right
        asked = (backend, precision, BACKEND.current(), PRECISION.current(), env.state())
        key = (options, kinds, asked, out is None)
        try:
            for tensor in tensors if out is None else (out, *tensors):
                if tensor is None:
                    key += (None,)
                elif (
                    tensor.__class__ not in PLAIN
                    or tensor.device.type != "cpu"
                    or (grad and tensor.requires_grad)
                    or tensor.is_neg()
                    or (tensor.dtype.is_complex and tensor.is_conj())
                ):
                    return None
                else:
                    key += (tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.layout)
            bound = self._known[key]
        except KeyError:
            return self._bind(key, tensors, options, out, backend, precision)
        except (RuntimeError, TypeError):
            # A tensor without strides, a word that cannot be looked up: the checks say what it is.
            return None
        if out is not None:
            reads = dict(zip(self._op.names, tensors, strict=False))
            check_destination(self._op.name, "out", out, reads, may_be_out=self._op.may_be_out)
        return bound

    def forget(self) -> None:
        """Bind every call anew: what was measured has changed."""
        self._known.clear()

    def _bind(
        self,
        key: Key,
        tensors: tuple[Any, ...],
        options: tuple[Any, ...],
        out: Tensor | None,
        backend: str | None,
        precision: str | None,
    ) -> Bound:
        op = self._op
        args = op.check(op.args(*tensors, *options))
        bound, lasts = op.bind(args, op.check_out(out, args), backend, precision)
        if lasts:
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[key] = bound
        return bound
