"""Schedules of real coders: each step against its modules, memory that nobody needs, errors, threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from causalvae_kernels import swap
from causalvae_kernels.coder import Arena, KeepStep, OpStep, Schedule
from causalvae_kernels.core import machine_memory, native
from causalvae_kernels.parity import compare
from tests.models.conftest import build, cogvideox  # noqa: F401  (a fixture)
from tests.support import wan_models
from tests.support.copies import CountedElements
from tests.support.cover import quick

BACKENDS = ["aten"] + (["cpu"] if native.why_no_cpu() is None else [])
CPU = torch.device("cpu")


CASES = [(name, coder) for name in ("cogvideox", "2.1", "2.2", "qwen") for coder in ("encoder", "decoder")]


# The framework's backend takes other ways (no plan, room in front of frames, its own results): quickly with
# two of them, at length with all.
BOTH = [
    pytest.param(*case, b, marks=() if b != "aten" or case in CASES[1:4:2] else pytest.mark.exhaustive)
    for case in CASES
    for b in BACKENDS
]


def model_of(name, dtype=torch.float32):
    return cogvideox(dtype=dtype) if name == "cogvideox" else wan_models.build(name, dtype)


def run_chunks(vae, name, coder, chunks):
    """Return what a coder makes of chunks, each with what the one before has left."""
    made, cache, root = [], None, getattr(vae, coder)
    if name != "cogvideox":
        cache = wan_models.places(root)
        return [wan_models.run(root, chunk, cache, not i) for i, chunk in enumerate(chunks)]
    for chunk in chunks:
        y, cache = root(chunk, conv_cache=cache)
        made.append(y)
    return made


def chunks_of(name, coder, dtype=torch.float32):
    if name != "cogvideox":
        return wan_models.chunks_of(name, coder, dtype)
    sizes = [(3, 9, 16, 24), (3, 8, 16, 24)] if coder == "encoder" else [(16, 3, 4, 6), (16, 2, 4, 6)]
    return [torch.randn(1, *size).to(dtype) for size in sizes]


def schedules(handle):
    return [known.schedule for known in handle._link.coders.known.values()]


def recorded(root, paths, work):
    """Return what the unmodified modules made last, by the path of the step that stands for each."""
    seen, handles = {}, []

    def keep(path):
        def hook(module, arguments, output):
            y = output[0] if isinstance(output, tuple) else output
            seen[path] = F.silu(y) if "norm" in path.rsplit(".", 1)[-1] else y.clone()

        return hook

    for path in paths:
        # The second convolution of a residual block adds the shortcut.
        module = root.get_submodule(path.removesuffix(".conv2") if path.endswith(".conv2") else path)
        handles.append(module.register_forward_hook(keep(path)))
    work()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(("name", "coder", "backend"), BOTH)
@torch.no_grad()
def test_each_step_computes_what_its_modules_do(name, coder, backend, monkeypatch):
    vae, chunks, found = model_of(name), chunks_of(name, coder), {}

    def watched(self, arena, *, seen):
        runs = original(self, arena, seen=seen)
        return [keeping(run, planned.step) for run, planned in zip(runs, self.planned, strict=True)]

    def keeping(run, step):
        def inner(values, old, new):
            run(values, old, new)
            # Of a convolution over time and the one before it no module returns what the step makes.
            parts = ("conv_y", "conv_b", "time_conv", "resample")
            if isinstance(step, OpStep) and not step.path.endswith(parts):
                y = run._out if run._out is not None else values[step.result.index]
                found[step.path] = y.clone()

        return inner

    original = Schedule._bind
    monkeypatch.setattr(Schedule, "_bind", watched)
    with swap(vae, backend=backend):
        run_chunks(vae, name, coder, chunks)
    assert len(found) > 10
    root = getattr(vae, coder)
    expected = recorded(root, found, lambda: run_chunks(vae, name, coder, chunks))
    wide = model_of(name, torch.float64)
    in_double = [chunk.double() for chunk in chunks]
    oracle = recorded(getattr(wide, coder), found, lambda: run_chunks(wide, name, coder, in_double))
    for path, value in expected.items():
        # Errors of the steps before are part of both.
        assert compare(found[path], value, oracle[path], factor=16.0, worst_factor=32.0).passed, path


@pytest.mark.parametrize(("name", "coder", "backend"), BOTH)
@torch.no_grad()
def test_what_nobody_needs_is_not_read_again(name, coder, backend, monkeypatch):
    """With NaN in all memory that is not written yet, or not needed any more, the bits stay the same."""
    _compare_with_poisoned(name, coder, backend, "normal", monkeypatch)


@pytest.mark.parametrize("backend", quick(BACKENDS, BACKENDS[-1:]))
@pytest.mark.parametrize("coder", ["encoder", "decoder"])
@torch.no_grad()
def test_what_nobody_needs_in_little_memory(coder, backend, monkeypatch):
    _compare_with_poisoned("cogvideox", coder, backend, "low", monkeypatch)


def _compare_with_poisoned(name, coder, backend, memory, monkeypatch):
    vae, chunks, poisoned = model_of(name), chunks_of(name, coder), []

    def poisoning(self, arena, *, seen):
        runs = original(self, arena, seen=seen)
        first_written, last = {}, {}
        for number, planned in enumerate(self.planned):
            if not isinstance(planned.step, KeepStep):
                first_written.setdefault(planned.step.result.index, number)
                last[planned.step.result.index] = number
            for value in planned.step.reads:
                last[value.index] = number
        ever = arena.view(0, (self.size,), (1,), torch.uint8)

        def after(number, run):
            def inner(values, old, new):
                if number == 0:
                    ever.fill_(255)
                run(values, old, new)
                needed = torch.zeros(self.size, dtype=torch.bool)
                for i, place in self.places.items():
                    if first_written[i] <= number < last[i]:
                        reach = sum((n - 1) * s for n, s in zip(place.shape, place.strides, strict=True))
                        needed[place.offset : place.offset + 4 * (reach + 1)] = True
                ever[~needed] = 255
                poisoned.append(int((~needed).sum()))

            return inner

        return [after(n, run) for n, run in enumerate(runs)]

    original = Schedule._bind
    with swap(vae, backend=backend, memory=memory):
        expected = run_chunks(vae, name, coder, chunks)
    monkeypatch.setattr(Schedule, "_bind", poisoning)
    with swap(vae, backend=backend, memory=memory):
        found = run_chunks(vae, name, coder, chunks)
    assert sum(poisoned) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@torch.no_grad()
def test_two_threads_decode_what_each_decodes_alone(build):  # noqa: F811
    vae = build()
    clips = [torch.randn(1, 16, 5, 4, 6) for _ in range(4)]
    with swap(vae):
        alone = [vae.decode(z).sample for z in clips]
        barrier = threading.Barrier(4)

        def work(z):
            barrier.wait()
            with torch.no_grad():
                return [vae.decode(z).sample for _ in range(3)]

        with ThreadPoolExecutor(4) as pool:
            for results, expected in zip(pool.map(work, clips), alone, strict=True):
                assert all(torch.equal(y, expected) for y in results)


@torch.no_grad()
def test_an_interrupt_in_any_step_leaves_nothing_behind(build):  # noqa: F811
    vae, z = build(), torch.randn(1, 16, 5, 4, 6)
    with swap(vae) as handle:
        expected = vae.decode(z).sample
        for schedule in schedules(handle):
            for at in (0, 7, len(schedule.planned) - 1):
                (_, runs), *_ = schedule._ready.values()
                good = runs[at]

                def stop(*_):
                    raise KeyboardInterrupt

                runs[at] = stop
                with pytest.raises(KeyboardInterrupt):
                    vae.decode(z)
                runs[at] = good
                assert torch.equal(vae.decode(z).sample, expected)


@torch.no_grad()
def test_memory_is_kept_between_calls_until_it_is_given_back(build, monkeypatch):  # noqa: F811
    vae, z = build(), torch.randn(1, 16, 5, 4, 6)
    with swap(vae) as handle:
        coders = handle._link.coders
        vae.decode(z)
        assert coders.kept > 0 and not coders.clips
        handle.release_memory()
        assert coders.kept == 0
        monkeypatch.setattr(machine_memory, "total", lambda: 0)  # more than an eighth of the machine's
        vae.decode(z)
        assert coders.kept == 0
        with coders.clip():
            vae.decoder(z)
            assert coders.kept > 0
        assert coders.kept == 0
        monkeypatch.undo()
        vae.decode(z)
    assert coders.kept == 0, "restore gives it back"


@torch.no_grad()
def test_little_memory_is_not_kept(build):  # noqa: F811
    vae = build()
    with swap(vae, memory="low") as handle:
        vae.decode(torch.randn(1, 16, 5, 4, 6))
        assert handle._link.coders.idle and handle._link.coders.kept == 0


@torch.no_grad()
def test_a_module_that_makes_something_else_runs_as_it_is(build):  # noqa: F811
    """Someone's convolution that widens its result: no schedule holds, the modules run one by one."""
    vae, z = build(), torch.randn(1, 16, 3, 4, 6)

    def widened(module, arguments, output):
        return output[0].double().float() + 1.0, output[1]

    def in_double(module, arguments, output):
        return output[0].double(), output[1]

    for hook, raises in ((widened, False), (in_double, True)):
        reference = build()
        with swap(vae):
            found = [
                m.decoder.mid_block.resnets[0].conv1.register_forward_hook(hook) for m in (vae, reference)
            ]
            if raises:
                with pytest.raises(RuntimeError):
                    reference.decoder(z)
                with pytest.raises(RuntimeError):
                    vae.decoder(z)
            else:
                assert torch.allclose(vae.decoder(z)[0], reference.decoder(z)[0], atol=1e-4)
        for handle in found:
            handle.remove()


def test_an_arena_of_another_device_is_not_lent(build):  # noqa: F811
    with swap(build()) as handle:
        coders = handle._link.coders
        coders.idle.append(Arena(torch.device("meta")))
        with coders.arena(CPU) as arena:
            assert arena.device == CPU


@pytest.mark.parametrize("memory", ["normal", "low"])
@torch.no_grad()
def test_a_mismatch_loses_no_state(memory, build):  # noqa: F811
    vae, z = build(), torch.randn(1, 16, 5, 4, 6)
    hook = vae.decoder.conv_out.register_forward_hook(lambda m, a, out: (out[0].double(), out[1]))
    expected = vae.decode(z).sample
    with swap(vae, memory=memory):
        for _ in range(2):
            assert torch.allclose(vae.decode(z).sample, expected, atol=1e-4)
    hook.remove()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["cogvideox", "2.1"])
def test_a_gradient_that_a_hook_brings(name, backend):
    vae, factor = model_of(name), torch.ones((), requires_grad=True)
    conv = vae.decoder.mid_block.resnets[0].conv1

    def hook(module, arguments, out):
        y, *others = out if isinstance(out, tuple) else (out,)
        y = y + factor * y.roll(1, 1)
        return (y, *others) if others else y

    conv.register_forward_hook(hook)
    x = chunks_of(name, "decoder")
    grads = []
    for swapped in (False, True):
        if swapped:
            swap(vae, backend=backend)
        sum(y.square().sum() for y in run_chunks(vae, name, "decoder", x)).backward()
        grads.append(factor.grad)
        factor.grad = None
    assert torch.allclose(*grads, rtol=1e-2)


@pytest.mark.parametrize("name", ["cogvideox", "2.1"])
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_the_negative_bit(name, backend):
    vae = model_of(name)
    chunks = [c.contiguous(memory_format=torch.channels_last_3d) for c in chunks_of(name, "decoder")]
    expected = run_chunks(vae, name, "decoder", [-chunk for chunk in chunks])
    with swap(vae, backend=backend):
        found = run_chunks(vae, name, "decoder", [torch._neg_view(chunk) for chunk in chunks])
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["cogvideox", "2.1"])
@torch.no_grad()
def test_a_weight_that_is_a_buffer(name):
    vae, chunks = model_of(name), chunks_of(name, "decoder")
    conv = vae.decoder.conv_in.conv if name == "cogvideox" else vae.decoder.conv_in
    weight = conv.weight.data
    del conv.weight
    conv.register_buffer("weight", weight)
    expected = run_chunks(vae, name, "decoder", chunks)
    with swap(vae):
        found = run_chunks(vae, name, "decoder", chunks)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, expected, strict=True))


@torch.no_grad()
def test_what_a_mode_has_seen_is_not_kept(build):  # noqa: F811
    vae = build()
    with swap(vae) as handle:
        with CountedElements():
            vae.decode(torch.randn(1, 16, 3, 4, 6))
        assert all(arena._shown is None for arena in handle._link.coders.idle)
