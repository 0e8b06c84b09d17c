"""Tensors of an artifact, one safetensors file each: read whole, checked against the manifest, never unpickled."""

from collections.abc import Mapping

import safetensors.numpy
import safetensors.torch
from numpy import ndarray
from torch import Tensor
from upath import UPath

from trackstar.storage.manifest import read_checked


def write_arrays(path: UPath, arrays: Mapping[str, ndarray]) -> None:
    path.write_bytes(safetensors.numpy.save(dict(arrays)))


def read_arrays(directory: UPath, name: str) -> dict[str, ndarray]:
    """All arrays of one file of a completed artifact.

    Raises:
        CorruptionError: The file is not what was written.
    """
    return safetensors.numpy.load(read_checked(directory, name))


def write_tensors(path: UPath, tensors: Mapping[str, Tensor]) -> None:
    path.write_bytes(safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def read_tensors(directory: UPath, name: str) -> dict[str, Tensor]:
    """All tensors of one file of a completed artifact.

    Raises:
        CorruptionError: The file is not what was written.
    """
    return safetensors.torch.load(read_checked(directory, name))
