"""Schedules of real coders: each step against its modules, memory that nobody needs, errors, threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from causalvae_kernels import swap
from causalvae_kernels.coder import Arena, OpStep, Schedule
from causalvae_kernels.core import machine_memory, native
from causalvae_kernels.parity import compare
from tests.models.conftest import build  # noqa: F401  (a fixture)

BACKENDS = ["aten"] + (["cpu"] if native.why_no_cpu() is None else [])
CPU = torch.device("cpu")


def given(coder, dtype=torch.float32):
    x = torch.randn(1, 3, 9, 16, 24) if coder == "encoder" else torch.randn(1, 16, 3, 4, 6)
    return x.to(dtype)


def schedules(handle):
    return [known.schedule for known in handle._link.coders.known.values()]


def recorded(vae, coder, x):
    """Return what the unmodified modules compute, by the path of the step that stands for it."""
    seen, handles = {}, []

    def keep(path, silu=False):
        def hook(module, arguments, output):
            y = output[0] if isinstance(output, tuple) else output
            seen[path] = F.silu(y) if silu else y.clone()

        return hook

    root = getattr(vae, coder)
    blocks = {"mid_block": root.mid_block}
    for name in ("down_blocks", "up_blocks"):
        blocks |= {f"{name}.{i}": b for i, b in enumerate(getattr(root, name, ()))}
    watched = {"conv_in": root.conv_in, "conv_out": root.conv_out}
    normed = {"norm_out": root.norm_out}
    for name, block in blocks.items():
        for i, resnet in enumerate(block.resnets):
            key = f"{name}.resnets.{i}"
            watched |= {f"{key}.conv1": resnet.conv1, f"{key}.conv2": resnet}
            normed |= {f"{key}.norm1": resnet.norm1, f"{key}.norm2": resnet.norm2}
        for kind in ("upsamplers", "downsamplers"):
            for sampler in getattr(block, kind, None) or ():
                watched[f"{name}.{kind}.0"] = sampler
    for path, module in watched.items():
        handles.append(module.register_forward_hook(keep(path)))
    for path, module in normed.items():
        handles.append(module.register_forward_hook(keep(path, silu=True)))
    root(x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("coder", ["encoder", "decoder"])
@torch.no_grad()
def test_each_step_computes_what_its_modules_do(coder, backend, build, monkeypatch):  # noqa: F811
    vae, x = build(), given(coder)
    expected, oracle = recorded(vae, coder, x), recorded(build(dtype=torch.float64), coder, x.double())
    found = {}

    def watched(self, arena, *, seen):
        runs = original(self, arena, seen=seen)
        return [_keeping(run, planned.step) for run, planned in zip(runs, self.planned, strict=True)]

    def _keeping(run, step):
        def inner(values, old, new):
            run(values, old, new)
            if isinstance(step, OpStep):
                y = run._out if run._out is not None else values[step.result.index]
                found[step.path] = y.clone()

        return inner

    original = Schedule._bind
    monkeypatch.setattr(Schedule, "_bind", watched)
    with swap(vae, backend=backend):
        getattr(vae, coder)(x)
    assert expected.keys() <= found.keys()
    for path, value in expected.items():
        # Errors of the steps before are part of both.
        assert compare(found[path], value, oracle[path], factor=16.0, worst_factor=32.0).passed, path


@pytest.mark.parametrize("memory", ["normal", "low"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("coder", ["encoder", "decoder"])
@torch.no_grad()
def test_what_nobody_needs_is_not_read_again(coder, backend, memory, build, monkeypatch):  # noqa: F811
    """With NaN in all memory that is not written yet, or not needed any more, the bits stay the same."""
    vae, x = build(), given(coder)
    poisoned = []

    def poisoning(self, arena, *, seen):
        runs = original(self, arena, seen=seen)
        first_written, last = {}, {}
        for number, planned in enumerate(self.planned):
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
        root = getattr(vae, coder)
        first, cache = root(x)
        second, _ = root(x[:, :, -2:] if coder == "decoder" else x[:, :, -8:], conv_cache=cache)
    monkeypatch.setattr(Schedule, "_bind", poisoning)
    with swap(vae, backend=backend, memory=memory):
        again, cache = root(x)
        behind, _ = root(x[:, :, -2:] if coder == "decoder" else x[:, :, -8:], conv_cache=cache)
    assert sum(poisoned) > 0
    assert torch.equal(again, first) and torch.equal(behind, second)


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
