"""Whether tensors share memory: against the elements that they touch, for random and for common layouts."""

import random

import pytest
import torch

from causalvae_kernels.core.overlap import is_same_memory, overlaps_itself, share_memory


def bytes_of(view):
    """Every byte that an element of `view` begins at, and those behind it."""
    offsets = torch.zeros((), dtype=torch.int64)
    for n, s in zip(view.shape, view.stride(), strict=True):
        offsets = offsets.unsqueeze(-1) + torch.arange(n) * s
    size = view.element_size()
    first = (offsets.flatten() * size + view.data_ptr()).tolist()
    return [at + byte for at in first for byte in range(size)]


def random_view(storage, rng):
    """A strided view of any layout, some of them with elements that lie upon each other."""
    shape, stride, room = [], [], storage.numel()
    for _ in range(rng.randrange(1, 5)):
        n, s = (
            rng.randrange(0 if rng.random() < 0.05 else 1, 5),
            rng.choice([0, 1, 1, 2, 3, 4, 6, 8, 12, 24, 60]),
        )
        if (n - 1) * s < room:
            room -= max(n - 1, 0) * s
            shape.append(n)
            stride.append(s)
    return storage.as_strided(shape, stride, rng.randrange(room))


def test_random_views_against_the_bytes_that_they_touch(seed):
    rng, found = random.Random(seed), set()
    storage = torch.zeros(240)
    for _ in range(2000):
        a = random_view(storage, rng)
        b = random_view(storage if rng.random() < 0.5 else storage.view(torch.bfloat16), rng)
        touched_a, touched_b = bytes_of(a), bytes_of(b)
        expected = bool(set(touched_a) & set(touched_b))
        assert share_memory(a, b) == share_memory(b, a) == expected, (
            a.shape,
            a.stride(),
            b.shape,
            b.stride(),
        )
        itself = len(set(touched_a)) < len(touched_a)
        assert overlaps_itself(tuple(a.shape), a.stride()) == itself, (a.shape, a.stride())
        found |= {("shared", expected), ("itself", itself)}
    assert len(found) == 4


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_slices_along_one_dimension(memory_format):
    """Large ones: nothing is enumerated."""
    storage = torch.empty((2, 512, 9, 60, 106), memory_format=memory_format)
    for dim in range(5):
        half = storage.shape[dim] // 2
        first, second = storage.narrow(dim, 0, half), storage.narrow(dim, half, half)
        assert not share_memory(first, second) and not share_memory(second, first)
        assert share_memory(first, storage.narrow(dim, half - 1, half))
        assert share_memory(first.transpose(3, 4), first) and not share_memory(first, second.transpose(3, 4))
        even, odd = ((slice(None),) * dim + (slice(start, None, 2),) for start in (0, 1))
        assert not share_memory(storage[even], storage[odd]) and share_memory(storage[even], storage)
    assert not overlaps_itself(tuple(storage.shape), storage.stride())


def test_same_memory_looks_at_strides_where_there_are_two_elements():
    x = torch.zeros(2, 3, 1, 4, 4)
    assert is_same_memory(x, x.as_strided(x.shape, (48, 16, 7, 4, 1)))
    assert not is_same_memory(x, x.transpose(3, 4))
    assert not is_same_memory(x, x[:, :, :, 1:])
    assert not is_same_memory(x, x.view(torch.int32))
    assert not is_same_memory(x, x.clone())


def test_tensors_of_two_storages_over_one_array():
    array = torch.zeros(10).numpy()
    assert share_memory(torch.from_numpy(array[:6]), torch.from_numpy(array[5:]))
    assert not share_memory(torch.from_numpy(array[:5]), torch.from_numpy(array[5:]))


def test_what_has_no_address_shares_nothing():
    x = torch.empty(2, 3, device="meta")
    assert not share_memory(x, x.clone()) and is_same_memory(x, x) and not is_same_memory(x, x.clone())
