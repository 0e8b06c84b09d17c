"""Tensors of an artifact, one safetensors file each: read whole, checked against the manifest, never unpickled."""

from collections.abc import Iterable, Mapping

import safetensors.numpy
import safetensors.torch
from numpy import ndarray
from torch import Tensor
from upath import UPath

from trackstar.storage.manifest import read_checked


def write_arrays(path: UPath, arrays: Mapping[str, ndarray]) -> None:
    path.write_bytes(safetensors.numpy.save(dict(arrays)))


def read_arrays(directory: UPath, name: str, *, order: Iterable[str] | None = None) -> dict[str, ndarray]:
    """All arrays of one file of a completed artifact, in the order given or that of their names.

    Never in the parser's order: that changes from process to process, and sums over blocks with it.

    Raises:
        CorruptionError: The file is not what was written.
    """
    arrays = safetensors.numpy.load(read_checked(directory, name))
    return {key: arrays[key] for key in (sorted(arrays) if order is None else order)}


def write_tensors(path: UPath, tensors: Mapping[str, Tensor]) -> None:
    path.write_bytes(safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def read_tensors(directory: UPath, name: str) -> dict[str, Tensor]:
    """All tensors of one file of a completed artifact, in the order of their names.

    Raises:
        CorruptionError: The file is not what was written.
    """
    return dict(sorted(safetensors.torch.load(read_checked(directory, name)).items()))
