"""Bytes are counted as they are moved, and a hollow run takes the way of a real one."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from causalvae_kernels import FrameBuffer, causal_conv3d, group_norm, swap
from causalvae_kernels.bench.hollow_run import COMPOSITE, HollowRun, assumed, is_composite, is_view
from causalvae_kernels.bench.traffic import count_traffic
from causalvae_kernels.core import native
from causalvae_kernels.core.op import NAMESPACE, all_ops, call_of
from causalvae_kernels.core.traffic import Pass, bytes_of
from causalvae_kernels.demo.traffic import REFERENCE, vae_traffic
from causalvae_kernels.ops.causal_conv3d import spec as conv_spec
from causalvae_kernels.ops.causal_pad3d import spec as pad_spec
from causalvae_kernels.ops.downsample_conv import spec as down_spec
from causalvae_kernels.ops.group_norm import spec as norm_spec
from causalvae_kernels.ops.spatial_norm import spec as spatial_spec
from causalvae_kernels.ops.upsample_conv import spec as up_spec
from causalvae_kernels.workloads import cogvideox_2b_config, small_cogvideox_config
from tests.support.cover import quick_rows

needs_native = pytest.mark.skipif(native.why_no_cpu() is not None, reason="needs the native module")
BFLOAT16 = 2

# GB that the unmodified decoder moves for 49 frames of 480x720 in bfloat16, and how often each operator runs:
# counted on meta tensors by another program than ours.
DECODE = {
    "add": (330, 274.8),
    "mul": (222, 192.1),
    "cat": (268, 165.3),
    "convolution 1x1x1": (456, 154.2),
    "convolution 3x3x3": (228, 137.6),
    "native_group_norm": (222, 128.1),
    "silu": (222, 128.1),
    "copy": (690, 81.0),
    "convolution 3x3": (18, 22.8),
    "nearest upsampling": (279, 20.1),
}


@pytest.fixture(scope="module")
def full_size():
    """The decode of 49 frames of 480x720."""
    pytest.importorskip("diffusers")
    backends = ("cpu", "triton") if native.why_no_cpu() is None else ("triton",)
    return vae_traffic(cogvideox_2b_config(), "decode", (49, 480, 720), torch.bfloat16, backends)


def test_the_reference_moves_what_was_counted_elsewhere(full_size):
    moved = full_size[REFERENCE].moved
    assert {name: (m.calls, round(m.bytes / 1e9, 1)) for name, m in moved.items()} == DECODE
    assert round(full_size[REFERENCE].bytes / 1e9, 1) == 1304.1


@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=needs_native), "triton"])
def test_swapped_it_moves_less_than_a_third(full_size, backend):
    swapped, reference = full_size[backend], full_size[REFERENCE]
    assert swapped.besides_convolutions <= 0.3 * reference.besides_convolutions
    # Nothing of what the model did between its convolutions is left but norms, copies of state and residuals.
    assert not {"mul", "native_group_norm", "silu", "addcmul", "pad"} & set(swapped.moved)
    convolutions = sum(m.bytes for m in swapped.moved.values() if m.convolution)
    assert convolutions > 0.9 * (137.6 + 22.8 / 2) * 1e9  # and they were counted


class _Names(TorchDispatchMode):
    """Runs everything, and remembers each operator with the shapes and strides that it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == NAMESPACE:
            call = call_of(func, args)
            if call.choose().moves is None:
                with self:
                    return call.run()
            self.seen.append(_entry_of_ours(call))
            return func(*args, **(kwargs or {}))
        if is_composite(func):
            with self:
                return func._op_dk(COMPOSITE, *args, **(kwargs or {}))
        if not is_view(func):
            self.seen.append(_entry(func._schema.name.partition("::")[2], args))
        return func(*args, **(kwargs or {}))


def _entry(name, args):
    return name, [(tuple(a.shape), a.stride()) for a in args if isinstance(a, torch.Tensor)]


def _entry_of_ours(call):
    return _entry(call.op.name, (call.out, *call.args))


@needs_native
@pytest.mark.parametrize("backend", [None, "auto", "aten", "cpu"])
@pytest.mark.parametrize(
    ("dtype", "step"),
    quick_rows(
        list(product([torch.float32, torch.bfloat16], ["encode", "decode"])), [(torch.float32, "decode")]
    ),
)
def test_a_hollow_run_takes_the_way_of_a_real_one(step, dtype, backend):
    diffusers = pytest.importorskip("diffusers")
    config = small_cogvideox_config()
    vae = diffusers.AutoencoderKLCogVideoX(**config).eval().requires_grad_(False)
    torch.nn.Module.to(vae, dtype=dtype)
    x = torch.randn(1, 3, 17, 32, 40) if step == "encode" else torch.randn(1, 16, 5, 4, 5)
    if backend is not None:
        swap(vae, backend=backend)

    def run():
        return vae.encode(x.to(dtype)) if step == "encode" else vae.decode(x.to(dtype))

    seen = []
    hollow = HollowRun(
        lambda func, args, kwargs, result: seen.append(_entry(func._schema.name.partition("::")[2], args)),
        lambda backend, call: seen.append(_entry_of_ours(call)),
    )
    with torch.no_grad():
        with _Names() as real:
            run()
        with hollow:
            run()
    seen, real_seen = ([entry for entry in found if entry[1]] for found in (seen, real.seen))
    assert len(seen) > 80
    assert seen == real_seen


def test_a_hollow_run_writes_nothing_and_returns_what_a_real_one_would():
    x = torch.ones(2, 3, 4)
    with HollowRun():
        x.zero_()
        y = x.transpose(0, 2) + 1
        z = torch.ops.aten.silu.out(x, out=torch.empty_like(x))
        huge = torch.empty(2**33, dtype=torch.int8).view(2, -1) + 1
        parts = x.split(1)
    assert x.eq(1).all()
    assert (y.shape, y.stride(), y.dtype) == ((4, 3, 2), (1, 4, 12), torch.float32) and type(
        y
    ) is torch.Tensor
    assert z.shape == x.shape and huge.shape == (2, 2**32)
    assert parts[1].data_ptr() == x[1].data_ptr()


def test_a_hollow_run_gives_no_numbers():
    with HollowRun(), pytest.raises(Exception, match="item|data-dependent|scalar"):
        (torch.ones(3).sum() > 2).item()


def moved(fn):
    found = count_traffic(fn).moved
    return {name: (m.calls, m.read, m.written) for name, m in found.items()}


def test_operators_of_the_framework():
    x, y = torch.zeros(10, 6), torch.zeros(10, 1)
    n = x.nbytes
    assert moved(lambda: x + y) == {"add": (1, n + 40, n)}
    assert moved(lambda: x.add_(y)) == {"add": (1, n + 40, n)}
    assert moved(lambda: x.copy_(y)) == {"copy": (1, 40, n)}
    assert moved(lambda: x.zero_()) == {"zero_": (1, 0, n)}
    assert moved(lambda: torch.ops.aten.silu.out(x, out=torch.empty_like(x))) == {"silu": (1, n, n)}
    assert moved(lambda: torch.cat([x, x, y], dim=1)) == {"cat": (1, 2 * n + 40, 2 * n + 40)}
    assert moved(lambda: y.expand(10, 6).clone()) == {"copy": (1, 40, n)}
    assert moved(lambda: x.t().reshape(-1)) == {"copy": (1, n, n)}
    assert moved(lambda: x.view(6, 10)[1:].t().unsqueeze(0).expand(3, 10, 5)) == {}
    assert moved(lambda: x.to(torch.bfloat16)) == {"copy": (1, n, n // 2)}


def test_convolutions_are_told_apart():
    x = torch.zeros(1, 4, 3, 5, 5)
    weights = [torch.zeros(6, 4, *k) for k in ((3, 3, 3), (1, 1, 1))]
    for weight, many in zip(weights, (True, False), strict=True):
        found = count_traffic(lambda w=weight: torch.nn.functional.conv3d(x, w))
        (step,) = found.moved.values()
        assert step.convolution is many and step.read == x.nbytes + weight.nbytes
        assert found.bytes == step.bytes and found.besides_convolutions == (0 if many else step.bytes)


def test_what_is_expanded_lies_there_once():
    assert bytes_of(torch.zeros(1, 3).expand(5, 3), None, torch.zeros(0, 4)) == 12


# Ops: kernels of ours declare, and by the figures of their spec.


def test_every_kernel_declares_and_no_framework_backend_does():
    for op in all_ops():
        for backend in op.backends.values():
            assert (backend.moves is None) == (backend.name in ("reference", "aten")), (op.name, backend.name)


def declared(name, backend, *arguments, out=None):
    op = {o.name: o for o in all_ops()}[name]
    found = op.backends[backend].moves(op.args(*arguments), out)
    assert all(isinstance(step, Pass) for step in found)
    return list(found)


def total(passes):
    return sum(step.read + step.written for step in passes)


X = torch.zeros(1, 8, 5, 6, 7, dtype=torch.bfloat16)
OPTIONS = ([1, 1, 1], [1, 1, 1], "replicate", "zeros")


@pytest.mark.parametrize("backend", ["cpu", "triton", "cuda"])
def test_a_convolution_declares_its_tensors_and_its_residual_apart(backend):
    x = X.contiguous(memory_format=torch.channels_last_3d)
    weight = torch.zeros(16, 8, 3, 3, 3, dtype=x.dtype).contiguous(memory_format=torch.channels_last_3d)
    out = torch.zeros(1, 16, 5, 6, 7, dtype=x.dtype)
    passes = declared("causal_conv3d", backend, x, weight, None, None, None, *OPTIONS)
    moved = conv_spec.bytes_moved(x.shape, weight.shape, BFLOAT16)
    padded = pad_spec.bytes_moved(x.shape, 2, (0, 0, 0, 0), BFLOAT16, in_place=False)
    assert total(passes) == moved + (padded if backend == "cuda" else 0)
    assert sum(step.convolution for step in passes) == 1
    with_residual = declared("causal_conv3d", backend, x, weight, None, x[:, :, :2], out, *OPTIONS, out=out)
    assert total(with_residual) == total(passes) + out.nbytes + x[:, :, :2].nbytes
    assert total(s for s in with_residual if not s.convolution) == total(
        s for s in passes if not s.convolution
    ) + (out.nbytes)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 1, 1)])
def test_contiguous_weights_are_packed_unless_they_are_one_tap(kernel, backend):
    weight = torch.zeros(16, 8, *kernel, dtype=X.dtype)
    passes = declared("causal_conv3d", backend, X, weight, None, None, None, *OPTIONS)
    packed = [step for step in passes if step.name == "causal_conv3d, its weights"]
    assert total(packed) == (0 if kernel == (1, 1, 1) else 2 * weight.nbytes)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_norms_declare_their_second_reading(backend):
    scale = torch.zeros(1, 8, 3, 3, 7, dtype=X.dtype)
    (step,) = declared("group_norm", backend, X, None, None, 2, 1e-5, True)
    assert (step.read, step.written) == (2 * X.nbytes, X.nbytes)
    assert total([step]) == norm_spec.bytes_moved(X.shape, BFLOAT16)
    (step,) = declared("spatial_norm", backend, X, scale, scale, None, None, 2, 1e-5, True, out=X)
    assert (step.read, step.written) == (2 * X.nbytes + 2 * scale.nbytes, X.nbytes)
    assert total([step]) == spatial_spec.bytes_moved(X.shape, scale.shape[2:], BFLOAT16)
    (step,) = declared("rms_norm", backend, X, X, None, 0.0, True)
    assert (step.read, step.written) == (X.nbytes, X.nbytes)


@pytest.mark.parametrize("backend", ["cpu", "triton", "cuda"])
def test_paddings_declare_the_border_or_all(backend):
    halo = (1, 1, 2, 0)
    (step,) = declared("causal_pad3d", backend, X, None, 2, halo, "replicate", "zeros")
    assert step.written == 8 * 7 * 8 * 9 * BFLOAT16
    storage = torch.zeros(1, 8, 7, 8, 9, dtype=X.dtype)
    (step,) = declared("causal_pad3d_", backend, None, 2, halo, "replicate", "zeros", out=storage)
    assert step.written == (8 * 7 * 8 * 9) * BFLOAT16 - X.nbytes == step.read


def test_resampling_declares_its_further_passes():
    weight = torch.zeros(4, 8, 1, 3, 3, dtype=X.dtype)
    for scale, kept, copied in (((1, 2, 2), 5, 0), ((2, 2, 2), 5, 4)):
        first, *rest = declared(
            "upsample_conv", "cpu", X, weight, None, None, scale, True, "replicate", "zeros"
        )
        frame = 4 * 12 * 14 * BFLOAT16
        assert first.convolution and first.written == kept * frame
        assert total(rest) == 2 * copied * frame
        whole = up_spec.bytes_moved(X.shape, weight.shape, BFLOAT16, scale)
        assert total([first]) + copied * frame == whole
    plain = declared("downsample_conv", "cpu", X, weight, None, False)
    assert total(plain) == down_spec.bytes_moved(X.shape, weight.shape, BFLOAT16)
    averages, conv = declared("downsample_conv", "cpu", X, weight, None, True)
    frame = X[:, :, :1].nbytes
    assert (averages.read, averages.written) == (7 * frame, 5 * frame) and conv.convolution
    assert conv.read == 3 * frame + weight.nbytes


@needs_native
def test_a_backend_of_framework_operators_is_looked_into():
    weight = torch.zeros(8, 8, 3, 3, 3, dtype=X.dtype)
    ours = moved(lambda: causal_conv3d(X, weight, backend="cpu"))
    assert list(ours) == ["causal_conv3d 3x3x3"]
    aten = moved(lambda: causal_conv3d(X, weight, backend="aten"))
    copied = X.nbytes + 2 * X[:, :, :1].nbytes
    assert aten["copy"][2] == copied and aten["convolution 3x3x3"][1] == copied + weight.nbytes
    (calls, read, written) = moved(lambda: group_norm(X, 2, backend="cpu"))["group_norm"]
    assert (calls, read, written) == (1, 2 * X.nbytes, X.nbytes)


def test_a_backend_is_assumed_only_inside():
    before = {op.name: op.backends for op in all_ops()}
    buffer = FrameBuffer.empty(X.shape, head_room=2, dtype=X.dtype)
    weight = torch.zeros(8, 8, 3, 3, 3, dtype=X.dtype)
    with pytest.raises(ZeroDivisionError), assumed("triton"):
        assert math.isclose(
            count_traffic(lambda: causal_conv3d(buffer, weight, backend="triton")).bytes,
            conv_spec.bytes_moved(X.shape, weight.shape, BFLOAT16) + 2 * weight.nbytes,
        )
        raise ZeroDivisionError
    assert {op.name: op.backends for op in all_ops()} == before
