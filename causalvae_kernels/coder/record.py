"""What a module's own code does to its tensors, found out by running it on tensors without data.

Every function of torch that is called on the way is written down, with what it was given. The tensors have
sizes and no memory, so nothing is computed; code that looks at values, draws random numbers or changes what
it was given in place cannot be written down, and says so (`Unreadable`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map

from .steps import Unreadable, Weight

_current: ContextVar[Recorder | None] = ContextVar("causalvae_kernels_recorder", default=None)


def current() -> Recorder | None:
    """Return what writes down the calls of this code, or None."""
    return None if torch.compiler.is_compiling() else _current.get()


@dataclass(eq=False)
class Node:
    """A tensor, and the call that makes it.

    Attributes:
        number: In the order of the calls.
        func: What is called; a word for what is no function: "input", "item" of a call with several results,
            or the name of an op of this package.
        args: What it is given; nodes stand for tensors.
        kwargs: Keywords.
        shape: Of the tensor.
        dtype: Of its elements.
        users: The nodes that are given it.
        made: Whether its memory is nobody else's: it may be written in place.
    """

    number: int
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    users: list[Node] = field(default_factory=list)
    made: bool = False

    @property
    def reads(self) -> list[Node]:
        """The nodes among its arguments, each as often as it is there."""
        return [a for a in tree_iter((self.args, self.kwargs)) if isinstance(a, Node)]


class Recorder(TorchFunctionMode):
    """Writes down the calls of the code that runs inside of it.

    Args:
        parameters: The parameters and buffers that the code knows, with where they are looked up.
        device: Where its tensors would be.
    """

    def __init__(self, parameters: dict[int, Weight], device: torch.device) -> None:
        """Prepare an empty record."""
        super().__init__()
        self.nodes: list[Node] = []
        self.noise: list[Node] = []  # drawn whether it is used or not: whoever draws next gets other numbers
        self._parameters, self.device = parameters, device
        self._of: dict[int, Node] = {}
        self._keep: list[Any] = []
        self._stand_ins: dict[int, Tensor] = {}
        self._small: set[int] = set()

    def __enter__(self) -> Recorder:
        """Write down what follows."""
        self._token = _current.set(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Stop."""
        _current.reset(self._token)
        super().__exit__(*error)

    def take(self, like: Tensor) -> Tensor:
        """Return an input of the code, like a tensor that is there."""
        size, stride = like.shape, like.stride()
        node = self._new("input", (), {}, made=False)
        return self._bind(node, torch.empty_strided(size, stride, dtype=like.dtype, device="meta"))

    def node_of(self, x: object) -> Node | None:
        """Return what a tensor of the code stands for, or None."""
        return self._of.get(id(x)) if isinstance(x, Tensor) else None

    def op(self, name: str, like: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Write down a call of an op of this package whose result is like a tensor."""
        with torch._C.DisableTorchFunction():
            made = torch.empty_like(like, device="meta")
        return self._bind(self._new(name, args, kwargs), made)

    def call(self, func: Callable[..., Tensor], *args: Any) -> Tensor:
        """Write down a call of a function of this package."""
        with torch._C.DisableTorchFunction():
            return self._record(func, args, {})

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Write down a call, and return what it makes, without data."""
        kwargs = {k: v for k, v in (kwargs or {}).items() if k != "out" or v is not None}
        name = getattr(func, "__name__", str(func))
        tensors = [a for a in tree_iter((args, kwargs)) if isinstance(a, Tensor)]
        known = [t for t in tensors if id(t) in self._of or id(t) in self._parameters]
        if name == "__get__":
            return self._attribute(func, args[0])
        if not known:
            return self._outside(func, name, args, kwargs)
        if not any(id(t) in self._of for t in known) and name in _QUESTIONS:
            return func(*args, **kwargs)
        drops = name.startswith(_DROPOUTS) and kwargs.get("training", True) and kwargs.get("p", 0.5)
        if name in _RANDOM or drops:
            raise Unreadable(f"{name} draws random numbers")
        if name in _LAYOUT:
            raise Unreadable(f"{name} depends on where an activation lies")
        if name in _QUESTIONS:
            return self._evaluate(func, args, kwargs)
        if self._is_identity(name, args, kwargs):
            return args[0] if args else kwargs["input"]
        in_place = name in _IN_PLACE or (name.endswith("_") and not name.startswith("__"))
        if in_place or "out" in kwargs or kwargs.get("inplace"):
            return self._in_place(func, name, args, kwargs)
        return self._record(func, args, kwargs)

    def _record(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        made = self._evaluate(func, args, kwargs)
        if made is NotImplemented:  # a comparison with a word, say
            return made
        node = self._new(func, args, kwargs)
        if isinstance(made, Tensor):
            return self._bind(node, made)
        if not isinstance(made, (tuple, list)) or not all(isinstance(part, Tensor) for part in made):
            raise Unreadable(f"{node.func} returns a {type(made).__name__}")
        parts = [self._bind(self._new("item", (node, i), {}), part) for i, part in enumerate(made)]
        return parts if isinstance(made, list) else tuple(parts)

    def _attribute(self, func: Any, x: Tensor) -> Any:
        """Answer what is asked of a tensor without a call."""
        if id(x) not in self._of:
            return func(x)
        name = func.__self__.__name__
        if name == "device":
            return self.device
        if name in ("is_cuda", "is_cpu", "is_meta"):
            return name == f"is_{self.device.type}"
        if name in _KNOWN_ATTRIBUTES:
            return func(x)
        if name in ("grad", "grad_fn", "names"):
            return None
        if name == "data":
            return x
        if name in _VIEW_ATTRIBUTES:
            return self._record(func, (x,), {})
        raise Unreadable(f"the code asks for .{name} of an activation")

    def _outside(self, func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run a call that has nothing to do with activations; noise and what is large is made in each run."""
        if name in NOISE:
            node = self._new(func, args, kwargs)
            self.noise.append(node)
            return self._bind(node, self._evaluate(func, args, kwargs))
        if name in _RANDOM:
            raise Unreadable(f"{name} draws random numbers")
        if name in _FACTORIES:
            made = self._evaluate(func, args, kwargs)
            if made.dim() > 3:
                return self._bind(self._new(func, args, kwargs), made)
            if made.numel() > _SMALL:  # without data it would be poison to who keeps it for later
                raise Unreadable(f"{name} makes a constant of {made.numel()} elements")
        made = func(*args, **kwargs)
        for part in tree_iter(made):
            if isinstance(part, Tensor):
                self._keep.append(part)
                self._small.add(id(part))
        return made

    def _in_place(self, func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Write down a change in place as a call that makes the tensor anew."""
        target = args[0] if args else None
        node = self.node_of(target)
        if node is None or "out" in kwargs or not node.made or any(is_view(user) for user in node.users):
            raise Unreadable(f"{name} changes a tensor in place that others may see")
        functional = func if kwargs.pop("inplace", False) else _FUNCTIONAL.get(name)
        if functional is not None:
            made = self._evaluate(functional, args, kwargs)
            if (made.shape, made.dtype) != (target.shape, target.dtype):
                raise Unreadable(f"{name} changes shape or dtype")
        elif name in _WRITES:
            functional = changed(func)
        else:
            raise Unreadable(f"{name} changes a tensor in place")
        return self._bind(self._new(functional, args, kwargs), target)

    def _is_identity(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether a call returns what it is given, as far as numbers go."""
        x = args[0] if args else kwargs.get("input")
        if id(x) not in self._of:
            return False
        if name.startswith(_DROPOUTS) or name in ("detach", "requires_grad_"):
            return True
        if name == "contiguous":
            with torch._C.DisableTorchFunction():
                return x.is_contiguous(**kwargs)
        if name in ("float", "half", "bfloat16", "double"):
            return x.dtype == getattr(torch, name)
        if name == "type_as":
            return x.dtype == args[1].dtype
        if name in ("cpu", "cuda"):
            if name != self.device.type:
                raise Unreadable(f"{name}() moves an activation")
            return True
        if name == "to":
            for given in (*args[1:], *kwargs.values()):
                if isinstance(given, torch.dtype) and given != x.dtype:
                    return False
                if isinstance(given, Tensor):
                    if given.dtype != x.dtype:
                        return False
                elif isinstance(given, (str, torch.device)):
                    self._stays(torch.device(given))
            return not kwargs.get("copy", False)
        return False

    def _stays(self, device: torch.device) -> None:
        if device.type != self.device.type or device.index not in (None, self.device.index):
            raise Unreadable(f"an activation goes to {device}")

    def _evaluate(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Return what a call makes, without data."""
        try:
            args, kwargs = tree_map(self._stand_in, (tuple(args), kwargs))
            with torch.no_grad():
                return func(*args, **kwargs)
        except Unreadable:
            raise
        except Exception as error:
            raise Unreadable(f"{getattr(func, '__name__', func)}: {error}") from error

    def _stand_in(self, given: Any) -> Any:
        if isinstance(given, (torch.device, str)):
            return torch.device("meta") if str(given) == str(self.device) or given == self.device else given
        if not isinstance(given, Tensor) or given.is_meta:
            return given
        found = self._stand_ins.get(id(given))
        if found is None:
            found = torch.empty_strided(given.shape, given.stride(), dtype=given.dtype, device="meta")
            self._stand_ins[id(given)] = found
            self._keep.append(given)
        return found

    def _new(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], made: bool = True) -> Node:
        args, kwargs = tree_map(self._known, (tuple(args), kwargs))
        fresh = getattr(func, "__name__", func) in _FRESH or getattr(func, "in_place", False)
        node = Node(len(self.nodes), func, args, kwargs, made=made and fresh)
        for read in node.reads:
            read.users.append(node)
        self.nodes.append(node)
        return node

    def _bind(self, node: Node, made: Tensor) -> Tensor:
        if not made.is_meta:
            raise Unreadable(f"{node.func} makes a tensor on {made.device}")
        node.shape, node.dtype = tuple(made.shape), made.dtype
        if id(made) in self._of and node.func == "item":
            raise Unreadable("a call returns one tensor twice")
        self._keep.append(made)
        self._of[id(made)] = node
        return made

    def _known(self, given: Any) -> Any:
        """Return what stands for a tensor in the record."""
        if not isinstance(given, Tensor):
            return given
        node = self._of.get(id(given))
        if node is not None:
            return node
        weight = self._parameters.get(id(given))
        if weight is not None:
            return weight
        if id(given) in self._small and given.numel() <= _SMALL:
            return given.clone()  # it may be changed in place afterwards
        raise Unreadable("the code reads a tensor that is no parameter and no input")


def changed(func: Any) -> Callable[..., Tensor]:
    """Return a function that changes its first argument in place, and returns it."""

    def change(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        func(x, *args, **kwargs)
        return x

    change.in_place = True
    change.__name__ = change.__qualname__ = func.__name__
    return change


def is_view_function(func: Any) -> bool:
    """Whether what a function makes may share memory with what it is given."""
    return func == "item" or getattr(func, "__name__", func) in (*_VIEWS, "__get__")


def is_view(node: Node) -> bool:
    """Whether a node may share memory with what it is given."""
    return is_view_function(node.func)


def live(nodes: Sequence[Node], ends: Iterator[Node]) -> list[Node]:
    """Return the nodes that something at the end is made of, in order; users are those among them."""
    needed: set[int] = set()
    waiting = list(ends)
    while waiting:
        node = waiting.pop()
        if node.number not in needed:
            needed.add(node.number)
            waiting += node.reads
    kept = [node for node in nodes if node.number in needed]
    for node in kept:
        node.users = [user for user in node.users if user.number in needed]
    return kept


def differ(one: Sequence[Node], other: Sequence[Node]) -> bool:
    """Whether two records of the same code are not the same: it does something else from call to call."""
    if len(one) != len(other):
        return True
    return any(_unlike(_words(a), _words(b)) for a, b in zip(one, other, strict=True))


def _unlike(one: Sequence[Any], other: Sequence[Any]) -> bool:
    if len(one) != len(other):
        return True
    for a, b in zip(one, other, strict=True):
        if isinstance(a, tuple) and isinstance(b, tuple) and a[:1] == b[:1] == ("constant",):
            x, y = a[1], b[1]
            if (x.shape, x.dtype) != (y.shape, y.dtype) or not torch.equal(x, y):
                return True
        elif isinstance(a, Tensor) or isinstance(b, Tensor) or a != b:
            return True
    return False


def _words(node: Node) -> list[Any]:
    name = getattr(node.func, "__qualname__", node.func)
    words: list[Any] = [name, node.shape, node.dtype]
    for given in tree_iter((node.args, node.kwargs), is_leaf=lambda a: isinstance(a, Weight)):
        if isinstance(given, Node):
            given = ("node", given.number)
        elif isinstance(given, Weight):
            given = (id(given.parameters), given.name)
        elif isinstance(given, Tensor):
            given = ("constant", given)
        words.append(given if isinstance(given, tuple) else (type(given).__name__, repr(given)))
    return words


_SMALL = 2**26
"""Elements of a constant that is kept with a coder."""
_DROPOUTS = ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")
_RANDOM = frozenset(
    "rand_like randn_like randint randint_like randperm normal normal_ bernoulli bernoulli_ "
    "multinomial poisson rrelu uniform_ random_ exponential_ cauchy_ geometric_ log_normal_".split()
)
NOISE = frozenset(("rand", "randn"))
"""Calls that draw numbers in the order of their elements, whatever the layout of others."""
_FACTORIES = frozenset("zeros ones full empty eye new_zeros new_ones new_full new_empty".split())
_QUESTIONS = frozenset(
    "size dim numel nelement stride is_floating_point is_complex is_contiguous __len__ element_size".split()
)
_KNOWN_ATTRIBUTES = frozenset(
    "shape dtype ndim layout itemsize requires_grad is_leaf is_quantized is_sparse is_nested".split()
)
_WRITES = frozenset("__setitem__ copy_ zero_ fill_ masked_fill_ index_fill_ index_copy_".split())
# What makes memory of its own, which may be changed in place: nobody else can see it.
_FRESH = frozenset(
    "zeros ones full empty zeros_like ones_like full_like new_zeros new_ones new_full clone cat concat stack "
    "add sub mul div __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ neg pow "
    "conv1d conv2d conv3d linear matmul bmm silu relu gelu sigmoid tanh softmax exp sqrt rsqrt group_norm "
    "layer_norm change rms_norm interpolate normalize scaled_dot_product_attention mean sum var std sin cos "
    "addmm baddbmm conv_transpose1d conv_transpose2d conv_transpose3d".split()
)
_LAYOUT = frozenset(
    "as_strided view_as_complex view_as_real untyped_storage storage data_ptr set_ resize_".split()
)
_IN_PLACE = frozenset("__setitem__ __iadd__ __isub__ __imul__ __itruediv__ copy_".split())
_VIEW_ATTRIBUTES = ("T", "mT", "H", "mH")
_VIEWS = frozenset(
    "view reshape permute transpose swapaxes swapdims movedim moveaxis squeeze unsqueeze flatten unflatten "
    "expand expand_as view_as reshape_as narrow select chunk split unbind tensor_split __getitem__ diagonal "
    "unfold t detach as_strided split_with_sizes real imag contiguous to".split()
)
_FUNCTIONAL = {
    "__iadd__": torch.add,
    "add_": torch.add,
    "__imul__": torch.mul,
    "mul_": torch.mul,
    "__isub__": torch.sub,
    "sub_": torch.sub,
    "silu_": F.silu,
    "relu_": F.relu,
    "clamp_": torch.clamp,
    "div_": torch.div,
    "__itruediv__": torch.div,
}
