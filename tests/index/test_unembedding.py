"""The unembedding as a block of its own: its gradient, and what it is corrected by, against autograd in float64."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tests.index.test_kronecker import DAMPING, requests, shards, spec_of  # noqa: F401
from tests.numerics.test_gradients import RELATIVE_ERROR, _model, _pad, _sequences
from tests.oracle import Oracle, _total
from tests.oracle import _project as project
from tests.reference import root_of_inverse
from tests.tiny import QUERIES, TEXTS
from trackstar.flows.config import IndexConfig
from trackstar.storage.errors import InputError
from trackstar.storage.reading import Reading
from trackstar.tasks.index.second_moment import (
    SecondMomentConfig,
    SecondMomentRequest,
    second_moment,
    write_second_moment,
)
from trackstar.tasks.models.checkpoint import ModelConfig, read_checkpoint
from trackstar.tasks.models.engine import Engine, EngineSpec, GradientConfig
from trackstar.tasks.numerics.architecture import WeightMatrix
from trackstar.tasks.numerics.gradients import BlockProjection, GradientEngine, MatrixProjection
from trackstar.tasks.numerics.token_influence import TokenInfluence
from trackstar.tasks.numerics.unembedding import find_unembedding
from trackstar.tasks.runtime.stage import build

TOLERANCE = 1e-4  # float32 activations


def untied(model):
    """The model in float64 with an unembedding that is no other parameter, and that as a matrix."""
    model = copy.deepcopy(model).double().eval()
    model.lm_head = nn.Linear(*model.lm_head.weight.T.shape, bias=False, dtype=torch.float64)
    model.lm_head.weight = nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    model.config.tie_word_embeddings = False
    return model, WeightMatrix("lm_head.weight", "lm_head", "unembedding", -1, tuple(model.lm_head.weight.shape), False)


def gradient(model, sequence):
    """Of the summed loss by the unembedding, by autograd."""
    logits = model(input_ids=sequence[None], use_cache=False).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], sequence[1:], reduction="sum")
    return torch.autograd.grad(loss, model.lm_head.weight)[0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])  # the last with capped logits
@pytest.mark.parametrize("is_chunked", [True, False])
@pytest.mark.parametrize("is_alone", [True, False])
def test_the_gradient_of_a_tied_unembedding_is_that_of_its_output_use(family, is_chunked, is_alone, monkeypatch):
    model = _model(family)
    assert model.config.tie_word_embeddings
    monkeypatch.setattr("trackstar.tasks.numerics.loss.CPU_CHUNK_TOKENS", 5)  # ends within rows
    if not is_chunked:
        monkeypatch.setattr("trackstar.tasks.numerics.loss.TokenLoss._head_alone_gives_logits", lambda _: False)
    matrix = find_unembedding(model)
    assert (matrix.module, matrix.shape) == ("lm_head", tuple(model.lm_head.weight.shape))
    left, right = (torch.randn(4, size, generator=torch.Generator().manual_seed(size)) for size in matrix.shape)
    blocks = {"unembedding": BlockProjection([MatrixProjection("lm_head", matrix.shape, left, right)], True)}
    if not is_alone:
        first = next(name for name, module in model.named_modules() if name.endswith(("c_fc", "up_proj")))
        weight = model.get_submodule(first).weight
        shape = tuple(weight.T.shape if family == "gpt2" else weight.shape)
        blocks["mlp"] = BlockProjection([MatrixProjection(first, shape)], False)
    sequences = _sequences()
    with GradientEngine(copy.deepcopy(model), blocks) as engine:
        _, vectors = engine(*_pad(sequences))
    oracle, _ = untied(model)
    for row, sequence in zip(vectors["unembedding"], sequences, strict=True):
        expected = left.double() @ gradient(oracle, sequence) @ right.double().T
        assert (row - expected.flatten()).norm() < RELATIVE_ERROR * expected.norm()
    readout = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    readouts = {name: readout if name == "unembedding" else torch.zeros(2, of.num_dims) for name, of in blocks.items()}
    with TokenInfluence(copy.deepcopy(model), blocks) as reader:
        shares = reader(*_pad(sequences), readouts)
    products = vectors["unembedding"].double() @ readout.double().T
    torch.testing.assert_close(shares.sum(1), products, rtol=0, atol=1e-4 * products.abs().max().item())
    for row, sequence in enumerate(sequences):
        assert not shares[row, len(sequence) - 1 :].any()  # the last token predicts nothing
        assert shares[row, : len(sequence) - 1].all()


class UnembeddingOracle(Oracle):
    """Gradients of the unembedding, A and s, by explicit sums over every prediction of every window, in float64."""

    def __init__(self, checkpoint):
        super().__init__(checkpoint, TEXTS, QUERIES[:1])
        self.model, self.matrix = untied(self.model)
        self.matrices = [self.matrix]
        self.gradients = [_total(self._windows(ids, 1))["lm_head.weight"].detach() for ids in self.token_ids]
        states, deltas = [], []
        for ids in self.token_ids:
            for start in range(0, len(ids) - 1, self.context - 1):
                tokens = torch.tensor(ids[start : start + self.context])
                with torch.no_grad():
                    h = self.model.base_model(input_ids=tokens[None], use_cache=False).last_hidden_state[0, :-1]
                    p = torch.softmax(self.model.lm_head(h), 1)
                p[torch.arange(len(p)), tokens[1:]] -= 1
                states.append(h)
                deltas.append(p)
        x, delta = torch.cat(states).numpy(), torch.cat(deltas).numpy()
        self.A, self.s = x.T @ x / len(x), np.mean(delta**2, axis=0)

    def projected(self, corrected, name, k):
        named = WeightMatrix(name, "lm_head", "unembedding", -1, self.matrix.shape, False)
        return np.stack([project(G, named, k).flatten().numpy() for G in corrected])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_kfac_whitens_the_vocabulary_by_its_diagonal(family, shards, tmp_path, request):  # noqa: F811
    checkpoint = request.getfixturevalue(family)
    parameters = ("mlp", "unembedding")
    asked = requests(checkpoint, tmp_path, shards, labels="empirical", gradient=GradientConfig(parameters=parameters))
    spec = spec_of(asked, "kfac", parameters=parameters, projection_dim=4)
    engine = Engine(spec)
    assert list(engine.block_dims) == ["mlp.00", "mlp.01", "unembedding"]
    oracle = UnembeddingOracle(checkpoint)
    root = root_of_inverse(oracle.A + DAMPING * np.trace(oracle.A) / len(oracle.A) * np.eye(len(oracle.A)))
    scale = 1 / np.sqrt(oracle.s + DAMPING * oracle.s.mean())
    corrected = [torch.from_numpy(scale[:, None] * G.numpy() @ root) for G in oracle.gradients]
    expected = oracle.projected(corrected, find_unembedding(engine.model).name, 4)
    _, vectors = engine.gradients(oracle.token_ids, first_targets=[1] * len(TEXTS))
    error = np.linalg.norm(vectors["unembedding"] - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < TOLERANCE
    facts = spec.kronecker[0].facts
    num_others = sum(len(matrices) for name, matrices in oracle.blocks.items() if name.startswith("mlp"))
    assert facts["num_matrices"] == num_others + 1
    assert facts["halves_differ"]["S"]["largest"] > 0


@pytest.mark.parametrize(("family", "mode"), [("llama", "factored"), ("gpt2", "factored"), ("gpt2", "full")])
def test_the_unembedding_is_divided_by_the_optimizers_second_moment(family, mode, tmp_path, request):
    checkpoint = request.getfixturevalue(family)
    common = {
        "index": str(tmp_path), "checkpoint": read_checkpoint(str(checkpoint)), "model": ModelConfig(device="cpu"),
        "gradient": GradientConfig(parameters=("unembedding",), projection_dim=4),
    }  # fmt: skip
    V = build(write_second_moment.body, SecondMomentRequest(mode=mode, **common))
    engine = Engine(EngineSpec(second_moment=V, **common))
    oracle = UnembeddingOracle(checkpoint)
    named = find_unembedding(engine.model)
    dense = Oracle(checkpoint, TEXTS[:1], QUERIES[:1])._second_moment(named, mode)
    expected = oracle.projected([G / dense.sqrt() for G in oracle.gradients], named.name, 4)
    _, vectors = engine.gradients(oracle.token_ids, first_targets=[1] * len(TEXTS))
    error = np.linalg.norm(vectors["unembedding"] - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < TOLERANCE


def config(**gradient):
    given = {"checkpoint": "c", "index": "i", "corpus": {"paths": ["t.jsonl"]}, "gradient": gradient}
    return IndexConfig.model_validate(given)


@pytest.mark.parametrize(
    "gradient",
    [
        {"correction": "ekfac"},
        {"correction": "kfac", "projection": "axes"},
        {"projection": "none"},
    ],
)
def test_what_would_take_the_unembedding_whole_is_refused(gradient):
    with pytest.raises(InputError, match="use --correction kfac, v or none with --projection two_sided"):
        config(**gradient, parameters=["attention", "unembedding"]).check()


def test_input_embeddings_and_an_estimate_of_the_unembeddings_V_are_refused(llama, tmp_path):
    with pytest.raises(ValueError, match="gradients of the input embedding are not taken"):
        config(parameters=["attention", "embedding"])
    spec = EngineSpec(
        index=str(tmp_path), checkpoint=read_checkpoint(str(llama)), model=ModelConfig(device="cpu"),
        gradient=GradientConfig(parameters=("unembedding",)), second_moment=None,
    )  # fmt: skip
    with pytest.raises(InputError, match="read from an optimizer's state and not estimated; use --correction kfac"):
        second_moment(SecondMomentConfig(mode="estimated"), spec, shards=(), reading=Reading(), existing=None)
