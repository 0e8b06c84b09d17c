"""How many dimensions a document may have: k or a number of axes from a number of bytes.

Bytes are those of codes and scales in a shard's arrays; text, ids and norms are not among them. Blocks are known from
the headers of the checkpoint, before any work is done.
"""

from bisect import bisect_right
from collections.abc import Sequence
from math import isqrt

from trackstar.storage.codes import CODES, Code, StoreAs
from trackstar.storage.errors import InputError
from trackstar.tasks.models.checkpoint import decoder
from trackstar.tasks.models.engine import model_blocks
from trackstar.tasks.models.settings import GradientConfig, ModelConfig


def sized(
    gradient: GradientConfig, *, checkpoint: str, model: ModelConfig, store_as: StoreAs, bytes_per_document: int | None
) -> GradientConfig:
    """The settings with the k, or the number of axes, that the bytes leave room for.

    Raises:
        InputError: They are too few for one coordinate a block, or as many axes are asked for.
    """
    if bytes_per_document is None and gradient.projection != "axes":
        return gradient
    blocks = model_blocks(decoder(checkpoint, model).outline(), gradient)
    if bytes_per_document is None:
        _require_axis_a_block(gradient.num_axes, len(blocks))
        return gradient
    code = CODES[store_as]
    if gradient.projection == "axes":
        num_possible = sum(m * n for matrices in blocks.values() for m, n in (matrix.shape for matrix in matrices))
        num_axes = min(largest_num_axes(code, len(blocks), limit_bytes=bytes_per_document), num_possible)
        return gradient.model_copy(update={"num_axes": num_axes})
    counts = [1 if gradient.pooling == "sum" else len(matrices) for matrices in blocks.values()]
    k = largest_projection_dim(code, counts, limit_bytes=bytes_per_document)
    return gradient.model_copy(update={"projection_dim": k})


def largest_projection_dim(code: Code, counts: Sequence[int], *, limit_bytes: int) -> int:
    """Return the largest k at which a row fits.

    Args:
        code: How rows are stored.
        counts: Of each block, how many k² it has: one where its matrices share them.
        limit_bytes: Of a row of all blocks.

    Raises:
        InputError: It does not fit at k = 1.
    """
    size = lambda k: sum(code.row_bytes(count * k * k) for count in counts)  # noqa: E731
    _require_room(limit_bytes, least=size(1), code=code, num_blocks=len(counts))
    return bisect_right(range(1, isqrt(8 * limit_bytes) + 2), limit_bytes, key=size)


def largest_num_axes(code: Code, num_blocks: int, *, limit_bytes: int) -> int:
    """Return the largest number of axes at which a row fits, however they are shared out among the blocks.

    A byte that is begun counts whole, so that blocks of one axis each and one of all others take the most.

    Raises:
        InputError: Not even one axis a block fits.
    """
    size = lambda M: (num_blocks - 1) * code.row_bytes(1) + code.row_bytes(M - num_blocks + 1)  # noqa: E731
    _require_room(limit_bytes, least=size(num_blocks), code=code, num_blocks=num_blocks)
    return num_blocks - 1 + bisect_right(range(num_blocks, num_blocks + 8 * limit_bytes + 1), limit_bytes, key=size)


def _require_room(limit_bytes: int, *, least: int, code: Code, num_blocks: int) -> None:
    if limit_bytes < least:
        raise InputError(
            f"{limit_bytes} bytes a document are too few for one coordinate in each of {num_blocks} blocks, stored as "
            f"{code.name}; give at least --bytes-per-document {least}, or fewer --num-layer-blocks"
        )


def _require_axis_a_block(num_axes: int, num_blocks: int) -> None:
    if num_axes < num_blocks:
        raise InputError(
            f"{num_axes} axes cannot be one in each of {num_blocks} blocks; give at least --num-axes {num_blocks}, or "
            "fewer --num-layer-blocks"
        )
