"""What lives at the same time lies side by side, and views outlive the memory under them."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from causalvae_kernels.coder.arena import Arena, Span, place

SPANS = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(0, 12), st.integers(0, 6)).map(
        lambda t: Span(t[0], t[1], t[1] + t[2])
    ),
    max_size=14,
)


@given(SPANS)
def test_what_lives_at_the_same_time_does_not_overlap(spans):
    offsets, total = place(spans)
    for i, (a, at) in enumerate(zip(spans, offsets, strict=True)):
        assert at % 64 == 0 and 0 <= at and at + a.size <= total
        for b, other in zip(spans[i + 1 :], offsets[i + 1 :], strict=True):
            if a.first <= b.last and b.first <= a.last:
                assert at + a.size <= other or other + b.size <= at


@given(SPANS)
def test_no_more_than_everything_beside_one_another(spans):
    _, total = place(spans)
    alive = [sum(s.size for s in spans if s.first <= t <= s.last) for t in range(20)]
    assert max(alive, default=0) <= total <= sum(-(-s.size // 64) * 64 for s in spans)


def test_a_chain_takes_two_places():
    """Each value is read by the next step alone: the third lies where the first lay."""
    offsets, total = place([Span(640, n, n + 1) for n in range(6)])
    assert total == 1280 and offsets[0] == offsets[2] == offsets[4] != offsets[1]


def test_views_stay_while_the_memory_comes_and_goes():
    arena = Arena(torch.device("cpu"))
    arena.reserve(1024)
    with torch.inference_mode():
        view = arena.view(64, (2, 3), (3, 1), torch.float32)
    view.fill_(1.0)  # no tensor of the inference mode
    arena.release()
    assert view.untyped_storage().nbytes() == 0
    arena.reserve(512)
    view.copy_(torch.arange(6.0).view(2, 3))
    assert view.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    arena.reserve(4096)
    assert view.untyped_storage().nbytes() == 4096
    assert arena.view(68, (5,), (1,), torch.float32).data_ptr() == view.data_ptr() + 4
