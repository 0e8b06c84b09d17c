"""The cell that draws: where one model's gradients have their length, and which images each way of scoring finds."""

from typing import ClassVar

import numpy as np
import torch

from trackstar.tasks.mnist import mlp
from trackstar.tasks.mnist.cells import CellRequest, Measured, ways_of_scoring
from trackstar.tasks.mnist.data import read_images
from trackstar.tasks.mnist.encodings import Scorer, corrected, flattened
from trackstar.tasks.mnist.model import Fitted, Variant
from trackstar.tasks.runtime.stage import cached_task

GALLERY_QUERIES, GALLERY_SIZE = 3, 6
GALLERY_WAYS = (
    ("gradient", "dot"),
    ("gradient", "cosine"),
    ("corrected", "cosine"),
    ("two_sided", "cosine"),
    ("two_sided_train", "cosine"),
    ("two_sided_mixed", "cosine"),
)
CURVE_POINTS = 200


class Picture(Measured):
    """An image, its class, and its score where it was ranked."""

    pixels: list[list[int]]
    label: int
    score: float | None = None


class Pictures(Measured):
    """One model of a variant, drawn.

    Attributes:
        magnitudes: Root mean square of the coordinates, sorted, at ``ranks``: raw and divided by √V.
        shares: Share of the squared norm in the coordinates up to each rank, raw and divided by √V.
        nuisance_share: Share of the squared norm that lies in the weights of the nuisances, raw and divided by √V.
        gallery: A query and, by way of scoring, its highest scored candidates.
    """

    variant: Variant
    num_coordinates: int
    ranks: list[int]
    magnitudes: dict[str, list[float]]
    shares: dict[str, list[float]]
    nuisance_share: dict[str, float]
    gallery: list[tuple[Picture, dict[str, list[Picture]]]]


class PicturesRequest(CellRequest):
    kind: ClassVar[str] = "pictures"
    version: ClassVar[int] = 2


@cached_task
def draw_pictures(request: PicturesRequest) -> Pictures:
    """Where a gradient has its length, before and after √V, and which images each way of scoring finds."""
    fitted, config = request.fitted(), request.config
    raw = fitted.gradients()[1]
    by_kind = {"raw": raw, "corrected": corrected(raw, fitted.second_moment, epsilon=config.epsilon)}
    squares = {kind: np.mean(flattened(g).astype(np.float64) ** 2, axis=0) for kind, g in by_kind.items()}
    ranks = np.unique(np.geomspace(1, len(squares["raw"]), CURVE_POINTS).round().astype(int))
    ordered = {kind: np.sort(values)[::-1] for kind, values in squares.items()}
    brightness, _ = read_images(request.images, request.index)
    return Pictures(
        variant=request.variant,
        num_coordinates=len(squares["raw"]),
        ranks=ranks.tolist(),
        magnitudes={kind: np.sqrt(values[ranks - 1]).tolist() for kind, values in ordered.items()},
        shares={kind: (np.cumsum(values)[ranks - 1] / values.sum()).tolist() for kind, values in ordered.items()},
        nuisance_share={kind: _nuisance_share(g, brightness[0].size) for kind, g in by_kind.items()},
        gallery=_gallery(fitted, request, shape=brightness.shape[1:]),
    )


def _nuisance_share(gradients: dict[str, torch.Tensor], num_pixels: int) -> float:
    total = sum((G.double() ** 2).sum() for G in gradients.values())
    return ((gradients[mlp.HIDDEN_WEIGHT][:, :, num_pixels:].double() ** 2).sum() / total).item()


def _gallery(
    fitted: Fitted, request: PicturesRequest, *, shape: tuple[int, ...]
) -> list[tuple[Picture, dict[str, list[Picture]]]]:
    """The first queries, each of another digit, and the candidates that each way of scoring puts first."""
    _, first = np.unique(fitted.query_labels.numpy(), return_index=True)
    chosen = np.sort(first)[:GALLERY_QUERIES]
    ways = ways_of_scoring(fitted, request.config, seed=request.seed)
    found: dict[str, np.ndarray] = {}
    for name, norm in GALLERY_WAYS:
        vectors, R, mixing_weight = ways[name]
        scorer = Scorer(vectors[0], vectors[1:2], R=R, damping=request.config.damping)
        found[f"{name} {norm}"] = scorer.scores(mixing_weight=mixing_weight, unit_norm=norm == "cosine")[0]

    def picture(inputs: torch.Tensor, label: torch.Tensor, score: float | None = None) -> Picture:
        pixels = (inputs[: shape[0] * shape[1]].reshape(shape) * 255).round().int().tolist()
        return Picture(pixels=pixels, label=int(label), score=score)

    def best(scores: np.ndarray, query: int) -> list[Picture]:
        order = np.argsort(-scores[:, query], kind="stable")[:GALLERY_SIZE]
        return [picture(fitted.candidates[m], fitted.labels[m], float(scores[m, query])) for m in order]

    return [
        (picture(fitted.queries[q], fitted.query_labels[q]), {way: best(s, q) for way, s in found.items()})
        for q in chosen
    ]
