"""The check of what Triton kernels read and write: it finds each kind of fault, and no other.

It is on in every test of the ops that is interpreted: conftest.py.
"""

from __future__ import annotations

import pytest
import torch

from causalvae_kernels.core.triton_runtime import interpreting

if not interpreting():
    pytest.skip("runs kernels on the CPU: TRITON_INTERPRET=1", allow_module_level=True)

import triton
import triton.language as tl


@triton.jit
def _shift(out_ptr, x_ptr, shift, readable, writable, step, BLOCK: tl.constexpr):
    i = tl.program_id(0) * step + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i + shift, mask=i + shift < readable, other=0.0)
    tl.store(out_ptr + i, x, mask=i < writable)


def run(out, x, shift=0, readable=13, writable=13, step=8):
    _shift[(2,)](out, x, shift, readable, writable, step, BLOCK=8)


def test_a_kernel_without_a_fault_passes():
    x, out = torch.randn(13), torch.zeros(13)
    run(out, x)
    assert torch.equal(out, x)
    run(x, x)  # each program its own elements, in place


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"readable": 14}, "program 1 reads 1 elements outside"),
        ({"writable": 15}, "program 1 writes 2 elements outside"),
        ({"shift": -1}, "program 0 reads 1 elements outside"),
        ({"step": 4}, "program 1 writes what program 0 writes"),
    ],
    ids=["behind", "written behind", "before", "written twice"],
)
def test_a_fault_is_found(change, sentence):
    memory = torch.zeros(2, 32)  # what lies around the tensors belongs to the process: nothing crashes
    with pytest.raises(Exception, match=sentence):
        run(memory[0, 4:17], memory[1, 4:17], **change)


@pytest.mark.parametrize(("shift", "sentence"), [(-1, "reads what program 0"), (1, "that another program")])
def test_a_neighbour_that_is_overwritten_is_found(shift, sentence):
    memory = torch.zeros(32)
    with pytest.raises(Exception, match=sentence):
        run(memory[4:17], memory[4 + shift : 17 + shift], readable=13)


def test_the_gap_between_rows_is_outside():
    memory = torch.zeros(4, 8)
    with pytest.raises(Exception, match="reads 3 elements outside"):
        run(torch.zeros(13), memory[:2, :5])
