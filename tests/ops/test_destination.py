"""Ops that write into given memory refuse to write over what they read, and work beside it."""

import pytest
import torch

from causalvae_kernels import (
    BackendUnavailable,
    FrameBuffer,
    InvalidInput,
    causal_conv3d,
    causal_pad3d,
    causal_pad3d_,
    explain,
)
from causalvae_kernels.core.triton_runtime import interpreting
from causalvae_kernels.parity.norms import NORMS
from causalvae_kernels.workloads import NormCase, make_norm_call

NOT_TRITON = pytest.mark.skipif(interpreting(), reason="the layouts are what is tested, not the kernels")
SHAPE = (2, 6, 5, 7, 9)
NORM = NormCase("destination", SHAPE, 3, SHAPE[2:])
DIMS = pytest.mark.parametrize("dim", [1, 2, 4], ids=["channels", "frames", "columns"])

# The first slice and the step of what is written, and of what is read, for a clip of n slices.
BESIDE = {
    "in front": lambda n: ((n, 1), (0, 1)),
    "behind": lambda n: ((0, 1), (n, 1)),
    "interleaved": lambda n: ((0, 2), (1, 2)),
}
UNDER = {
    "all": lambda n: ((0, 1), (0, 1)),
    "one slice": lambda n: ((n - 1, 1), (0, 1)),
    "every other slice": lambda n: ((0, 2), (0, 1)),
}


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last_3d], ids=["contiguous", "channels last"])
def space(request):
    """Memory for twice the slices of a clip, whichever dimension it is cut along."""
    return torch.randn([2 * n for n in SHAPE]).contiguous(memory_format=request.param)


def windows(space, dim, cuts):
    """What is written and what is read: two clips that are cut out of `space` along one dimension."""
    for first, step in cuts(SHAPE[dim]):
        clip = space[tuple(slice(None) if d == dim else slice(n) for d, n in enumerate(SHAPE))]
        yield clip[(slice(None),) * dim + (slice(first, first + step * SHAPE[dim], step),)]


def conv_call(**given):
    """Arguments of a convolution whose output has the shape of its input."""
    weight, bias = torch.randn(6, 6, 3, 3, 3) / 10, torch.randn(6)
    call = {"x": torch.randn(SHAPE), "weight": weight, "bias": bias} | given
    if "initial_state" in given:
        call["initial_state"] = given["initial_state"][:, :, -2:]
    return call


@NOT_TRITON
@DIMS
@pytest.mark.parametrize("name", ["x", "initial_state", "residual"])
@pytest.mark.parametrize("where", BESIDE)
def test_a_convolution_beside_what_it_reads(space, dim, name, where, backend):
    out, read = windows(space, dim, BESIDE[where])
    call = conv_call(**{name: read})
    expected = causal_conv3d(**call, backend=backend)
    before = read.clone()
    causal_conv3d(**call, out=out, backend=backend)
    assert torch.equal(out, expected) and torch.equal(read, before)


@DIMS
@pytest.mark.parametrize("name", ["x", "initial_state", "residual"])
@pytest.mark.parametrize("where", UNDER)
def test_a_convolution_over_what_it_reads(space, dim, name, where, backend):
    out, read = windows(space, dim, UNDER[where])
    if (name, where) == ("residual", "all"):
        return  # adds in place: tests/ops/test_residual_in_place.py
    before = space.clone()
    with pytest.raises(InvalidInput, match=f"causal_conv3d: out shares memory with {name}, .* write into"):
        causal_conv3d(**conv_call(**{name: read}), out=out, backend=backend)
    assert torch.equal(space, before)


@pytest.mark.parametrize("head_room", [0, 2])
def test_a_convolution_into_the_body_that_it_reads(head_room, backend):
    buffer = FrameBuffer(torch.randn(2, 6, 5 + head_room, 7, 9), head_room)
    call = conv_call(x=buffer if head_room else buffer.body)
    for out in (buffer, buffer.body):
        with pytest.raises(InvalidInput, match="out shares memory with x"):
            causal_conv3d(**call, out=out, backend=backend)
        with pytest.raises(InvalidInput, match="out shares memory with x"):
            explain(causal_conv3d, **call | {"x": buffer.body}, out=buffer.body)


def test_a_convolution_over_its_parameters(backend):
    call = conv_call()
    for name in ("weight", "bias"):
        space = torch.randn(SHAPE)
        call = conv_call(**{name: space.flatten()[: call[name].numel()].view(call[name].shape)})
        with pytest.raises(InvalidInput, match=f"out shares memory with {name}"):
            causal_conv3d(**call, out=space, backend=backend)


@pytest.mark.parametrize("dim", range(5))
def test_a_convolution_into_elements_that_lie_upon_each_other(dim, backend):
    out = torch.zeros(SHAPE).narrow(dim, 0, 1).expand(SHAPE)
    with pytest.raises(InvalidInput, match="elements share memory, expected a place for each; write into"):
        causal_conv3d(**conv_call(), out=out, backend=backend)


def test_triton_refuses_to_add_in_place():
    """Nobody checked on a GPU that each element is read before it is written."""
    residual = torch.randn(SHAPE)
    with pytest.raises(BackendUnavailable, match="the residual is the output itself"):
        causal_conv3d(**conv_call(residual=residual), out=residual, backend="triton")


@pytest.fixture(params=sorted(NORMS))
def norm(request):
    """The name of a norm, and its arguments."""
    return request.param, make_norm_call(request.param, NORM, torch.float32, 0)


def reads_of(call):
    return [name for name in ("x", "scale", "shift") if name in call]


@DIMS
@pytest.mark.parametrize("where", BESIDE)
def test_a_norm_beside_what_it_reads(space, dim, norm, where, backend):
    op, call = norm
    for name in reads_of(call):
        out, read = windows(space, dim, BESIDE[where])
        given = call | {name: read}
        expected = NORMS[op](**given, backend=backend)
        before = read.clone()
        NORMS[op](**given, out=FrameBuffer(out, 0), backend=backend)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
        assert torch.equal(read, before)


@DIMS
@pytest.mark.parametrize("where", UNDER)
def test_a_norm_over_what_it_reads(space, dim, norm, where, backend):
    op, call = norm
    for name in reads_of(call):
        out, read = windows(space, dim, UNDER[where])
        given = call | {name: read}
        if (name, where) == ("x", "all"):
            expected = NORMS[op](**given, backend=backend)
            NORMS[op](**given, out=FrameBuffer(out, 0), backend=backend)
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
            continue
        before = space.clone()
        with pytest.raises(InvalidInput, match=f"{op}: out shares memory with {name}, "):
            NORMS[op](**given, out=FrameBuffer(out, 0), backend=backend)
        assert torch.equal(space, before)


def test_a_norm_into_elements_that_lie_upon_each_other(norm, backend):
    op, call = norm
    out = torch.zeros(1).expand(SHAPE)
    with pytest.raises(InvalidInput, match="out has .* elements share memory"):
        NORMS[op](**call, out=FrameBuffer(out, 0), backend=backend)


@pytest.mark.parametrize("halo", [(0, 0, 0, 0), (1, 2, 0, 1)])
@pytest.mark.parametrize("first", [0, 2, 5], ids=["in its place", "the first frames", "the last frames"])
def test_padding_with_a_state_in_the_buffer(halo, first, space, backend):
    buffer = FrameBuffer(space[:2, :6, :7, :7, :9], 2, halo)
    top, bottom, left, right = halo
    state = buffer.storage[:, :, first : first + 2, top : 7 - bottom, left : 9 - right]
    expected = causal_pad3d(buffer.body, 2, halo, initial_state=state, backend=backend)
    causal_pad3d_(buffer, initial_state=state, backend=backend)
    assert torch.equal(buffer.storage, expected)


@pytest.mark.parametrize(
    ("halo", "first", "row"),
    [((0, 0, 0, 0), 1, 0), ((1, 2, 0, 1), 1, 1), ((1, 2, 0, 1), 3, 0), ((0, 1, 0, 0), 3, 1)],
    ids=["one frame in front", "one frame in front, halo", "under the top", "under the bottom"],
)
def test_padding_over_its_state(halo, first, row, space, backend):
    buffer = FrameBuffer(space[:2, :6, :7, :7, :9], 2, halo)
    height, width = buffer.body.shape[3:]
    state = buffer.storage[:, :, first : first + 2, row : row + height, :width]
    before = space.clone()
    with pytest.raises(InvalidInput, match="the border of the buffer shares memory with initial_state, "):
        causal_pad3d_(buffer, initial_state=state, backend=backend)
    assert torch.equal(space, before)


def test_padding_of_elements_that_lie_upon_each_other(backend):
    buffer = FrameBuffer(torch.zeros(2, 6, 1, 7, 9).expand(2, 6, 7, 7, 9), 2)
    with pytest.raises(InvalidInput, match="the buffer has .* elements share memory"):
        causal_pad3d_(buffer, backend=backend)
