"""What follows from the declaration of an op, for every op that there is."""

from __future__ import annotations

import inspect

import pytest
import torch

import causalvae_kernels
from causalvae_kernels import FrameBuffer, InvalidInput, explain
from causalvae_kernels.cli.example_calls import CallShape, call_arguments
from causalvae_kernels.core.op import all_ops, call_of, op_named
from causalvae_kernels.core.triton_runtime import interpreting

OPERATORS = torch.ops.causalvae_kernels
NAMES = [op.name for op in all_ops()]
pytestmark = pytest.mark.skipif(
    interpreting(), reason="how an op is known to the framework is the same there"
)


def real(value: object) -> object:
    """A tensor with data in the place of one without."""
    if isinstance(value, FrameBuffer):
        return FrameBuffer(real(value.storage), value.head_room, value.halo)
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).normal_()


def checked(name: str):
    """An op, the record of a small call, and what it may be written into."""
    op = op_named(name)
    positional, keywords = call_arguments(name, CallShape((1, 4, 3, 6, 4), 4, channels_last=True))
    args, out = op.prepare(*map(real, positional), **keywords)
    return op, args, torch.empty(args.out_shape, dtype=args.out_dtype) if out is None else out


@pytest.mark.parametrize("name", NAMES)
def test_the_operators_have_the_fields_of_the_record(name):
    op = op_named(name)
    packet = getattr(OPERATORS, name)
    assert set(packet.overloads()) == ({"default"} if op.in_place else {"default", "out"})
    for overload in packet.overloads():
        schema = getattr(packet, overload)._schema
        written = [a.name for a in schema.arguments if a.alias_info is not None]
        named = [a.name for a in schema.arguments]
        into = overload == "out" or op.in_place
        assert written == (["out"] if into else [])
        assert named == [*written, *op.args._fields, "backend", "precision"]
        assert len(schema.returns) == (not into)


@pytest.mark.parametrize("name", NAMES)
def test_opcheck_of_both_overloads(name):
    op, args, out = checked(name)
    packet = getattr(OPERATORS, name)
    into = packet.default if op.in_place else packet.out
    torch.library.opcheck(into, (out, *args, "aten", "high"))
    if not op.in_place:
        torch.library.opcheck(packet.default, (*args, "aten", "high"))


@pytest.mark.parametrize("name", [n for n in NAMES if not n.endswith("_")])
@pytest.mark.parametrize("backend", ["reference", "aten", "cpu"])
def test_what_is_made_is_what_is_written(name, backend):
    op, args, out = checked(name)
    if op.backends[backend].why_not(args, "high", out) is not None:
        pytest.skip("cannot run this call")
    fresh = op(args, backend=backend)
    assert (tuple(fresh.shape), fresh.dtype) == (tuple(args.out_shape), args.out_dtype)
    assert fresh.is_contiguous(memory_format=op.memory_format(args))
    assert op(args, out, backend=backend) is None
    assert torch.allclose(out, fresh, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in NAMES if not n.endswith("_")])
def test_every_op_refuses_a_destination_that_does_not_fit(name):
    op, args, out = checked(name)
    function = getattr(causalvae_kernels, name)
    positional, keywords = call_arguments(name, CallShape((1, 4, 3, 6, 4), 4))
    positional = list(map(real, positional))
    for wrong, sentence in (
        (out[:, :, 1:], "out has shape"),
        (out.double(), "out is torch.float64"),
        (out.new_zeros(1).expand(out.shape), "elements share memory"),
        ([1.0], "is a list"),
    ):
        with pytest.raises(InvalidInput, match=f"{name}: .*{sentence}"):
            function(*positional, **keywords, out=wrong)


@pytest.mark.parametrize("name", NAMES)
def test_explain_says_what_a_call_needs(name):
    op, args, out = checked(name)
    work = args.work(out)
    assert (work.flops > 0) == ("pad" not in name)
    least = 0 if op.in_place else args.x.nbytes + out.nbytes
    assert least <= work.bytes < 10**6
    positional, keywords = call_arguments(name, CallShape((1, 4, 3, 6, 4), 4, channels_last=True))
    answer = explain(name, *positional, **keywords)
    assert answer.work == work and f"FLOP, {work.bytes / 1000:.3g} kB)" in str(answer)


@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_a_mode_sees_is_taken_apart(name):
    op, args, out = checked(name)
    packet = getattr(OPERATORS, name)
    call = call_of(packet.default if op.in_place else packet.out, (out, *args, "", "high"))
    assert call.op is op and call.out is out and call.backend is None and call.precision == "high"
    assert call.choose().name in op.backends and call.run() is None


@pytest.mark.parametrize("name", [n for n in NAMES if not n.endswith("_")])
def test_every_public_function_has_the_keywords_of_all(name):
    parameters = inspect.signature(getattr(causalvae_kernels, name)).parameters
    for keyword in ("out", "backend", "precision"):
        assert parameters[keyword].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[keyword].default is None
    assert "out:" in getattr(causalvae_kernels, name).__doc__
