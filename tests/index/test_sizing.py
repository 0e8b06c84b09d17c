"""How many dimensions fit in a number of bytes: as many as do, and never more, however axes are shared out."""

import numpy as np
import pytest

from tests.models.test_experts import mixtral  # noqa: F401
from trackstar.storage.codes import CODES
from trackstar.storage.errors import InputError
from trackstar.tasks.index.sizing import largest_num_axes, largest_projection_dim, sized
from trackstar.tasks.models.checkpoint import ModelConfig, load_model, read_checkpoint
from trackstar.tasks.models.engine import model_blocks
from trackstar.tasks.models.settings import GradientConfig

AXES = GradientConfig(correction="ekfac", projection="axes")


def bytes_of(code, dims):
    """What a writer keeps of a row, measured on what the code makes of one."""
    total = 0
    for d in dims:
        stored, scales = code.encode(np.ones((1, d), np.float32))
        total += stored.nbytes + (scales.nbytes if scales is not None else 0)
    return total


@pytest.mark.parametrize("code", CODES.values(), ids=lambda code: code.name)
@pytest.mark.parametrize("counts", [[1], [1, 1, 1], [4, 3]])
def test_k_is_the_largest_that_fits(code, counts):
    for limit in (40, 100, 1000, 4096):
        k = largest_projection_dim(code, counts, limit_bytes=limit)
        assert bytes_of(code, [c * k * k for c in counts]) <= limit < bytes_of(code, [c * (k + 1) ** 2 for c in counts])


@pytest.mark.parametrize("code", CODES.values(), ids=lambda code: code.name)
@pytest.mark.parametrize("num_blocks", [1, 2, 5])
def test_axes_fit_however_they_are_shared_out_and_one_more_might_not(code, num_blocks):
    rng = np.random.default_rng(0)
    for limit in (40, 41, 43, 47, 100, 1000):
        num_axes = largest_num_axes(code, num_blocks, limit_bytes=limit)
        for _ in range(50):
            cuts = np.sort(rng.choice(np.arange(1, num_axes), num_blocks - 1, replace=False))
            assert bytes_of(code, np.diff([0, *cuts, num_axes])) <= limit
        worst = [*[1] * (num_blocks - 1), num_axes + 2 - num_blocks]
        assert bytes_of(code, worst) > limit


@pytest.mark.parametrize("code", CODES.values(), ids=lambda code: code.name)
def test_too_few_bytes_for_one_coordinate_a_block_name_the_fewest(code):
    least = bytes_of(code, [1, 1, 1])
    assert largest_num_axes(code, 3, limit_bytes=least) >= 3
    assert largest_projection_dim(code, [1, 1, 1], limit_bytes=least) >= 1
    for find in (lambda: largest_num_axes(code, 3, limit_bytes=least - 1),
                 lambda: largest_projection_dim(code, [1, 1, 1], limit_bytes=least - 1)):  # fmt: skip
        with pytest.raises(InputError, match=f"of 3 blocks, stored as {code.name}; .* --bytes-per-document {least},"):
            find()


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_blocks_are_counted_in_the_headers_as_they_are_in_the_model(family, request):
    checkpoint = str(request.getfixturevalue(family))
    model = load_model(read_checkpoint(checkpoint), ModelConfig(device="cpu"))
    blocks = model_blocks(model, AXES)
    total = sum(m * n for matrices in blocks.values() for m, n in (matrix.shape for matrix in matrices))
    common = {"checkpoint": checkpoint, "model": ModelConfig(device="cpu")}
    everything = sized(AXES, store_as="sign", bytes_per_document=10**6, **common)
    assert everything.num_axes == total
    few = sized(AXES, store_as="sign", bytes_per_document=100, **common)
    assert few.num_axes == largest_num_axes(CODES["sign"], len(blocks), limit_bytes=100)
    apart = GradientConfig(pooling="concatenate")
    counts = [len(matrices) for matrices in blocks.values()]
    k = sized(apart, store_as="int8", bytes_per_document=9000, **common).projection_dim
    assert k == largest_projection_dim(CODES["int8"], counts, limit_bytes=9000)
    one_short = AXES.model_copy(update={"num_axes": len(blocks) - 1})
    with pytest.raises(InputError, match=f"give at least --num-axes {len(blocks)}"):
        sized(one_short, store_as="float32", bytes_per_document=None, **common)
