"""A dry run: a model's own code on tensors that have sizes and no data, and what memory it would take.

The tensors are torch's fake ones. Operators of the framework are passed on to their fake kernels; ops of this
package run the backend that a real call would take, whose native kernels are left out (`core.native`), so
that what a backend allocates is counted where it allocates it. What the framework allocates inside an
operator is added by `core.framework_scratch`.

Such tensors also stand for real ones where a call is only asked about (`explaining`).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from . import framework_scratch
from .errors import InvalidInput

_current: ContextVar[DryRun | None] = ContextVar("causalvae_kernels_dry_run", default=None)
_explaining: ContextVar[bool] = ContextVar("causalvae_kernels_explaining", default=False)
PLAIN = (Tensor, nn.Parameter)
# A storage of a dry run has an address as far from the next one as no tensor is long.
_APART = 2**44


def current() -> DryRun | None:
    """Return the dry run that this code belongs to, or None; a compiler's tracing belongs to none."""
    return None if torch.compiler.is_compiling() else _current.get()


@contextmanager
def explaining() -> Iterator[None]:
    """Answer questions about a call, within this context, of tensors without data as of real ones."""
    token = _explaining.set(True)
    try:
        yield
    finally:
        _explaining.reset(token)


@contextmanager
def aside() -> Iterator[None]:
    """Count nothing that is allocated within this context and gone at its end, if this is a dry run."""
    run = current()
    peak = 0 if run is None else run.peak
    try:
        yield
    finally:
        if run is not None:
            run.peak = peak


def without_data() -> Any:
    """Return a context in which tensors that are made have sizes, strides, dtype, device and no memory."""
    return _fake_mode()


def is_plain_tensor(x: object) -> bool:
    """Tell whether `x` is a tensor of torch's own class, or stands for one."""
    if type(x) in PLAIN:
        return True
    return (current() is not None or _explaining.get()) and type(x) is _fake_class()


def why_not_on_gpu() -> str | None:
    """Return why no kernel of ours is launched on a GPU at this moment, or None."""
    return None if current() is None else "a dry run has no data, and counts what the framework would do"


def address(x: Tensor) -> int:
    """Return where a tensor lies; one without data as if its storage began at an aligned address."""
    run = current()
    if run is not None:
        return run.address(x)
    if _explaining.get() and type(x) is _fake_class():
        return x.storage_offset() * x.element_size()
    return x.data_ptr()


class DryRun(TorchDispatchMode):
    """Counts the bytes of storages that live at the same time, for code that runs inside of it.

    Attributes:
        device: Where the tensors would be.
        packs: What `core.packed` keeps in this run, and nowhere else.
        waits: What waits for room there.
        live: The bytes that live now.
        peak: The most bytes that lived at a time since it was last set.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """Prepare a run for tensors on `device`, which need not be there."""
        super().__init__()
        self.device = torch.device(device)
        self.packs: dict[Any, Any] = {}
        self.waits: dict[Any, Any] = {}
        self.live = self.peak = 0
        self._numbers: dict[int, int] = {}
        self._excluded: set[int] = set()
        self._count = 0
        self._fake_mode = _fake_mode()

    def __enter__(self) -> DryRun:
        """Begin: every tensor that is made from now on has no data."""
        self._open = ExitStack()
        token = _current.set(self)
        self._open.callback(_current.reset, token)
        if torch.get_default_device().type == "meta":  # on which a model with weights elsewhere does not run
            self._open.enter_context(torch.device("cpu"))
        self._open.enter_context(torch.no_grad())
        self._open.enter_context(self._fake_mode)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """End."""
        super().__exit__(*error)
        self._open.close()

    def copy_of(self, model: nn.Module) -> nn.Module:
        """Return a copy whose tensors have no data; those of `model` may be on `meta`.

        Raises:
            InvalidInput: A tensor is of a subclass, such as a quantised or sharded one, whose data are unlike
                what its shape and dtype say.
        """
        memo: dict[int, Any] = {}
        for name, module in model.named_modules():
            for tensor in _tensors([*module._parameters.values(), *_plain_state(module)]):
                if type(tensor) not in PLAIN:
                    raise InvalidInput(
                        f"plan: {name or 'the model'} ({type(module).__name__}) holds a "
                        f"{type(tensor).__name__}, expected plain tensors; plan the model before it is "
                        "quantised or sharded"
                    )
                memo.setdefault(id(tensor), self._without_data(tensor))
        return copy.deepcopy(model, memo)

    def _without_data(self, tensor: Tensor) -> Tensor:
        from torch._subclasses.fake_tensor import FakeTensor

        with torch.utils._python_dispatch._disable_current_modes():
            meta = torch.empty_like(tensor, device="meta", requires_grad=False)
        fake = FakeTensor(self._fake_mode, meta, self.device)
        self._note(fake)
        return nn.Parameter(fake, requires_grad=False) if isinstance(tensor, nn.Parameter) else fake

    def peak_of(self, work: Callable[[], object]) -> int:
        """Return the most bytes that live at a time while `work` runs, over those that live when it begins.

        Its result is dropped at the end. Packed weights that are kept (`packed_size`) are not in it.
        """
        before = self.peak = self.live
        work()
        return self.peak - before

    def uncounted(self, make: Callable[[], Tensor]) -> Tensor:
        """Return what `make` makes, in this run; neither it nor what it takes to make it is counted."""
        peak = self.peak
        tensor = make()
        storage = tensor.untyped_storage()
        if storage._cdata not in self._excluded:
            self._excluded.add(storage._cdata)
            self.live -= storage.nbytes()
        self.peak = peak
        return tensor

    def address(self, x: Tensor) -> int:
        """Return a number that differs between storages, and within one as the elements do."""
        number = self._note(x)
        return number * _APART + x.storage_offset() * x.element_size()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and count what it allocates."""
        kwargs = kwargs or {}
        inside = framework_scratch.find(func)
        if inside is None:
            result = func(*args, **kwargs)
            self._note_all(result)
            return result
        result, extra = inside(func, args, kwargs)
        self._note_all(result)
        self.peak = max(self.peak, self.live + extra)
        return result

    def _note_all(self, result: Any) -> None:
        if isinstance(result, Tensor):
            self._note(result)
        elif result is not None:
            for tensor in _tensors(result):
                self._note(tensor)

    def _note(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = storage._cdata
        number = self._numbers.get(key)
        if number is None:
            size = storage.nbytes()
            self._count += 1
            number = self._numbers[key] = self._count
            weakref.finalize(storage, self._drop, key, size).atexit = False
            self._add(size)
        return number

    def _add(self, size: int) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)

    def _drop(self, key: int, size: int) -> None:
        self._numbers.pop(key, None)
        if key in self._excluded:
            self._excluded.discard(key)
        else:
            self.live -= size


def _plain_state(module: nn.Module) -> Iterator[Any]:
    """Give the buffers and what else a module keeps, hooks and children left out."""
    yield from module._buffers.values()
    yield from (value for name, value in module.__dict__.items() if name not in _INTERNAL)


_INTERNAL = frozenset(nn.Module().__dict__)


def _tensors(result: Any) -> Iterator[Tensor]:
    return (item for item in tree_iter(result) if isinstance(item, Tensor))


def _fake_mode() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def _fake_class() -> type:
    from torch._subclasses.fake_tensor import FakeTensor

    return FakeTensor
