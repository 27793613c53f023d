"""`swap(vae)`: put the package's ops into a diffusers VAE, and take them out again.

Only instance attributes change: the `forward` of the modules that a family's rules name, with `frames="any"`
`encode`, `decode` and `forward` of the model, and `_encode` and `_decode` of one that keeps a state. Classes,
parameters, `state_dict` and library globals stay. A replacement is a `functools.partial` of `run`, so a
deep copy computes with its own weights and a pickle finds it by name.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..coder import record as recording
from ..coder.show import Shown
from ..core.checks import check_bytes, check_choice, check_count
from ..core.env import BACKEND
from ..core.errors import InvalidInput
from ..core.packed import release_packed_weights, use_packed_budget
from ..core.precision import TIERS, resolve_precision
from ..temporal import frame_rule
from . import whole
from .chunk_count import chunks_of
from .frames import FRAMES, METHODS, decoder_output, num_frames_of
from .hooks import has_foreign_method, is_plain, type_name, why_globally_hooked, why_hooked
from .pieces import vae_of
from .plan import STEPS, MemoryPlan
from .schedule_plan import schedule_of_clip
from .scheduled import Coders
from .session import ChunkCodec, DecodeSession, EncodeSession, decode_session, encode_session
from .stream import FrameStream, LatentStream, decode_stream, encode_stream
from .tiling import TILINGS, model_for


def nothing(module: nn.Module) -> None:
    """Say that there is nothing to say of a module."""


@dataclass(frozen=True)
class Rule:
    """How one class of modules is replaced.

    Attributes:
        forward: `forward(module, link, *args, **kwargs)`, importable, with the class's own signature.
        bypasses: Paths of the children and grandchildren whose `forward` it does not call, with the class
            expected there; a path that a module does not have is skipped.
        why_left: Returns a sentence if this module's configuration does not fit, else None; asked on every
            call, as configurations change too.
        exact: Whether the replacement returns the bits of the original; others rest in the exact tier.
        rests: Whether the class's own `forward` runs while the module is hooked and the like; not needed by a
            rule that calls it anyway.
        note: Returns what the report adds about a module that is replaced, or None.
        is_recorded: Whether it also runs where the code of a coder around it is recorded.
    """

    forward: Callable[..., Any]
    bypasses: tuple[tuple[str, str], ...] = ()
    why_left: Callable[[nn.Module], str | None] = nothing
    exact: bool = False
    rests: bool = True
    note: Callable[[nn.Module], str | None] = nothing
    is_recorded: bool = False


@dataclass(frozen=True)
class Family:
    """The rules of one VAE class.

    Attributes:
        model: Name of the diffusers class.
        rules: By name of the module's class.
        needs_no_rule: Classes of modules that are left on purpose, with the reason.
        adapted: Further rules, for a model that takes any number of frames.
        chunks: How an adapted model runs chunk by chunk.
        has_schedules: Whether its encoder and decoder run as schedules, whose memory is kept between chunks.
        merged: (model, link, "encode" or "decode", input) to what `_encode` returns, or the sample of
            `_decode`, several latents at a time; or to None where the model's own loop is due.
        unknown: What the report says of a module with parameters that neither a rule nor the list names.
        count_chunks: (model, "encode" or "decode", input) to the number of chunks in which the model's own
            `_encode` or `_decode` takes a sample; None: there are none, or a chunk is not told the last one.
        clip: (model) to a context that gives what `_encode` or `_decode` of one sample runs on, without a
            state from before; None: the model keeps none.
    """

    model: str
    rules: dict[str, Rule]
    needs_no_rule: dict[str, str]
    adapted: dict[str, Rule] = field(default_factory=dict)
    chunks: ChunkCodec | None = None
    count_chunks: Callable[[nn.Module, str, Tensor], int] | None = None
    clip: Callable[[nn.Module], AbstractContextManager[nn.Module]] | None = None
    has_schedules: bool = False
    merged: Callable[[nn.Module, Link, str, Tensor], Tensor | None] | None = None
    unknown: str = "no rule names this class; it runs as it is"

    def rule_of(self, module: nn.Module, link: Link) -> Rule | None:
        """Return the rule for a module, or None."""
        kind = type_name(module)
        return self.rules.get(kind) or (self.adapted.get(kind) if link.frames == "any" else None)

    def look_at(self, model: nn.Module) -> None:
        """Look at the modules of a model before they are replaced; rules that are written know them."""


@dataclass
class Link:
    """What all replacements of one swap share; `active` is cleared when it is taken out.

    `own` holds the rules of a model of no registered family; they travel with it.
    """

    family: str
    backend: str | None
    precision: str | None
    packed_budget: int | None = None
    frames: str = "as_is"
    memory: str = "normal"
    tiling: str = "as_is"
    memory_budget: int | None = None
    chunk: str | int = "auto"
    plans: dict[Any, MemoryPlan | None] = field(default_factory=dict)
    active: bool = True
    warned: bool = False
    own: Family | None = None
    coders: Coders = field(default_factory=Coders)

    @property
    def rules(self) -> Family:
        """The rules that hold."""
        return FAMILIES[self.family] if self.own is None else self.own


@dataclass(frozen=True)
class ReportEntry:
    """What happens to one module.

    Attributes:
        name: Its path in the model.
        type_name: Its class.
        replaced: Whether calls go through the package's ops now.
        reason: Why not, or what replaces it.
        needed: Whether there is something to replace: a replaced block runs its norms itself, and a pointwise
            convolution pads nothing.
    """

    name: str
    type_name: str
    replaced: bool
    reason: str
    needed: bool = True


FAMILIES: dict[str, Family] = {}
MEMORY = ("normal", "low")
CHUNKS = ("auto", "as_is")


def register_family(family: Family) -> None:
    """Make a family known to `swap`."""
    FAMILIES[family.model] = family


def register_recogniser(recognise: Callable[[nn.Module], Family]) -> None:
    """Set what makes rules for a model of no family; it raises `InvalidInput` where it finds nothing."""
    _RECOGNISERS[:] = [recognise]


_RECOGNISERS: list[Callable[[nn.Module], Family]] = []


def run(module: nn.Module, link: Link, *args: Any, **kwargs: Any) -> Any:
    """The `forward` of a replaced module: the rule's, or the class's own wherever that is due."""
    # Code that is being recorded is its own, but for what stands for an op.
    if link.active:
        rule = _rule_now(module, link)
        if rule is not None and recording.current() is not None and not rule.is_recorded:
            rule = None
        if rule is not None and not (rule.rests and _is_empty(_first(args, kwargs))):
            if link.packed_budget is None or torch.compiler.is_compiling():
                return rule.forward(module, link, *args, **kwargs)
            with use_packed_budget(link.packed_budget):
                return rule.forward(module, link, *args, **kwargs)
    return type(module).forward(module, *args, **kwargs)


def rule_at_work(module: nn.Module, link: Link) -> Rule | None:
    """Return the rule that a call of this module would follow now, for those who run it without that call."""
    forward = module.__dict__.get("forward")
    if not (_is_ours(forward) and forward.args[1] is link):
        return None
    return _rule_now(module, link)


def _rule_now(module: nn.Module, link: Link) -> Rule | None:
    """Return the rule unless the class's own `forward` is due."""
    rule = link.rules.rule_of(module, link)
    if rule is None or (rule.rests and _why_at_rest(module, link, rule)):
        return None
    return rule


def run_method(model: nn.Module, link: Link, name: str, *args: Any, **kwargs: Any) -> Any:
    """A method of the model: of `frames.METHODS`, or the class's own, tiled as the swap has it."""
    if not link.active:
        return getattr(type(model), name)(model, *args, **kwargs)
    if name in _LOOPS:
        return _run_loop(model, link, name, args, kwargs)
    if link.tiling == "auto":
        model = model_for(model, link, name, _first(args, kwargs))
    if link.frames == "any":
        return METHODS[name](model, link, *args, **kwargs)
    return getattr(type(model), name)(model, *args, **kwargs)


def _is_empty(x: object) -> bool:
    """Whether there is nothing to compute, as in a batch of no clips: the model knows whether it may be."""
    return isinstance(x, Tensor) and x.numel() == 0


def _run_loop(model: nn.Module, link: Link, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the class's own loop over the chunks of a sample: its state is new, and its chunks are counted."""
    own, rules = getattr(type(model), name), link.rules
    if torch.compiler.is_compiling():
        return own(model, *args, **kwargs)
    with ExitStack() as stack:
        if _counts_chunks(link):
            total = rules.count_chunks(model, name.removeprefix("_"), _first(args, kwargs))
            stack.enter_context(chunks_of(link, total))
        if rules.has_schedules:
            stack.enter_context(link.coders.clip())
        clip = model if rules.clip is None else stack.enter_context(rules.clip(model))
        # A loop that somebody else wrote may do more.
        if rules.merged is not None and own.__module__.startswith("diffusers.") and not _why_transformed():
            _, x, *others = inspect.signature(own).bind(model, *args, **kwargs).arguments.values()
            done = None if _is_empty(x) else rules.merged(clip, link, name.removeprefix("_"), x)
            if done is not None:
                if name == "_encode":
                    return done
                return (done,) if others == [False] else decoder_output(done)  # of return_dict
        return own(clip, *args, **kwargs)


def _counts_chunks(link: Link) -> bool:
    return link.rules.count_chunks is not None


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """Return the first argument, however it was passed."""
    return args[0] if args else next(iter(kwargs.values()), None)


def _replaced_methods(link: Link) -> tuple[str, ...]:
    """Return the methods of the model that this swap replaces."""
    names = tuple(METHODS) if link.frames == "any" else ()
    tiled = STEPS if link.tiling == "auto" else ()
    rules = link.rules
    loops = _LOOPS if _counts_chunks(link) or rules.clip is not None or rules.has_schedules else ()
    return tuple(dict.fromkeys((*names, *tiled, *loops)))


# Where a model's loops over chunks are.
_LOOPS = ("_encode", "_decode")


def _why_at_rest(module: nn.Module, link: Link, rule: Rule) -> str | None:
    """Return why the class's own `forward` runs at this moment, or None; looked at on every call."""
    if not rule.exact and resolve_precision(link.precision) == "exact":
        return "precision 'exact' keeps the original's arithmetic"
    reason = why_globally_hooked() or _why_transformed()
    if reason is None and not is_plain(module, run):
        reason = why_hooked(module)
    if reason is not None:
        return reason
    for path, expected in rule.bypasses:
        child = _child(module, path)
        if child is not None and not (type_name(child) == expected and is_plain(child, run)):
            reason = _why_foreign(child, path, expected) or _why_called(child, path)
            if reason is not None:
                return reason
    return rule.why_left(module)


def _why_transformed() -> str | None:
    """Return what records or transforms every call, and has no rules for the ops, or None."""
    if torch.compiler.is_compiling():
        return None
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace is on: it records what the original does"
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return "a torch.func transform or forward-mode AD is on"
    return None


def _why_foreign(child: nn.Module, path: str, expected: str) -> str | None:
    kind = type_name(child)
    return None if kind == expected else f"its {path} is a {kind}, expected {expected}"


def _why_called(child: nn.Module, path: str) -> str | None:
    reason = why_hooked(child)
    if reason is None and has_foreign_method(child, run):
        reason = "its forward was replaced by other code"
    return None if reason is None else f"its {path} must be called: {reason}"


def _why_unfit(module: nn.Module, rule: Rule) -> str | None:
    """Return why the rule is not for this module as it is built, or None."""
    for path, expected in rule.bypasses:
        child = _child(module, path)
        reason = None if child is None else _why_foreign(child, path, expected)
        if reason is not None:
            return reason
    return rule.why_left(module)


def _child(module: nn.Module, path: str) -> nn.Module | None:
    first, _, rest = path.partition(".")
    child = module._modules.get(first)
    return child._modules.get(rest) if rest and child is not None else child


class Swap:
    """What `swap` returns: report, refresh, restore; usable in `with`.

    Attributes:
        model: The model that was swapped.
    """

    def __init__(self, model: nn.Module, family: Family, link: Link) -> None:
        """Replace every module that the family's rules fit."""
        self.model, self._family, self._link = model, family, link
        self.refresh()

    @property
    def active(self) -> bool:
        """Whether the swap holds."""
        return self._link.active

    @property
    def report(self) -> list[ReportEntry]:
        """Every module that a rule names or that has parameters: replaced or not, and why."""
        return list(self._entries())

    def summary(self) -> str:
        """Return one line: how many modules are replaced, and how many are not that could be.

        For a swap that was restored: how many had been replaced.
        """
        model = self._family.model
        if not self.active:
            return f"{model}: the swap was restored; {_counted(self._replaced)} had been replaced"
        report = self.report
        replaced = sum(entry.replaced for entry in report)
        left = [entry.name for entry in report if entry.needed and not entry.replaced]
        names = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        return (
            f"{model}: {_counted(replaced)} replaced"
            + (f", {len(left)} left ({names})" if left else "")
            + ("; takes any number of frames" if self._link.frames == "any" else "")
        )

    def num_frames(self, num_frames: int) -> AbstractContextManager[None]:
        """Let `decode` return this many frames inside of `with`, in this thread.

        For code that calls `decode` by itself and does not know the count, such as a pipeline:
        `with handle.num_frames(48): pipeline(num_frames=49)`.

        Raises:
            InvalidInput: The swap was made without `frames="any"` or holds no more, or the count is not
                positive.
        """
        if self._link.frames != "any":
            raise InvalidInput('num_frames: this swap keeps diffusers\' counts; call swap(vae, frames="any")')
        if not self.active:
            raise InvalidInput(
                "num_frames: this swap was restored or replaced; use the handle that holds now"
            )
        return num_frames_of(self._link, check_count("num_frames", "the count", num_frames))

    def encode(
        self,
        frames: Tensor,
        *,
        sample_posterior: bool = False,
        generator: torch.Generator | None = None,
        out: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        on_chunk: whole.OnChunk | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Encode any number of frames (B, C, T, H, W) in one call; see `whole.encode`."""
        return whole.encode(
            *(self.model, self._link, self._family.chunks, frames),
            sample_posterior=sample_posterior,
            generator=generator,
            **{"out": out, "device": device, "dtype": dtype, "on_chunk": on_chunk, "progress": progress},
        )

    def decode(
        self,
        latents: Tensor,
        *,
        num_frames: int | None = None,
        out: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        on_chunk: whole.OnChunk | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Decode latents (B, C, l, h, w) into memory that is allocated once; see `whole.decode`."""
        return whole.decode(
            *(self.model, self._link, self._family.chunks, latents),
            num_frames=num_frames,
            **{"out": out, "device": device, "dtype": dtype, "on_chunk": on_chunk, "progress": progress},
        )

    def encode_session(
        self,
        num_frames: int | None = None,
        *,
        sample_posterior: bool = False,
        generator: torch.Generator | None = None,
    ) -> EncodeSession:
        """Begin to encode a video that comes in parts; see `session.encode_session`."""
        return encode_session(
            *(self.model, self._link, self._family.chunks),
            num_frames=num_frames,
            sample_posterior=sample_posterior,
            generator=generator,
        )

    def decode_session(self, num_frames: int | None = None) -> DecodeSession:
        """Begin to decode latents that come in parts; see `session.decode_session`."""
        return decode_session(self.model, self._link, self._family.chunks, num_frames=num_frames)

    def encode_stream(
        self,
        frames: Iterable[Tensor],
        *,
        num_frames: int | None = None,
        sample_posterior: bool = False,
        generator: torch.Generator | None = None,
    ) -> LatentStream:
        """Encode frames (B, C, t, H, W) as they come: an iterator of latents; see `stream.encode_stream`."""
        return encode_stream(
            *(self.model, self._link, self._family.chunks, frames),
            num_frames=num_frames,
            sample_posterior=sample_posterior,
            generator=generator,
        )

    def decode_stream(self, latents: Iterable[Tensor], *, num_frames: int | None = None) -> FrameStream:
        """Decode latents (B, C, l, h, w) as they come: an iterator of frames; see `stream.decode_stream`."""
        return decode_stream(self.model, self._link, self._family.chunks, latents, num_frames=num_frames)

    def __str__(self) -> str:
        """Return the summary and a line per module that was left, with the reason."""
        left = (f"  {e.name} ({e.type_name}): {e.reason}" for e in self.report if not e.replaced)
        return "\n".join([self.summary(), *left])

    def schedule(
        self, num_frames: int, height: int, width: int, *, step: str = "decode", batch: int = 1
    ) -> Shown:
        """Show how a clip is run: each step, its backend, the bytes it moves, and its place in memory.

        Nothing is computed. Printing it gives tables, `draw("memory.png")` a picture of the memory over the
        steps. For families whose encoders and decoders run as schedules: CogVideoX, Wan, Qwen-Image.

        Args:
            num_frames: Frames of the clip.
            height: Of a frame.
            width: Of a frame.
            step: "encode" or "decode".
            batch: Batch size.

        Raises:
            InvalidInput: A number or a word does not fit, the model refuses such a clip, or its modules run
                one by one.
        """
        if not (self.active and self._family.has_schedules):
            raise InvalidInput(
                f"schedule: a {type(self.model).__name__} runs its modules one by one"
                if self.active
                else "schedule: this swap was restored; call swap() again"
            )
        return schedule_of_clip(self.model, self._link, num_frames, height, width, step, batch)

    def release_memory(self) -> None:
        """Free the memory of activations that is kept between calls; the next call allocates it again.

        Packed weights stay (`release_packed_weights`).
        """
        self._link.coders.release()

    def refresh(self) -> None:
        """Inspect the model again, and replace what has become replaceable (modules added, hooks removed).

        Its packed weights are dropped; the next call packs them anew.
        """
        if not self._link.active:
            raise InvalidInput("refresh: this swap was restored; call swap() again")
        release_packed_weights(self.model.parameters())
        self._link.coders.forget()
        self._family.look_at(self.model)
        for module in self.model.modules():
            rule = self._family.rule_of(module, self._link)
            if rule is None or has_foreign_method(module, run):
                continue
            if _why_unfit(module, rule) is None:
                module.forward = functools.partial(run, module, self._link)
        for name in _replaced_methods(self._link):
            place = _place_of(self.model, name)
            if not has_foreign_method(self.model, run_method, name, place):
                setattr(self.model, place, functools.partial(run_method, self.model, self._link, name))
        self._replaced = sum(entry.replaced for entry in self._entries())

    def restore(self) -> None:
        """Undo the swap: every module runs the `forward` of its class again. Repeating it is harmless.

        Packed weights are freed.
        """
        if self.active:
            self._replaced = sum(entry.replaced for entry in self._entries())
        self._link.active = False
        self._link.coders.forget()
        release_packed_weights(self.model.parameters())
        for module in self.model.modules():
            _take_out(module, self._link)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle or a copy holds: the model and what its replacements share, not the rules."""
        return {"model": self.model, "_link": self._link}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take both over; the rules are found again by name, or travel with the link."""
        self.model, self._link = state["model"], state["_link"]
        self._family = self._link.rules

    def __enter__(self) -> Swap:
        """Return the handle."""
        return self

    def __exit__(self, *_: object) -> None:
        """Restore."""
        self.restore()

    def _entries(self) -> Iterator[ReportEntry]:
        covered: set[str] = set()
        for name, module in self.model.named_modules():
            if name in covered:
                continue
            kind, rule = type_name(module), self._family.rule_of(module, self._link)
            if rule is None:
                if module._parameters:
                    known = self._family.needs_no_rule.get(kind)
                    yield ReportEntry(name, kind, False, known or self._family.unknown, known is None)
                continue
            reason = self._why_left(module, rule)
            if reason is None:
                covered.update(
                    f"{name}.{path}" for path, expected in rule.bypasses if expected not in self._family.rules
                )
            yield ReportEntry(name, kind, reason is None, reason or _what_runs(rule, module))

    def _why_left(self, module: nn.Module, rule: Rule) -> str | None:
        if not self._link.active:
            return "the swap was restored"
        reason = _why_unfit(module, rule)
        if reason is not None:
            return reason
        if _link_of(module) is not self._link:
            return "its forward was replaced by other code"
        reason = _why_at_rest(module, self._link, rule) if rule.rests else None
        return reason or self._link.coders.why_unread(module)


def _counted(modules: int) -> str:
    return f"{modules} module{'' if modules == 1 else 's'}"


def _what_runs(rule: Rule, module: nn.Module) -> str:
    note = rule.note(module)
    return f"runs {rule.forward.__name__}" + (f"; {note}" if note else "")


def swap(
    vae: nn.Module,
    *,
    backend: str | None = None,
    precision: str | None = None,
    packed_budget: int | None = None,
    frames: str = "as_is",
    memory: str = "normal",
    tiling: str = "as_is",
    memory_budget: int | None = None,
    chunk: str | int = "auto",
) -> Swap:
    """Replace the slow parts of a video VAE by the ops of this package, in place.

    Parameters, `state_dict`, chunks, tiling and slicing stay those of the model, and so do frame counts
    unless `frames` is "any". Modules with hooks (offloading, layerwise casting, your own) run unmodified
    while they are hooked. Swapping a swapped model replaces the old swap, options included, and warns about
    options that are dropped. A shallow copy (`copy.copy`, `DataParallel`) shares the replacements and
    computes with the weights of the original: swap each copy, or copy deeply. With gradient checkpointing,
    give the precision here: a `use_precision` context that is closed before `backward` does not cover the
    recomputation. `torch.jit.trace` records the modules of diffusers.

    Args:
        vae: A VAE of a class in `FAMILIES`, a pipeline that has one, or the model of the authors' own code.
            In any other model, causal convolutions are detected by running modules on a few random pixels
            (`models.generic`).
        backend: Backend of the ops; default: `use_backend()`, then the environment, then the default order,
            on every call.
        precision: "exact" or "high"; default: `use_precision()`, the environment, "high".
        packed_budget: Limit in bytes for the packed weights of the process when this model adds its own;
            default: `use_packed_budget()`, the environment, a quarter of the machine's memory.
        frames: "any": as many frames come out as went in, whatever their number; the end of the clip is
            padded if the model needs it, and cropped again. `encode` and `decode` take `num_frames=`, and the
            output of `encode` carries it. Latents are plain tensors: without `num_frames=`, or
            `handle.num_frames(n)` around the call, they decode to all frames that they hold (CogVideoX:
            4L-3). "as_is": the frame counts of diffusers.
        tiling: "auto": a call is tiled only if its peak in one piece, planned once for each shape
            (`plan_memory`), exceeds the free memory; in one piece there are no overlapping temporal windows
            either. "as_is": the model's own setting.
        memory_budget: Limit in bytes for a call in one piece with tiling="auto"; default: the environment,
            then the free memory of the device.
        memory: "low": without gradients a residual block of CogVideoX holds one activation and its buffer,
            and caches are freed while they are read (docs/design/memory.md); Wan and Qwen-Image take one
            latent at a time; other families are unchanged. No memory of activations is kept between calls.
            "normal": a block holds an output beside them, and on a CPU the memory is kept for the next call,
            up to an eighth of the machine's (`handle.release_memory()`).
        chunk: How many latents Wan's and Qwen-Image's encoders and decoders take at a time, after the first
            one; diffusers gives them one. The numbers are equal up to rounding, convolutions are larger and
            more efficient, and activations take more memory. "auto": up to four, as long as they fit into an
            eighth of the machine's memory and `memory_budget`. "as_is": one. Tiled calls take one, and so do
            calls in the tier "exact" and calls with gradients.

    Returns:
        A handle: `report`, `refresh()`, `restore()`, `num_frames(n)`; `with swap(vae): ...` restores at its
        end.

    Raises:
        InvalidInput: The model has neither rules nor a causal convolution that is detected; an option is
            unknown; or frames="any" is requested for a model whose methods or blocks other code replaced, or
            whose frame rule is not known (`frame_rule`).
    """
    vae = vae_of(vae)
    family, own = _family_of(vae)
    if backend is not None:
        check_choice("swap", "backend", backend, BACKEND.choices)
    if precision is not None:
        check_choice("swap", "precision", precision, TIERS)
    if packed_budget is not None:
        check_bytes("swap", "packed_budget", packed_budget)
    check_choice("swap", "frames", frames, FRAMES)
    check_choice("swap", "memory", memory, MEMORY)
    check_choice("swap", "tiling", tiling, TILINGS)
    if memory_budget is not None:
        check_bytes("swap", "memory_budget", memory_budget)
        if tiling != "auto" and (family.merged is None or chunk != "auto"):
            raise InvalidInput(
                f"swap: memory_budget is {memory_budget} and tiling {tiling!r}, expected "
                'tiling="auto", which compares with it; without it leave memory_budget out'
            )
    _check_chunk(family, chunk)
    link = Link(family.model, backend, precision, packed_budget, frames, memory, tiling, memory_budget, chunk)
    link.own = own
    link.coders.keeps = memory != "low"
    _check_adaptable(vae, family, link)
    _warn_of_dropped_options(vae, link)
    restore(vae)
    return Swap(vae, family, link)


def _check_chunk(family: Family, chunk: object) -> None:
    """Require a word, or a number of latents where the family takes several at a time."""
    if isinstance(chunk, str):
        check_choice("swap", "chunk", chunk, CHUNKS)
        return
    check_count("swap", "chunk", chunk)
    if family.merged is None:
        raise InvalidInput(
            f"swap: chunk is {chunk}, and a {family.model} takes as many latents at a time as it was trained "
            "with; leave chunk out"
        )


def _warn_of_dropped_options(vae: nn.Module, link: Link) -> None:
    """Name what the swap that holds was asked for, where the new one, which replaces it, was not."""
    links = (_link_of(module, name) for module in vae.modules() for name in _REPLACED)
    old = next((found for found in links if found is not None and found.active), None)
    if old is None:
        return
    default = Link(link.family, None, None)
    dropped = [
        f"{name}={getattr(old, name)!r}"
        for name in _OPTIONS
        if getattr(link, name) == getattr(default, name) != getattr(old, name)
    ]
    if dropped:
        warnings.warn(
            f"swap: this model is swapped with {', '.join(dropped)}; the new swap replaces that one and was "
            "not given this, so it no longer holds. Give all options in one call, or call restore() first",
            UserWarning,
            stacklevel=3,
        )


_OPTIONS = ("backend", "precision", "packed_budget", "frames", "memory", "tiling", "memory_budget", "chunk")


def _check_adaptable(vae: nn.Module, family: Family, link: Link) -> None:
    """Refuse what would give a wrong number of frames, or leave the tiling as it is."""
    for name in _replaced_methods(link):
        if name not in _LOOPS and has_foreign_method(vae, run_method, name, _place_of(vae, name)):
            asked = 'frames="any"' if link.frames == "any" else 'tiling="auto"'
            raise InvalidInput(f"swap: {asked} replaces {name} of the model, which someone else replaced")
    if link.frames != "any":
        return
    try:
        rule = frame_rule(vae)
    except InvalidInput as error:
        raise InvalidInput(
            f'swap: frames="any" needs to know which frame counts a {family.model} takes: {error}'
        ) from error
    if rule.lead_frames:
        raise InvalidInput(
            f'swap: frames="any" is not for {family.model}: its forward puts frames in front by itself and '
            'takes any number; for encode and decode use plan_frames(num_frames, vae, "pad")'
        )
    for name, module in vae.named_modules():
        if type_name(module) in family.adapted and has_foreign_method(module, run):
            raise InvalidInput(
                f'swap: frames="any" needs the forward of {name}, which someone else replaced: remove the '
                "hooks of that module, or swap before they are attached"
            )


def restore(vae: nn.Module) -> None:
    """Undo every swap of a model, or of a pipeline's VAE, with or without its handle; also of a deep copy."""
    vae = vae_of(vae)
    release_packed_weights(vae.parameters())
    for module in vae.modules():
        for name in _REPLACED:
            link = _link_of(module, name)
            if link is not None:
                link.active = False
                link.coders.forget()
                _take_out(module, link)


def _place_of(model: nn.Module, name: str) -> str:
    """Return the attribute to replace: accelerate's hook keeps the `forward` that it wraps in another one."""
    return _WRAPPED if name == "forward" and _WRAPPED in model.__dict__ else name


_WRAPPED = "_old_forward"
_REPLACED = tuple(dict.fromkeys(("forward", *METHODS, *_LOOPS, _WRAPPED)))


def _take_out(module: nn.Module, link: Link) -> None:
    """Delete our replacements from the instance, unless a hook has wrapped them: then the flag must do."""
    for name in _REPLACED:
        if _is_ours(module.__dict__.get(name)) and module.__dict__[name].args[1] is link:
            if name == _WRAPPED:
                module.__dict__[name] = type(module).forward.__get__(module)
            else:
                delattr(module, name)


def _link_of(module: nn.Module, name: str = "forward") -> Link | None:
    """Find our replacement on the instance, under the wrappers that hooks put around it."""
    method = module.__dict__.get(name)
    while method is not None:
        if _is_ours(method):
            return method.args[1]
        method = getattr(method, "__wrapped__", None)
    return None


def _is_ours(method: object) -> bool:
    return isinstance(method, functools.partial) and method.func in (run, run_method)


def _family_of(vae: object) -> tuple[Family, Family | None]:
    """Return the family of a model, and the same again if it was made for this model alone."""
    if not isinstance(vae, nn.Module):
        raise InvalidInput(f"swap: got a {type(vae).__name__}, expected a VAE, or a pipeline that has one")
    inner = getattr(vae, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        raise InvalidInput("swap: got a compiled module; swap the model first, then compile it")
    for cls in type(vae).__mro__:
        family = FAMILIES.get(cls.__qualname__)
        if family is not None and cls.__module__.startswith("diffusers."):
            return family, None
    parameters = list(vae.parameters())
    if parameters and all(parameter.is_meta for parameter in parameters):
        raise InvalidInput(
            f"swap: got a {type(vae).__name__} whose parameters are on the meta device; it has no rules, and "
            "its convolutions are recognised once it has weights: load its weights first, then swap"
        )
    known = ", ".join(sorted(FAMILIES))
    try:
        (recognise,) = _RECOGNISERS
        own = recognise(vae)
    except InvalidInput as error:
        raise InvalidInput(
            f"swap: got a {type(vae).__name__}, expected one of: {known} (of diffusers), or a model with "
            f"causal convolutions: {error}"
        ) from None
    return own, own
