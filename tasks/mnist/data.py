"""Labelled images for the study: scikit-learn's bundled digits, MNIST from OpenML, or an ``.npz`` file of one's own."""

import zipfile
from typing import Any, ClassVar

import numpy as np
from numpy import ndarray
from sklearn.datasets import fetch_openml, load_digits
from upath import UPath

from trackstar.storage.digests import digest_file
from trackstar.storage.errors import InputError
from trackstar.storage.layout import location
from trackstar.storage.manifest import Artifact, Draft
from trackstar.storage.matrices import read_arrays, write_arrays
from trackstar.tasks.mnist.settings import DIGITS, MNIST
from trackstar.tasks.runtime.stage import StageRequest, stage

SAMPLING_SEED = 0
SMALLEST = 200  # images: fewer leave no class enough examples on both sides of the split
IMAGES = "images.safetensors"


class ImagesRequest(StageRequest):
    """Which images, and at most how many of them."""

    kind: ClassVar[str] = "images"
    version: ClassVar[int] = 1

    data: str
    num_images: int

    @property
    def label(self) -> str:
        return f"images of {self.data}"

    def inputs(self) -> dict[str, Any]:
        path = location(self.data)
        source = self.data if self.data in (DIGITS, MNIST) else digest_file(require_file(path))
        return {"source": source, "num_images": self.num_images}


@stage
def write_images(request: ImagesRequest, draft: Draft) -> None:
    """A shuffled sample of the images, as brightness between 0 and 1, and their labels."""
    pixels, labels = check_images(*load_images(request.data), source=request.data)
    chosen = np.random.default_rng(SAMPLING_SEED).permutation(len(labels))[: request.num_images]
    brightness = pixels[chosen].astype(np.float32) / float(pixels.max())
    write_arrays(draft.path / IMAGES, {"brightness": brightness, "labels": labels[chosen].astype(np.int64)})
    draft.facts |= {"num_images": len(chosen), "height": pixels.shape[1], "width": pixels.shape[2]}


def read_images(artifact: Artifact, root: str) -> tuple[ndarray, ndarray]:
    """Brightness [n h w] and labels [n]."""
    arrays = read_arrays(artifact.path(root), IMAGES)
    return arrays["brightness"], arrays["labels"]


def load_images(data: str) -> tuple[ndarray, ndarray]:
    """Images [n h w] and labels [n] of ``digits``, ``mnist`` or a file.

    Raises:
        InputError: The source is not there, cannot be reached, or does not hold what it should.
    """
    if data == DIGITS:
        bunch = load_digits()
        return bunch.images, bunch.target
    return _fetch_mnist() if data == MNIST else _read_npz(require_file(location(data)))


def require_file(path: UPath) -> UPath:
    if not path.is_file():
        raise InputError(f"{path} is not a file; --data takes {DIGITS}, {MNIST}, or an .npz file with arrays X and y")
    return path


def check_images(pixels: ndarray, labels: ndarray, *, source: str) -> tuple[ndarray, ndarray]:
    """Both as they are, if they are images with ten kinds of label.

    Raises:
        InputError: A shape, a value or a label is not what the study can work on.
    """
    if pixels.ndim != 3 or labels.shape != pixels.shape[:1]:
        raise InputError(f"{source} holds X {pixels.shape} and y {labels.shape}; expected X [n h w] and y [n]")
    if len(labels) < SMALLEST:
        raise InputError(f"{source} holds {len(labels)} images; give at least {SMALLEST}")
    if not np.isfinite(pixels).all() or pixels.min() < 0 or not pixels.max() > 0:
        raise InputError(f"{source} holds pixels outside [0, ∞) or only black ones; store brightness, as uint8 say")
    found = np.unique(labels).tolist()
    if found != list(range(10)):
        raise InputError(f"{source} holds the labels {found[:12]}; expected every digit from 0 to 9 and nothing else")
    return pixels, labels


def _fetch_mnist() -> tuple[ndarray, ndarray]:
    try:
        bunch = fetch_openml("mnist_784", version=1, as_frame=False, parser="liac-arff")
    except (OSError, ValueError) as error:  # URLError is an OSError; a truncated download is a ValueError
        raise InputError(
            f"MNIST cannot be fetched from openml.org ({error}); connect to the network once, or pass --data digits "
            "or an .npz file"
        ) from error
    return bunch.data.reshape(-1, 28, 28), bunch.target.astype(np.int64)


def _read_npz(path: UPath) -> tuple[ndarray, ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["X"], arrays["y"]
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as arrays X and y ({error}); write it with np.savez") from error
