"""The norms of the CUDA module without a GPU: the threads' own functions, one thread after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from causalvae_kernels.core import native


class NormsOnTheHost:
    """Stands in for the module; it keeps what each rehearsal says of itself.

    Attributes:
        done: For each call, whether the statistics read 16 bytes at a time, whether the pass that writes
            does, blocks, elements written.
    """

    def __init__(self) -> None:
        self.index = native.cpu_module().index
        self.done: list[tuple[bool, bool, int, int]] = []

    def group_norm(self, out: Any, *arguments: Any) -> None:
        """Carry out the group norm, with scale and shift or without."""
        *arguments, device, stream = arguments
        self._finish(out, self.index.rehearse_group_norm(out, *arguments), device, stream)

    def rms_norm(self, out: Any, *arguments: Any) -> None:
        """Carry out the RMS norm."""
        *arguments, device, stream = arguments
        self._finish(out, self.index.rehearse_rms_norm(out, *arguments), device, stream)

    def _finish(self, out: Any, done: tuple[bool, bool, int, int], device: int, stream: int) -> None:
        assert (device, stream) == (0, 7)
        # The values tell that every element was written; no more writes than elements, that none was twice.
        assert done[3] == torch.Size(out[1]).numel()
        self.done.append(done)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> NormsOnTheHost:
    """Have the backend `cuda` of the norms run on the host."""
    module = NormsOnTheHost()
    monkeypatch.setattr(native, "cuda_module", lambda: module)
    monkeypatch.setattr(native, "why_no_cuda", lambda device: None)
    monkeypatch.setattr(native, "current_stream", lambda device: (0, 7))
    return module
