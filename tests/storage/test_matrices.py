import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from upath import UPath

from trackstar.storage.manifest import Draft, write_manifest
from trackstar.storage.matrices import read_arrays, read_tensors, write_arrays, write_tensors

NAMES = ["attention.00", "mlp.00", "attention.01", "mlp.01"]


def reversed_order(load):
    return lambda content: dict(reversed(list(load(content).items())))


def test_arrays_come_in_the_order_of_the_index_or_of_their_names_whatever_the_parsers(tmp_path, monkeypatch):
    directory = UPath(tmp_path)
    write_arrays(directory / "arrays", {name: np.full(2, number) for number, name in enumerate(NAMES)})
    write_tensors(directory / "tensors", {name: torch.ones(2) for name in NAMES})
    write_manifest(Draft(directory), kind="queries", identity={})
    for parser in (safetensors.numpy, safetensors.torch):
        for _ in range(2):  # the parser's order, whichever that is, and its reverse
            arrays = read_arrays(directory, "arrays", order=NAMES)
            assert {name: array[0] for name, array in arrays.items()} == {name: n for n, name in enumerate(NAMES)}
            assert list(arrays) == NAMES
            assert list(read_arrays(directory, "arrays")) == list(read_tensors(directory, "tensors")) == sorted(NAMES)
            monkeypatch.setattr(parser, "load", reversed_order(parser.load))
