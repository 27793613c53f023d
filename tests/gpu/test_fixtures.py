"""What the tests of a GPU run under; needs no GPU."""

import torch


def test_cudnn_stays_on_and_computes_float32_in_full():
    assert torch.backends.cudnn.enabled
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
