"""The index arithmetic of the CUDA kernels in their host emulation, against the references.

`causal_pad3d` there runs the very functions that the threads of the CUDA padding kernels run. The numbers of
the kernels themselves need a GPU.
"""

import itertools
import random

import pytest
import torch

from causalvae_kernels.core import native
from causalvae_kernels.ops.causal_conv3d.spec import output_size
from causalvae_kernels.ops.causal_pad3d.reference import causal_pad3d_reference, source_index
from causalvae_kernels.ops.causal_pad3d.spec import PadArgs
from tests.support import emulation
from tests.support.cover import pairs

EMULATION = emulation.load()
EDGE = 2**31 - 1


# ---------------------------------------------------------------- division


def test_division_by_every_small_divisor():
    for divisor in range(1, 400):
        for n in (*range(1200), *range(EDGE - 3 * divisor, EDGE + 1, 7), EDGE):
            assert EMULATION.fast_divide(n, divisor) == n // divisor


def test_division_at_the_edges_of_quotients(seed):
    draw = random.Random(seed)
    powers = [2**k + d for k in range(32) for d in (-1, 0, 1) if 1 <= 2**k + d <= 2**31]
    for divisor in (*powers, *(draw.randint(1, 2**31) for _ in range(3000))):
        quotients = {0, 1, EDGE // divisor, *(draw.randint(0, EDGE // divisor) for _ in range(6))}
        for n in {q * divisor + d for q in quotients for d in (-1, 0, 1)} | {EDGE}:
            if 0 <= n <= EDGE:
                assert EMULATION.fast_divide(n, divisor) == n // divisor, (n, divisor)


# ---------------------------------------------------------------- sources


@pytest.mark.parametrize("mode", ["zeros", "replicate", "reflect"])
def test_source_pixels_are_the_references(mode):
    for size, before, after in itertools.product(range(1, 7), range(6), range(6)):
        if mode == "reflect" and max(before, after) >= size:
            continue
        got = [EMULATION.source_pixel(i, size, mode) for i in range(-before, size + after)]
        if mode == "zeros":
            expected = [i if 0 <= i < size else -1 for i in range(-before, size + after)]
        else:
            expected = source_index(size, before, after, mode, torch.device("cpu")).tolist()
        assert got == expected


def padded_frames(body, state, past, mode):
    """The frames of one pixel with those in front, as numbers."""
    return causal_pad3d_reference(PadArgs(body, state, past, (0, 0, 0, 0), mode, "zeros")).flatten().tolist()


@pytest.mark.parametrize("mode", ["replicate", "zeros"])
def test_source_frames_are_the_references(mode):
    for frames, past, has_state in itertools.product(range(1, 6), range(5), (False, True)):
        body = torch.arange(1.0, frames + 1).reshape(1, 1, -1, 1, 1)
        state = -torch.arange(1.0, past + 1).reshape(1, 1, -1, 1, 1) if has_state else None
        expected = padded_frames(body, state, past, mode)
        for t, value in enumerate(expected):
            name, index = EMULATION.source_frame(t, past, has_state, mode)
            assert {"body": index + 1, "state": -index - 1, "zero": 0}[name] == value


# ---------------------------------------------------------------- taps


def outputs(frames, kernel, dilation, stride, mode):
    return output_size((1, 1, frames, 1, 1), (kernel, 1, 1), (stride, 1, 1), (dilation, 1, 1), mode, "valid")[
        0
    ]


def seen_by_the_reference(frames, kernel, dilation, stride, has_state, mode):
    """For every output and tap: the frame, numbered from 1, states from -1 downwards, 0 for zero."""
    past = 0 if mode == "valid" else dilation * (kernel - 1)
    body = torch.arange(1.0, frames + 1).reshape(1, 1, -1, 1, 1)
    state = -torch.arange(1.0, past + 1).reshape(1, 1, -1, 1, 1) if has_state else None
    fill = "zeros" if mode == "valid" else mode
    padded = padded_frames(body, state, past, fill)
    count = outputs(frames, kernel, dilation, stride, mode)
    return [[padded[z * stride + k * dilation] for k in range(kernel)] for z in range(count)]


TAPS = [
    (frames, kernel, dilation, stride, has_state, mode)
    for frames, kernel, dilation, stride in itertools.product(range(1, 9), range(1, 6), range(1, 4), (1, 2))
    for has_state, mode in (
        (False, "replicate"),
        (True, "replicate"),
        (False, "zeros"),
        (True, "zeros"),
        (False, "valid"),
    )
    if outputs(frames, kernel, dilation, stride, mode) >= 1
]


def test_taps_see_what_the_reference_sees():
    for frames, kernel, dilation, stride, has_state, mode in TAPS:
        taps = EMULATION.time_taps(frames, kernel, dilation, stride, has_state, mode)
        expected = seen_by_the_reference(frames, kernel, dilation, stride, has_state, mode)
        # The convolution that is launched, with these zeros and copied frames, has as many outputs.
        reach = taps.step * (taps.count - 1)
        assert (frames + taps.zeros + taps.copied - reach - 1) // stride + 1 == len(expected)
        for z, row in enumerate(expected):
            sources = (EMULATION.frame_of_tap(z, k, stride, taps, has_state, mode) for k in range(taps.count))
            got = [{"body": i + 1, "state": -i - 1, "zero": 0}[name] for name, i in sources]
            if taps.summed:
                assert kernel > 2 and got == [row[0]] * 2 and row == [row[0]] * kernel
            elif frames == 1 and mode == "replicate" and not has_state and kernel == 2:
                assert got == row == [1, 1]
            else:
                skipped, kept = row[: taps.first], row[taps.first : taps.first + taps.count]
                assert got == kept and not any(skipped) and taps.first + taps.count == kernel


def test_single_frames_are_folded():
    taps = EMULATION.time_taps(1, 3, 1, 1, False, "zeros")
    assert (taps.first, taps.count, taps.zeros, taps.copied, taps.summed) == (2, 1, 0, 0, False)
    taps = EMULATION.time_taps(1, 3, 1, 1, False, "replicate")
    assert (taps.count, taps.copied, taps.summed) == (2, 1, True)
    for state, mode in ((True, "zeros"), (True, "replicate"), (False, "valid")):
        taps = EMULATION.time_taps(1, 3, 1, 1, state, mode)
        assert (taps.first, taps.count, taps.summed) == (0, 3, False)


def test_no_tap_sees_zeros_alone():
    for frames, kernel, dilation, stride, has_state, mode in TAPS:
        taps = EMULATION.time_taps(frames, kernel, dilation, stride, has_state, mode)
        last = outputs(frames, kernel, dilation, stride, mode) - 1
        for k in range(taps.count):
            assert EMULATION.frame_of_tap(last, k, stride, taps, has_state, mode)[0] != "zero"


def test_pieces_of_time_see_what_the_whole_sees():
    for frames, kernel, step, stride in itertools.product(range(1, 8), range(1, 5), range(1, 4), (1, 2)):
        for zeros in range(step * (kernel - 1) + 1):
            count = (frames + zeros - step * (kernel - 1) - 1) // stride + 1
            for first in range(count):
                for length in range(1, count - first + 1):
                    source, held, front = EMULATION.time_piece(
                        first, length, frames, kernel, step, stride, zeros
                    )
                    assert (held + front - step * (kernel - 1) - 1) // stride + 1 >= length
                    assert source >= 0 and front >= 0 and source + held <= frames
                    for z, k in itertools.product(range(length), range(kernel)):
                        whole = (first + z) * stride + k * step - zeros
                        piece = z * stride + k * step - front
                        if whole < 0:
                            assert piece < 0
                        else:
                            assert 0 <= piece < held and source + piece == whole


# ---------------------------------------------------------------- tiles


def test_each_channel_count_takes_the_cheapest_tile():
    tiles = EMULATION.conv_tiles()
    assert len({(m, n, k) for m, n, k, _ in tiles}) == len(tiles)

    def cost(tile, cin, cout):
        _, n, k, percent = tile
        return -(-cout // n) * n * -(-cin // k) * k / percent

    for cin, cout in itertools.product((8, 16, 96, 128, 160, 192, 256, 320, 384, 512, 640, 1024), repeat=2):
        chosen = tiles[EMULATION.choose_conv_tile(cin, cout)]
        # Costs are compared in whole numbers, so that close ones may tie.
        assert cost(chosen, cin, cout) <= min(cost(tile, cin, cout) for tile in tiles) * 1.001
    widths = {c: tiles[EMULATION.choose_conv_tile(c, c)][1] for c in (96, 128, 160, 192, 256, 384, 512, 640)}
    assert widths == {96: 96, 128: 128, 160: 192, 192: 192, 256: 256, 384: 192, 512: 256, 640: 128}


def test_what_shared_memory_feeds_is_counted_right():
    for m, n, _, percent in EMULATION.conv_tiles():
        tensor_cores = m * n * 16 / 2048
        read = m // 64 * (64 + n) * 16 * 2 / 128
        written = (m + n) * 16 * 2 / 128
        assert percent == min(100, round(100 * tensor_cores / (read + written)))


# ---------------------------------------------------------------- the padding kernels

LAYOUTS = [
    "contiguous",
    "channels_last",
    "sliced",
    "sliced_channels_last",
    "aligned_channels_last",
    "permuted",
]
DTYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def in_layout(tensor, layout):
    """The same values; "sliced" ones are a window into a larger tensor, surrounded by -1."""
    if layout == "permuted":
        return tensor.permute(0, 3, 2, 1, 4).contiguous().permute(0, 3, 2, 1, 4)
    last = layout.endswith("channels_last")
    memory_format = torch.channels_last_3d if last else torch.contiguous_format
    if layout in ("contiguous", "channels_last"):
        return tensor.contiguous(memory_format=memory_format)
    aligned = layout == "aligned_channels_last"  # like the body of a FrameBuffer
    margins = (0, 0, 2, 1, 1) if aligned else (1, 1, 1, 1, 1)
    shape = [n + 2 * margin for n, margin in zip(tensor.shape, margins, strict=True)]
    large = torch.full(shape, -1, dtype=torch.int64).to(tensor.dtype).contiguous(memory_format=memory_format)
    window = large[tuple(slice(m, m + n) for m, n in zip(margins, tensor.shape, strict=True))]
    window.copy_(tensor)
    return window


def values(shape, itemsize, seed):
    generator = torch.Generator().manual_seed(seed)
    most = min(2 ** (8 * itemsize - 1), 2**60)
    return torch.randint(1, most, shape, generator=generator, dtype=torch.int64).to(DTYPES[itemsize])


PAD_CASES = [
    # shape, past frames, (top, bottom, left, right)
    ((2, 5, 3, 6, 7), 2, (1, 1, 1, 1)),
    ((1, 3, 1, 5, 4), 2, (0, 0, 0, 0)),
    ((1, 16, 2, 3, 4), 1, (2, 0, 3, 1)),
    ((2, 8, 2, 3, 3), 0, (1, 2, 0, 2)),
    ((2, 1, 2, 3, 3), 3, (0, 1, 1, 0)),
    ((1, 24, 1, 9, 8), 2, (0, 0, 0, 0)),
    ((1, 70, 2, 3, 67), 1, (1, 0, 2, 2)),  # several tiles of a transpose
    ((1, 64, 1, 40, 3), 1, (1, 1, 1, 1)),  # several blocks to a frame
]


def emulate(out, x, state, past, halo, front, mode):
    tensors = [None if t is None else native.describe(t) for t in (out, x, state)]
    temporal_mode = "zeros" if front == "state" else front
    return EMULATION.causal_pad3d(*tensors, past, halo, temporal_mode, mode, out.element_size())


@pairs(case=PAD_CASES, front=["state", "replicate", "zeros"], mode=["zeros", "replicate", "reflect"])
def test_the_threads_write_every_item_once_and_from_the_right_source(case, front, mode, seed):
    shape, past, halo = case
    seen = set()
    body = (..., slice(past, None), slice(halo[0], halo[0] + shape[3]), slice(halo[2], halo[2] + shape[4]))
    for number, itemsize in enumerate(DTYPES):
        x = values(shape, itemsize, seed)
        state = values((*shape[:2], past, *shape[3:]), itemsize, seed + 1) if front == "state" else None
        temporal_mode = "zeros" if front == "state" else front
        expected = causal_pad3d_reference(PadArgs(x, state, past, halo, temporal_mode, mode))
        border = expected.numel() - x.numel()
        for source, target in itertools.product(LAYOUTS, LAYOUTS):
            source_state = (
                None if state is None else in_layout(state, LAYOUTS[(number + len(seen)) % len(LAYOUTS)])
            )
            out = in_layout(torch.full_like(expected, -1), target)
            transposes, width, _, written = emulate(
                out, in_layout(x, source), source_state, past, halo, front, mode
            )
            seen.add((transposes, width))
            assert torch.equal(out, expected), f"copy of {itemsize} bytes, {source} to {target}"
            around = out if out._base is None else out._base
            assert (around == torch.tensor(-1).to(out.dtype)).sum() == around.numel() - out.numel()
            assert written * width == expected.numel() * itemsize

            storage = in_layout(torch.full_like(expected, -1), target)
            storage[body] = x
            transposes, width, _, written = emulate(storage, None, source_state, past, halo, front, mode)
            assert torch.equal(storage, expected), f"{itemsize} bytes in place, {target}"
            assert written * width == border * itemsize and not transposes


def test_the_threads_leave_the_surroundings_alone():
    large = torch.full((1, 8, 9, 11, 12), 7, dtype=torch.int16).contiguous(
        memory_format=torch.channels_last_3d
    )
    window = large[:, :, 1:6, 2:8, 2:9]
    _, width, _, _ = emulate(window, None, None, 2, (1, 1, 1, 1), "zeros", "zeros")
    assert width == 16
    outside = torch.ones_like(large, dtype=torch.bool)
    outside[:, :, 1:6, 2:8, 2:9] = False
    assert (large[outside] == 7).all()


@pytest.mark.parametrize(
    ("shape", "last", "halo", "dtype", "width"),
    [
        ((1, 128, 4, 6, 6), True, 1, torch.int16, 16),  # a FrameBuffer of a VAE, with or without halo
        ((1, 128, 4, 6, 6), True, 0, torch.int16, 16),
        ((1, 4, 4, 6, 6), True, 1, torch.int16, 8),
        ((1, 6, 4, 6, 6), True, 1, torch.int16, 4),
        ((1, 3, 4, 6, 6), True, 1, torch.int16, 2),
        ((1, 3, 4, 8, 6), False, 0, torch.int16, 16),  # whole frames follow each other
        ((1, 3, 4, 6, 6), False, 0, torch.int16, 8),
        ((1, 3, 4, 6, 6), False, 1, torch.int16, 2),  # the halo shifts rows against each other
        ((1, 3, 4, 4, 4), False, 0, torch.int32, 16),
    ],
)
def test_words_are_as_wide_as_memory_allows(shape, last, halo, dtype, width):
    memory_format = torch.channels_last_3d if last else torch.contiguous_format
    padded = (*shape[:2], shape[2] + 2, shape[3] + 2 * halo, shape[4] + 2 * halo)
    x = torch.zeros(shape, dtype=dtype).contiguous(memory_format=memory_format)
    out = torch.empty(padded, dtype=dtype).contiguous(memory_format=memory_format)
    for source in (x, None):
        assert emulate(out, source, None, 2, (halo,) * 4, "replicate", "zeros")[1] == width


def test_only_a_change_of_layout_goes_through_tiles():
    x = torch.zeros(1, 8, 2, 4, 4)
    last = x.contiguous(memory_format=torch.channels_last_3d)
    outs = (
        torch.zeros(1, 8, 4, 6, 6),
        torch.zeros(1, 8, 4, 6, 6).contiguous(memory_format=torch.channels_last_3d),
    )
    for source, out in itertools.product((x, last), outs):
        changes = source.is_contiguous() != out.is_contiguous()
        assert emulate(out, source, None, 2, (1, 1, 1, 1), "zeros", "zeros")[0] == changes


def test_the_grid_is_the_border_alone():
    """Two frames in front of 36, no halo: the blocks of two frames, nothing for the others."""
    storage = torch.zeros(1, 64, 38, 16, 16, dtype=torch.int16).contiguous(
        memory_format=torch.channels_last_3d
    )
    _, width, blocks, written = emulate(storage, None, None, 2, (0, 0, 0, 0), "replicate", "zeros")
    assert width == 16 and written == 2 * 64 * 16 * 16 // 8 and blocks == written // 1024
    _, _, blocks, _ = emulate(storage, None, None, 0, (0, 0, 0, 0), "replicate", "zeros")
    assert blocks == 0


def test_padding_of_nothing():
    assert emulate(torch.empty(0, 3, 4, 5, 6), None, None, 2, (1, 1, 1, 1), "replicate", "reflect")[2:] == (
        0,
        0,
    )


def test_a_frame_too_large_for_the_counters_is_refused():
    sizes, strides = (1, 2**16, 2, 2**8, 2**8), (2**33, 2**16, 2**32, 2**8, 1)
    with pytest.raises(
        ValueError, match=r"a padded frame has 4294967296 items, the kernel takes fewer than 2\^31"
    ):
        EMULATION.causal_pad3d((1, sizes, strides), None, None, 1, (0, 0, 0, 0), "zeros", "zeros", 1)


# ---------------------------------------------------------------- what the convolutions refuse


def good_conv():
    """out, x, weight, bias, residual, stride, dilation, before, after, dtype; no address is followed."""
    x = ((1, 16, 5, 6, 7), (16 * 5 * 6 * 7, 1, 16 * 6 * 7, 16 * 7, 16))
    weight = ((24, 16, 3, 3, 3), (16 * 27, 1, 16 * 9, 16 * 3, 16))
    out = ((1, 24, 5, 6, 7), (24 * 5 * 6 * 7, 1, 24 * 6 * 7, 24 * 7, 24))
    tensors = [(64, *out), (64, *x), (64, *weight), None, None]
    return [*tensors, (1, 1, 1), (1, 1, 1), (2, 1, 1), (0, 1, 1), "bfloat16"]


def test_a_fitting_convolution_is_accepted():
    EMULATION.check_conv(*good_conv())
    window = good_conv()  # a window into a larger buffer
    window[0] = (64, (1, 24, 5, 6, 7), (24 * 9 * 90, 1, 24 * 90, 24 * 9, 24))
    window[4] = window[0]
    EMULATION.check_conv(*window)
    single = good_conv()  # strides of dimensions of size 1 mean nothing
    single[1] = (64, (1, 16, 1, 6, 7), (3, 1, 5, 16 * 7, 16))
    single[0] = (64, (1, 24, 1, 6, 7), (7, 1, 1, 24 * 7, 24))
    single[2] = (64, (24, 16, 1, 3, 3), (16 * 27, 1, 16 * 9, 16 * 3, 16))
    single[7] = (0, 1, 1)
    EMULATION.check_conv(*single)


@pytest.mark.parametrize(
    ("index", "value", "sentence"),
    [
        (0, (64, (1, 24, 5, 6, 8), (1, 1, 1, 1, 1)), r"out has sizes .* expected \(1, 24, 5, 6, 7\)"),
        (0, (0, (1, 24, 5, 6, 7), (1, 1, 1, 1, 1)), "out has a null address"),
        (
            0,
            (72, (1, 24, 5, 6, 7), (5040, 1, 1008, 168, 24)),
            "out lies at an address that 16 does not divide",
        ),
        (0, (64, (1, 24, 5, 6, 7), (5040, 210, 42, 7, 1)), "out has strides .* expected channels innermost"),
        (0, (64, (1, 24, 5, 6, 7), (5040, 1, 1008, 24, 24)), "out has strides"),
        (1, (64, (1, 16, 5, 6, 7), (3360, 1, 672, 112, 20)), "x has strides .* in multiples of 8"),
        (1, (64, (1, 16, 0, 6, 7), (3360, 1, 672, 112, 16)), "expected none of them zero"),
        (2, (64, (24, 8, 3, 3, 3), (216, 1, 72, 24, 8)), "expected 16 input channels"),
        (2, (64, (24, 16, 3, 3, 3), (432, 27, 9, 3, 1)), "weight has strides"),
        (2, (64, (24, 16, 3, 3, 3), (864, 1, 288, 48, 16)), "expected its taps one after another"),
        (3, 8, "bias lies at an address"),
        (4, (64, (1, 24, 5, 6, 6), (1, 1, 1, 1, 1)), r"residual has sizes .* expected \(1, 24, 5, 6, 7\)"),
        (5, (3, 1, 1), "expected strides of 1 or 2"),
        (6, (0, 1, 1), "dilations of at least 1"),
        (6, (9, 1, 1), "reaches over 18 elements, expected at most 16"),
        (7, (3, 1, 1), "no more than the kernel reaches"),
        (8, (-1, 1, 1), "expected none negative"),
        (9, "float32", "expected bfloat16 or float16"),
        (9, "float64", "got 'float64'"),
    ],
)
def test_the_convolutions_refuse(index, value, sentence):
    arguments = good_conv()
    arguments[index] = value
    with pytest.raises(ValueError, match=sentence):
        EMULATION.check_conv(*arguments)


def test_channels_come_in_eights_and_coordinates_in_32_bits():
    arguments = good_conv()
    arguments[1], arguments[2] = (
        (64, (1, 12, 5, 6, 7), (2520, 1, 504, 84, 12)),
        (64, (24, 12, 3, 3, 3), (324, 1, 108, 36, 12)),
    )
    with pytest.raises(ValueError, match="x has 12 channels, expected a multiple of 8"):
        EMULATION.check_conv(*arguments)
    arguments = good_conv()
    side = 2**11
    for i, channels in ((0, 24), (1, 16)):
        strides = (channels * 2**31, 1, channels * side * side, channels * side, channels)
        arguments[i] = (64, (1, channels, 2**9, side, side), strides)
    with pytest.raises(ValueError, match="2147483648 pixels, the kernel takes at most 2147482624"):
        EMULATION.check_conv(*arguments)
