"""Small kernels on which the compile harness itself is tested."""

import triton
import triton.language as tl


@triton.jit
def copy(out_ptr, x_ptr, n, BLOCK: tl.constexpr):
    """Copy `n` items."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < n), mask=i < n)


@triton.jit
def transpose(out_ptr, x_ptr, BLOCK: tl.constexpr):
    """Transpose a square; its way from row to column goes through shared memory."""
    i, j = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    tl.store(out_ptr + i * BLOCK + j, tl.trans(tl.load(x_ptr + i * BLOCK + j)))


@triton.jit
def hoard(out_ptr, x_ptr, BLOCK: tl.constexpr):
    """Hold more items at once than a thread has registers."""
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    total = tl.sum(x, axis=0)
    tl.store(out_ptr + i, x * total)
