"""Packed weights: kept, never stale, under a budget, freed."""

import copy
import gc
import importlib
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from causalvae_kernels import (
    InvalidInput,
    causal_conv3d,
    packed_size,
    release_packed_weights,
    use_packed_budget,
)
from causalvae_kernels.core import native, packed
from causalvae_kernels.ops.causal_conv3d.backends.cpu import winograd_packing

pytestmark = pytest.mark.skipif(native.why_no_cpu() is not None, reason=str(native.why_no_cpu()))

X = torch.randn(1, 16, 2, 8, 8)
# Bytes of one weight, packed: output channels are filled up to two vectors.
ONE = 0 if native.why_no_cpu() else winograd_packing(torch.empty(16, 16, 3, 3, 3), native.cpu_isa()).size


@pytest.fixture(autouse=True)
def nothing_kept():
    release_packed_weights()
    yield
    release_packed_weights()


def convolve(weight):
    return causal_conv3d(X.to(weight.dtype), weight, backend="cpu")


def fresh(weight):
    """What the weights give now, packed for this call from a copy."""
    return causal_conv3d(X.to(weight.dtype), weight.detach().clone(), backend="cpu")


@pytest.fixture
def weight():
    return torch.nn.Parameter(torch.randn(16, 16, 3, 3, 3), requires_grad=False)


@pytest.fixture
def packings(monkeypatch):
    """Counts how often weights are packed."""
    calls = []

    def find(weight, kind, size, pixels, pack):
        return packed.find_packed(weight, kind, size, pixels, lambda: calls.append(kind) or pack())

    module = importlib.import_module("causalvae_kernels.ops.causal_conv3d.backends.cpu")
    monkeypatch.setattr(module, "find_packed", find)
    return calls


def test_packed_once(weight, packings):
    first = convolve(weight)
    assert torch.equal(convolve(weight), first)
    assert torch.equal(convolve(weight.view(weight.shape)), first)
    assert len(packings) == 1
    assert packed_size() == ONE


def with_data_copy(w):
    w.data.copy_(torch.randn_like(w))


def with_in_place(w):
    w.mul_(2)


def with_ema(w):
    w.data.lerp_(torch.randn_like(w), 0.01)


def with_another_storage(w):
    w.data = torch.randn_like(w)


def with_numpy(w):
    w.detach().numpy()[...] += 1


@pytest.mark.parametrize(
    "change",
    [with_data_copy, with_in_place, with_ema, with_another_storage, with_numpy],
    ids=lambda c: c.__name__,
)
def test_a_change_is_noticed(weight, change):
    before = convolve(weight)
    change(weight)
    got = convolve(weight)
    assert torch.equal(got, fresh(weight))
    assert not torch.equal(got, before)


def test_a_cast_module_packs_again():
    conv = torch.nn.Conv3d(16, 16, 3).requires_grad_(False)
    convolve(conv.weight)
    conv.to(torch.bfloat16)
    assert torch.equal(convolve(conv.weight), fresh(conv.weight))


def test_inference_tensors(packings):
    with torch.inference_mode():
        weight = torch.randn(16, 16, 3, 3, 3)
        convolve(weight)
        weight.add_(1)  # no version counter tells
        assert torch.equal(convolve(weight), fresh(weight))


def test_a_copy_has_its_own(weight):
    convolve(weight)
    other = copy.deepcopy(weight)
    other.data.add_(1)
    assert torch.equal(convolve(other), fresh(other))
    assert torch.equal(convolve(weight), fresh(weight))


def test_weights_that_are_gone_free_theirs(weight):
    convolve(weight)
    one = packed_size()
    convolve(torch.randn(16, 16, 3, 3, 3))
    gc.collect()
    assert packed_size() == one


def test_a_temporary_view_of_an_inference_tensor(packings):
    with torch.inference_mode():
        flat = torch.randn(16, 16, 3, 3)
        for _ in range(3):
            convolve(flat.unsqueeze(2))
        del flat
    assert len(packings) == 1
    assert packed_size() == 0


def test_a_temporary_view_does_not_free_them(weight, packings):
    flat = torch.nn.Parameter(torch.randn(16, 16, 3, 3), requires_grad=False)
    for _ in range(3):
        convolve(flat.unsqueeze(2))
    assert len(packings) == 1


def test_release(weight, packings):
    other = torch.nn.Parameter(torch.randn(16, 16, 3, 3, 3), requires_grad=False)
    convolve(weight), convolve(other)
    both = packed_size()
    release_packed_weights([weight])
    assert packed_size() == both // 2
    convolve(other)
    assert len(packings) == 2


def kept():
    """References to the packed tensors that exist."""
    return [weakref.ref(pack.packed) for pack in packed._packs.values()]


@pytest.mark.parametrize("how", ["release", "change", "cast", "death"])
def test_the_memory_is_freed_while_the_weights_live(how):
    conv = torch.nn.Conv3d(16, 16, 3).requires_grad_(False)
    convolve(conv.weight)
    (before,) = kept()
    if how == "release":
        release_packed_weights([conv.weight])
    elif how == "change":
        conv.weight.mul_(2)
        convolve(conv.weight)
    elif how == "cast":
        conv.to(torch.bfloat16)
        convolve(conv.weight)
    else:
        del conv
    gc.collect()
    assert before() is None


def test_one_of_two_threads_packs(weight, packings):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: convolve(weight), range(16)))
    assert len(packings) == 1


def test_the_budget(weight, monkeypatch):
    other = torch.nn.Parameter(torch.randn(16, 16, 3, 3, 3), requires_grad=False)
    with use_packed_budget(ONE):
        convolve(weight), convolve(other)
        assert packed_size() == ONE
    release_packed_weights()
    monkeypatch.setenv("CAUSALVAE_KERNELS_PACKED_MIB", "0")
    convolve(weight)
    assert packed_size() == 0
    monkeypatch.setenv("CAUSALVAE_KERNELS_PACKED_MIB", "1")
    assert packed.packed_budget() == 2**20
    monkeypatch.setenv("CAUSALVAE_KERNELS_PACKED_MIB", "lots")
    with pytest.raises(InvalidInput, match="got 'lots', expected a whole number"):
        convolve(weight)


def _weights(count):
    return [torch.nn.Parameter(torch.randn(16, 16, 3, 3, 3), requires_grad=False) for _ in range(count)]


def _has_room(weight):
    packing = winograd_packing(weight, native.cpu_isa())
    return packed.has_room(weight, packing.kind, packing.size, X[0, 0].numel())


@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_what_lies_idle_makes_room_for_what_is_asked_for_twice(packings, backend):
    encoder, decoder = _weights(3), _weights(4)

    def run(weights):
        packings.clear()
        for weight in weights:
            if backend == "cpu" or _has_room(weight):
                convolve(weight)
        return len(packings)

    with use_packed_budget(5 * ONE):
        assert run(encoder) == 3
        run(decoder)
        before = packed_size()
        assert before == 5 * ONE, "the first call takes the room that is left"
        packed_since = sum(run(decoder) for _ in range(4))
        assert packed_since == 2, "later ones that of the encoder's, which are not used any more"
        assert packed_size() == 5 * ONE
        assert run(decoder) == 0


@pytest.mark.parametrize("times", [0, 1, 2])
def test_weights_that_are_all_in_use_do_not_replace_one_another(packings, times):
    weights = _weights(4)
    with use_packed_budget(2 * ONE):
        for weight in weights:
            convolve(weight)
        packings.clear()
        for _ in range(9):
            for weight in weights:
                for _ in range(times):
                    _has_room(weight)
                convolve(weight)
        assert not packings and packed_size() == 2 * ONE


def test_models_in_turns_keep_what_they_have(packings):
    first, second = _weights(2), _weights(2)
    with use_packed_budget(3 * ONE):
        for _ in range(9):
            for weight in (*first, *second):
                convolve(weight)
        assert len(packings) == 3


def per_turn(packings, turns, *parts):
    """How often weights are packed in each turn of all parts: (calls, weights, input)."""
    counts = []
    for _ in range(turns):
        packings.clear()
        for calls, weights, x in parts:
            for _ in range(calls):
                for weight in weights:
                    causal_conv3d(x, weight, backend="cpu")
        counts.append(len(packings))
    return counts


@pytest.mark.parametrize("calls", [1, 3, 6])
def test_an_encoder_and_a_decoder_in_turns_settle(packings, calls):
    with use_packed_budget(4 * ONE):
        counts = per_turn(packings, 20, (calls, _weights(4), X), (calls, _weights(4), X))
    assert sum(counts) >= 4 and not any(counts[-8:]), counts


def test_one_large_call_among_many_small_ones_settles(packings):
    small, large = _weights(4), _weights(4)
    with use_packed_budget(4 * ONE):
        counts = per_turn(packings, 60, (6, small, X), (1, large, torch.cat([X, X, X, X], dim=4)))
    assert sum(count > 0 for count in counts[-30:]) <= 3, counts


def test_one_weight_in_a_row_does_not_make_the_others_idle(packings):
    weights = [weight for weight in _weights(6) for _ in range(20)]
    with use_packed_budget(2 * ONE):
        counts = per_turn(packings, 6, (1, weights, X))
    assert counts == [2, 0, 0, 0, 0, 0]


def test_a_smaller_budget_leaves_what_is_kept(packings):
    mine, other = _weights(4), _weights(1)
    with use_packed_budget(4 * ONE):
        assert per_turn(packings, 1, (1, mine, X)) == [4]
    with use_packed_budget(ONE):
        assert per_turn(packings, 9, (5, other, torch.cat([X, X], dim=4))) == [0] * 9
    with use_packed_budget(4 * ONE):
        assert per_turn(packings, 2, (1, mine, X)) == [0, 0]


def test_what_waits_goes_with_the_weights_and_with_a_release():
    weights = _weights(3)
    with use_packed_budget(ONE):
        for weight in weights:
            convolve(weight)
        assert len(packed._waits) == 2
        release_packed_weights(weights[1:2])
        assert len(packed._waits) == 1
        del weight, weights[1:]
        packed_size()
        assert not packed._waits


def test_what_is_used_rarely_gives_way_and_does_not_come_back(packings):
    rare, often = _weights(2), _weights(2)
    with use_packed_budget(3 * ONE):
        for _ in range(5):
            for weight in (*rare, *(10 * often)):
                convolve(weight)
        assert len(packings) == 4, "one of the rare ones gave way, once"


def test_where_more_pixels_are_computed_the_room_is_better_used(packings):
    narrow, wide = _weights(2), _weights(2)

    def run(weights, x):
        return [causal_conv3d(x, weight, backend="cpu") for weight in weights]

    def decode():
        return run(narrow, X) + run(wide, torch.cat([X, X], dim=4))

    with use_packed_budget(3 * ONE):
        first = decode()
        assert len(packings) == 4 and packed_size() == 3 * ONE
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(decode()[2:], first[2:], strict=True))
        assert len(packings) == 4, "those of fewer pixels do not come back"


@pytest.mark.parametrize("size", [-1, 1.5, "1", None])
def test_a_budget_is_a_number_of_bytes(size):
    with pytest.raises(InvalidInput, match="expected a number of bytes"), use_packed_budget(size):
        pass


def test_two_python_threads(weight):
    expected = fresh(weight)
    with ThreadPoolExecutor(2) as pool:
        for got in pool.map(lambda _: convolve(weight), range(20)):
            assert torch.equal(got, expected)


def test_fingerprint_sees_every_sampled_element():
    module = native.cpu_module()
    for tensor in (
        torch.randn(3, 5, 1, 2, 2),
        torch.randn(2, 2, 3, 3, 3).bfloat16(),
        torch.zeros(1, 1, 1, 1, 1),
    ):
        before = module.fingerprint(native.describe(tensor), tensor.element_size())
        for index in range(tensor.numel()):
            changed = tensor.clone()
            changed.view(-1)[index] += 1
            assert module.fingerprint(native.describe(changed), tensor.element_size()) != before
        window = torch.zeros(*tensor.shape[:4], 2 * tensor.shape[4], dtype=tensor.dtype)[..., ::2]
        window.copy_(tensor)
        assert module.fingerprint(native.describe(window), tensor.element_size()) == before
        last = tensor.contiguous(memory_format=torch.channels_last_3d)
        before = module.fingerprint(native.describe(last), tensor.element_size())
        for index in range(tensor.numel()):
            changed = last.clone()
            changed.permute(0, 2, 3, 4, 1).reshape(-1)[index] += 1
            assert module.fingerprint(native.describe(changed), tensor.element_size()) != before


def many_weights(count):
    """Weights that are kept packed; what is packed of each is one number."""
    weights = [torch.zeros(1, 1, 1, 1, 1) for _ in range(count)]
    for weight in weights:
        packed.find_packed(weight, "test", 4, 1, lambda: torch.zeros(1))
    return weights


@contextmanager
def at_every_collection(act):
    """Call `act` whenever the garbage collector runs, which it does at every other allocation."""
    pairs = []

    def callback(phase, info):
        if phase == "start":
            act()
            pairs.extend([(n, n) for n in range(100)])  # a pair that is used again is no allocation

    threshold = gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(1)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(callback)


LOOPS = {
    "size": packed_size,
    "release": lambda: release_packed_weights([X]),
    "room": lambda: packed.has_room(torch.zeros(1, 1, 1, 1, 2), "test", 2**20, 1),
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("how", ["dropped", "released by a finalizer"])
def test_weights_that_go_while_the_packs_are_looped_over(loop, how):
    weights = many_weights(50)

    def act():
        if weights:
            gone = weights.pop()
            if how != "dropped":
                release_packed_weights([gone])

    with use_packed_budget(4 * 50), at_every_collection(act):
        for _ in range(5):
            LOOPS[loop]()
    left = len(weights)
    assert left < 50, "the collector did not run"
    assert packed_size() == 4 * left


def test_an_entry_goes_with_its_weights():
    many_weights(5)
    gc.collect()
    kept_one = many_weights(1)
    packed_size()
    assert len(packed._packs) == len(kept_one)
