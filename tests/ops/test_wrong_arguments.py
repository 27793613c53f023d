"""What is no dense tensor, or larger than 64 bits can count, is refused in our words by every public op."""

import pytest
import torch

import causalvae_kernels as ck
from causalvae_kernels import FrameBuffer, InvalidInput

X, W = torch.zeros(1, 4, 3, 6, 6), torch.zeros(4, 4, 3, 3, 3)
FLAT, VECTOR = torch.zeros(4, 4, 1, 3, 3), torch.zeros(4)


def buffer():
    return FrameBuffer.empty(X.shape, head_room=2)


# op: its tensors by position, then keyword arguments; every tensor among them is replaced in turn.
CALLS = {
    ck.causal_conv3d: ([X, W, VECTOR], {"initial_state": X[:, :, :2], "residual": X, "out": X.clone()}),
    ck.causal_pad3d: ([X, 2], {"initial_state": X[:, :, :2]}),
    ck.causal_pad3d_: ([buffer()], {"initial_state": X[:, :, :2]}),
    ck.downsample_conv: ([X, FLAT, VECTOR], {}),
    ck.group_norm: ([X, 2, VECTOR, VECTOR], {"out": X.clone()}),
    ck.rms_norm: ([X, VECTOR, VECTOR], {"out": X.clone()}),
    ck.spatial_norm: ([X, X, X, 2, VECTOR, VECTOR], {"out": X.clone()}),
    ck.upsample_conv: ([X, W, VECTOR], {"initial_state": X[:, :, :2], "first_chunk": False}),
}
BAD = {
    "a list": [1.0],
    "a number": 1.0,
    "sparse": X.to_sparse(),
    "nested": torch.nested.nested_tensor([X]),
    "mkldnn": X.to_mkldnn(),
}


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("op", CALLS, ids=lambda op: op.__name__)
def test_only_dense_tensors(op, bad, autocast):
    positional, keywords = CALLS[op]
    fresh = {name: given for name, given in keywords.items() if name != "out"}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for place, given in enumerate(positional):
            if isinstance(given, torch.Tensor | FrameBuffer):
                wrong = [*positional[:place], BAD[bad], *positional[place + 1 :]]
                for options in (keywords, fresh):
                    with pytest.raises(InvalidInput, match="expected"):
                        op(*wrong, **options)
        for options in (keywords, fresh):
            for name, given in options.items():
                if isinstance(given, torch.Tensor):
                    with pytest.raises(InvalidInput, match="expected"):
                        op(*positional, **{**options, name: BAD[bad]})


@pytest.mark.parametrize("op", [ck.causal_conv3d, ck.upsample_conv, ck.downsample_conv])
def test_no_weight(op):
    with pytest.raises(InvalidInput, match="weight is a NoneType, expected a tensor of shape"):
        op(X, None)
    if op is ck.causal_conv3d:
        with pytest.raises(InvalidInput, match="weight is a NoneType"):
            op(buffer(), None)


TOO_LARGE = {
    "frames in front": lambda: ck.causal_pad3d(X, 2**62),
    "frames in front, beyond 64 bits": lambda: ck.causal_pad3d(X, 2**64),
    "pixels around": lambda: ck.causal_pad3d(X, 2, 2**62),
    "dilation": lambda: ck.causal_conv3d(X, W, dilation=2**62),
    "pad_frames": lambda: ck.pad_frames(X, 2**62),
    "head-room": lambda: FrameBuffer.empty(X.shape, head_room=2**62),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_sizes_that_overflow(case):
    with pytest.raises(InvalidInput, match=r"would take \d+ bytes"):
        TOO_LARGE[case]()
