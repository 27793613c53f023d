"""Fresh copies of a model, made in a tenth of the time that `copy.deepcopy` takes."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch


class Mould:
    """A model as it is now, to be cast any number of times: a pickle with the tensors beside it.

    Each cast has tensors of its own; what shares a tensor in the model shares one in the cast.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._tensors: list[torch.Tensor] = []
        file = io.BytesIO()
        _Pickler(file, self._tensors).dump(model)
        self._pickled = file.getvalue()

    def cast(self) -> Any:
        """Return a fresh copy."""
        memo: dict[int, Any] = {}
        return _Unpickler(self._pickled, [copy.deepcopy(t, memo) for t in self._tensors]).load()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._tensors, self._numbers = tensors, {}

    def persistent_id(self, given: object) -> int | None:
        if not isinstance(given, torch.Tensor):
            return None
        if id(given) not in self._numbers:
            self._numbers[id(given)] = len(self._tensors)
            self._tensors.append(given)
        return self._numbers[id(given)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, pickled: bytes, tensors: list[torch.Tensor]) -> None:
        super().__init__(io.BytesIO(pickled))
        self._tensors = tensors

    def persistent_load(self, number: int) -> torch.Tensor:
        return self._tensors[number]
