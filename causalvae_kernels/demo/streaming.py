"""A clip of any length through the swapped VAE, chunk by chunk, in constant memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..data.metrics import frame_mse, psnr
from ..models import swap
from .panels import pair_side_by_side
from .report import Setting, finite_or_null


class StreamedReconstruction:
    """Encodes and decodes frames as they come, and keeps their errors.

    Attributes:
        mse: Per frame so far, against the clip, after clamping to [0, 1].
        num_read: Frames that went in so far.
        swap_summary: What was replaced, in a line; empty before it begins.
        warnings: Sentences.
    """

    def __init__(
        self,
        vae: Any,
        frames: Iterable[Tensor],
        *,
        num_frames: int | None = None,
        device: torch.device | str = "cpu",
        backend: str | None = None,
        precision: str | None = None,
    ) -> None:
        """Nothing is read or computed before the first frame is asked for.

        Args:
            vae: A model that `swap` can adapt to any number of frames, in evaluation mode; it is moved to
                `device`, and swapped while this runs.
            frames: (H, W, 3), uint8, RGB each; H and W as the model needs them.
            num_frames: How many there are, if that is known; the model's first chunk depends on it.
            device: Where the work is done.
            backend: As in `swap`.
            precision: As in `swap`.
        """
        self.mse: list[float] = []
        self.num_read = 0
        self.swap_summary, self.warnings = "", []
        self._vae, self._frames, self._num_frames, self._device = vae, frames, num_frames, device
        self._options = {"backend": backend, "precision": precision}

    @property
    def psnr(self) -> list[float]:
        """Per frame so far, in dB."""
        return [psnr(value) for value in self.mse]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each frame of the clip and its reconstruction.

        Yields:
            Two of (3, H, W), float32, on the CPU, with black 0 and white 1; the second is not clamped.

        Raises:
            InvalidInput: `swap` refuses the model, the backend or the precision; there are not `num_frames`
                frames.
            BackendUnavailable: The backend cannot run a call.
        """
        vae = self._vae.to(self._device)
        waiting: deque[Tensor] = deque()

        def video() -> Iterator[Tensor]:
            for frame in self._frames:
                pixels = frame.permute(2, 0, 1).reshape(1, 3, 1, *frame.shape[:2])
                item = (pixels.to(self._device, torch.float32) / 127.5 - 1).to(vae.dtype)
                waiting.append(frame)
                self.num_read += 1
                yield item

        with swap(vae, frames="any", **self._options) as handle:
            self.swap_summary = handle.summary()
            latents = handle.encode_stream(video(), num_frames=self._num_frames)
            with closing(handle.decode_stream(latents)) as parts:
                while True:
                    # Not around the yield: the grad mode there is that of whoever takes the frame.
                    with torch.no_grad():
                        part = next(parts, None)
                    if part is None:
                        return
                    for frame in (part.squeeze(0).transpose(0, 1).float().cpu() + 1) / 2:
                        target = _as_the_model_saw_it(waiting.popleft(), vae.dtype)
                        self._compare(frame, target)
                        yield target, frame

    def _compare(self, frame: Tensor, target: Tensor) -> None:
        if not self.warnings and not frame.isfinite().all():
            self.warnings.append("the output holds infinite or NaN pixels; try another --dtype")
        self.mse += frame_mse(frame.clamp(0, 1).unsqueeze(0), target.unsqueeze(0))


def _as_the_model_saw_it(frame: Tensor, dtype: torch.dtype) -> Tensor:
    """(H, W, 3), uint8, to (3, H, W), float32, in [0, 1], rounded to the dtype of the model on the way."""
    return ((frame.permute(2, 0, 1).float() / 127.5 - 1).to(dtype).float() + 1) / 2


def streamed_pictures(run: StreamedReconstruction, note: str = "") -> Iterator[Tensor]:
    """Yield each frame of the clip beside its reconstruction: (H, W, 3), uint8, as `pair_side_by_side`."""
    for index, (target, frame) in enumerate(run):
        yield pair_side_by_side(target, frame, index, psnr(run.mse[-1]), note)


def streamed_report(run: StreamedReconstruction, setting: Setting) -> dict[str, Any]:
    """The report, ready for ``json.dumps``; as `report_dict`, of the swapped VAE alone."""
    return finite_or_null(
        {
            "setting": asdict(setting),
            "num_frames": run.num_read,
            "num_frames_out": len(run.mse),
            "swap": run.swap_summary,
            "warnings": run.warnings,
            "swapped": {
                "mse": sum(run.mse) / len(run.mse),
                "mse_per_frame": run.mse,
                "psnr_per_frame": run.psnr,
            },
        }
    )
