"""K-FAC and EK-FAC: projected and whole gradients against the definition in float64, and what estimates them."""

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from tests.models.test_experts import mixtral  # noqa: F401
from tests.oracle import Oracle
from tests.oracle import _project as project
from tests.tiny import QUERIES, TEXTS
from trackstar.storage.corpus import CorpusFile, plan_shards
from trackstar.storage.errors import InputError
from trackstar.storage.layout import AXES, KRONECKER
from trackstar.storage.matrices import read_tensors
from trackstar.tasks.index.corpus import CorpusConfig
from trackstar.tasks.index.kronecker import KroneckerRequest, _decomposed, estimate_factors, write_kronecker
from trackstar.tasks.models.checkpoint import ModelConfig, load_model, read_checkpoint
from trackstar.tasks.models.engine import Engine, EngineSpec, GradientConfig
from trackstar.tasks.numerics.architecture import find_weight_matrices
from trackstar.tasks.numerics.corrections import from_tensors
from trackstar.tasks.numerics.corrections.kfac import KroneckerTap
from trackstar.tasks.numerics.labels import document_key, exponentials
from trackstar.tasks.runtime.stage import build

DAMPING = 0.01
PROJECTED, WHOLE = 1e-4, 5e-5  # float32 activations, whose weakest directions whitening makes large


@pytest.fixture
def shards(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(TEXTS)))
    return tuple(plan_shards(CorpusConfig(paths=(str(path),)).files()[0], shard_size=6))


def requests(checkpoint, index, shards, *, labels="sampled", token_budget=64, gradient=None, sample_size=100):
    return KroneckerRequest(
        index=str(index),
        checkpoint=read_checkpoint(str(checkpoint)),
        model=ModelConfig(device="cpu", token_budget=token_budget),
        gradient=gradient or GradientConfig(correction="kfac"),
        labels=labels,
        sample=shards,
        sample_size=sample_size,
    )


def spec_of(request, correction, **gradient):
    config = GradientConfig(correction=correction, factor_damping=DAMPING, **gradient)
    asked = request.model_copy(update={"gradient": config})
    kronecker = estimate_factors(asked, run=lambda stage, request: build(stage.body, request))
    return EngineSpec(
        index=request.index, checkpoint=request.checkpoint, model=request.model, second_moment=None,
        gradient=config, kronecker=kronecker,
    )  # fmt: skip


class FactorOracle(Oracle):
    """A, S and Λ by explicit sums over every prediction of every window, in float64."""

    def __init__(self, checkpoint: Path, *, labels: str) -> None:
        super().__init__(checkpoint, TEXTS, QUERIES)
        self._is_sampled = labels == "sampled"
        self.factors = {matrix.name: [0.0, 0.0, 0] for matrix in self.matrices}
        self.windowed: list[dict] = []
        self.num_predictions = 0
        for ids in self.token_ids:
            for start in range(0, len(ids) - 1, self.context - 1):
                self._add(ids, start)

    def root(self, name: str):
        """(S + ε_S)^-½ and (A + ε_A)^-½ by scipy."""
        A, S, num_inputs = self.factors[name]
        return [
            scipy.linalg.fractional_matrix_power(F + DAMPING * np.trace(F) / len(F) * np.eye(len(F)), -0.5).real
            for F in (S / self.num_predictions, A / num_inputs)
        ]

    def corrected(self, gradients, name: str, bases=None):
        """S^-½ G A^-½, or in eigenbases (Q_Sᵀ G Q_A) ∘ Λ^-½, everything damped."""
        G = gradients[name].detach().numpy()
        if bases is None:
            S_root, A_root = self.root(name)
            return S_root @ G @ A_root
        Q_S, Q_A = bases
        variances = np.mean([(Q_S.T @ window[name].detach().numpy() @ Q_A) ** 2 for window in self.windowed], axis=0)
        return (Q_S.T @ G @ Q_A) / np.sqrt(variances + DAMPING * variances.mean())

    def pooled(self, projection_dim: int):
        """Per block [n d] of the documents and [q d] of the queries: K-FAC, projected, a block's matrices added."""
        return [
            [
                np.stack([self._pooled(example, matrices, projection_dim) for example in examples])
                for matrices in self.blocks.values()
            ]
            for examples in (self.documents, self.queries)
        ]

    def _pooled(self, gradients, matrices, projection_dim: int):
        parts = [torch.from_numpy(self.corrected(gradients, m.name)) for m in matrices]
        return sum(project(part, m, projection_dim).flatten().numpy() for part, m in zip(parts, matrices, strict=True))

    def _add(self, ids, start: int) -> None:
        tokens = torch.tensor(ids[start : start + self.context])
        said = self._labels(ids, start, tokens)
        self.windowed.append(self._gradients(tokens, said))
        self.num_predictions += len(tokens) - 1

    def _labels(self, ids, start: int, tokens):
        if not self._is_sampled:
            return tokens[1:]
        with torch.no_grad():
            logits = self.model(input_ids=tokens[None], use_cache=False).logits[0].double()
        key = document_key(0, ids)
        drawn = [
            np.argmax(logits[t].numpy() - np.log(exponentials(key, position=start + t + 1, size=logits.shape[1])))
            for t in range(len(tokens) - 1)
        ]
        return torch.tensor(drawn)

    def _gradients(self, tokens, said):
        """The weight gradients of a window by autograd; A and S from hooks at every linear map."""
        model = self.model.double().requires_grad_(True)
        model.set_experts_implementation("eager")
        model.zero_grad()
        kept: dict[str, list] = {}
        handles = [
            model.get_submodule(matrix.module).register_forward_hook(self._hook(matrix.name, kept))
            for matrix in self.matrices
            if matrix.expert is None
        ]
        with self._watched_experts(model):
            logits = model(input_ids=tokens[None], use_cache=False).logits[0]
            (-torch.log_softmax(logits[:-1], -1).gather(1, said[:, None]).sum()).backward()
        for handle in handles:
            handle.remove()
        for name, (x, delta) in kept.items():
            x, delta = x.reshape(-1, x.shape[-1])[:-1], delta.reshape(-1, delta.shape[-1])[:-1]
            self.factors[name][0] += (x.T @ x).numpy()
            self.factors[name][1] += (delta.T @ delta).numpy()
            self.factors[name][2] += len(x)
        parameters = dict(model.named_parameters())
        return {m.name: m.part_of(parameters[m.parameter].grad).clone() for m in self.matrices}

    @contextmanager
    def _watched_experts(self, model):
        """Add up A and S of experts wherever their slice of a parameter is multiplied by."""
        experts = [m for m in self.matrices if m.expert is not None]
        names = {m.part_of(model.get_parameter(m.parameter)).data_ptr(): m.name for m in experts}
        linear = torch.nn.functional.linear

        def watched(x, weight, bias=None):
            output = linear(x, weight, bias)
            if name := names.get(weight.data_ptr()):
                output.register_hook(lambda gradient: self._add_expert(name, x.detach(), gradient))
            return output

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.functional, "linear", watched)
            yield

    def _add_expert(self, name, x, delta):
        x = x[(delta != 0).any(1)]  # the last token predicts nothing
        self.factors[name][0] += (x.T @ x).numpy()
        self.factors[name][1] += (delta.T @ delta).numpy()
        self.factors[name][2] += len(x)

    @staticmethod
    def _hook(name, kept):
        def forward(_, inputs, output):
            result = output[0] if isinstance(output, tuple) else output
            entry = kept.setdefault(name, [inputs[0].detach(), None])
            result.register_hook(lambda gradient: entry.__setitem__(1, gradient.detach()))

        return forward


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def family(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def oracles(family):
    return {labels: FactorOracle(family, labels=labels) for labels in ("sampled", "empirical")}


def bases_of(spec):
    """The stored eigenbases by matrix, outputs first."""
    tensors = read_tensors(spec.kronecker[0].path(spec.index), KRONECKER)
    names = {key.rpartition(".")[0] for key in tensors}
    return {n: [tensors[f"{n}.{side}_basis"].double().numpy() for side in ("output", "input")] for n in names}


def assert_corrected(spec, oracle, *, tolerance):
    """Every document's vector in every block is that of the definition."""
    engine, config = Engine(spec), spec.gradient
    _, vectors = engine.gradients(oracle.token_ids, first_targets=[1] * len(TEXTS))
    bases = bases_of(spec) if config.correction == "ekfac" else {}
    for block, matrices in oracle.blocks.items():
        expected = []
        for document in oracle.documents:
            parts = [torch.from_numpy(oracle.corrected(document, m.name, bases.get(m.name))) for m in matrices]
            if config.projection == "two_sided":
                parts = [project(part, m, config.projection_dim) for part, m in zip(parts, matrices, strict=True)]
            expected.append(np.concatenate([part.flatten().numpy() for part in parts]))
        error = np.linalg.norm(vectors[block] - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert error.max() < tolerance, block


@pytest.mark.parametrize("labels", ["sampled", "empirical"])
@pytest.mark.parametrize("correction", ["kfac", "ekfac"])
def test_corrected_gradients_are_those_of_the_definition(family, oracles, shards, tmp_path, correction, labels):
    request = requests(family, tmp_path, shards, labels=labels)
    for projection, tolerance in (("none", WHOLE), ("two_sided", PROJECTED)):
        spec = spec_of(request, correction, projection=projection, projection_dim=4, pooling="concatenate")
        assert_corrected(spec, oracles[labels], tolerance=tolerance)


def test_the_kept_eigenvectors_and_values_are_those_of_the_factors(family, oracles, shards, tmp_path):
    spec = spec_of(requests(family, tmp_path, shards), "kfac")
    tensors = read_tensors(spec.kronecker[0].path(spec.index), KRONECKER)
    for name, (A, S, num_inputs) in oracles["sampled"].factors.items():
        for side, factor in (("input", A / num_inputs), ("output", S / oracles["sampled"].num_predictions)):
            Q, values = (tensors[f"{name}.{side}_{what}"].double().numpy() for what in ("basis", "values"))
            np.testing.assert_allclose((Q * values) @ Q.T, factor, atol=1e-5 * np.abs(factor).max())
            np.testing.assert_allclose(Q.T @ Q, np.eye(len(Q)), atol=1e-5)


@pytest.mark.parametrize("correction", ["kfac", "ekfac"])
def test_every_expert_is_corrected_by_the_tokens_it_is_given(mixtral, shards, tmp_path, correction):  # noqa: F811
    oracle = FactorOracle(mixtral, labels="sampled")
    for projection, tolerance in (("none", WHOLE), ("two_sided", PROJECTED)):
        request = requests(mixtral, tmp_path, shards)
        spec = spec_of(request, correction, projection=projection, projection_dim=4, pooling="concatenate")
        assert_corrected(spec, oracle, tolerance=tolerance)


def test_neither_batches_nor_shards_change_the_factors_beyond_rounding(llama, shards, tmp_path):
    whole = tuple(plan_shards(CorpusFile(path=shards[0].path, id_prefix="c"), shard_size=100))
    found = []
    for number, (cut, budget) in enumerate([(shards, 16), (whole, 4096)]):
        artifact = build(write_kronecker.body, requests(llama, tmp_path / f"{number}", cut, token_budget=budget))
        found.append(from_tensors(read_tensors(artifact.path(str(tmp_path / f"{number}")), KRONECKER)))
    for name, one in found[0].items():
        other = found[1][name]
        for side in ("input", "output"):
            A, B = (rebuilt(kfac.tensors(), side) for kfac in (one, other))
            assert (A - B).norm() < 1e-5 * A.norm(), name


def rebuilt(tensors, side):
    """A or S from what is kept of it."""
    Q = tensors[f"{side}_basis"].double()
    return (Q * tensors[f"{side}_values"]) @ Q.T


def test_the_factors_say_what_they_were_made_of_and_whether_two_halves_agree(llama, shards, tmp_path):
    facts = build(write_kronecker.body, requests(llama, tmp_path, shards)).facts
    num_predictions = sum(len(ids) - 1 for ids in Oracle(llama, TEXTS, QUERIES[:1]).token_ids)
    assert (facts["num_documents"], facts["num_tokens"]) == (len(TEXTS), num_predictions)
    assert 0 < facts["halves_differ"]["A"]["median"] <= facts["halves_differ"]["A"]["largest"]
    assert not facts["is_settled"]  # twenty sentences are few
    alone = build(write_kronecker.body, requests(llama, tmp_path, shards, sample_size=1)).facts
    assert (alone["num_documents"], alone["halves_differ"], alone["is_settled"]) == (1, None, False)


def test_an_expert_without_a_token_has_the_mean_factors_of_its_siblings(mixtral):  # noqa: F811
    model = load_model(read_checkpoint(str(mixtral)), ModelConfig(device="cpu"))
    name = "model.layers.0.mlp.experts.down_proj"
    matrices = [matrix for matrix in find_weight_matrices(model) if matrix.parameter == name]
    taps = [KroneckerTap(matrix, device=torch.device("cpu")) for matrix in matrices]
    for tap, matrix in list(zip(taps, matrices, strict=True))[1:]:
        tap.begin(torch.ones(2, 5, dtype=torch.bool))
        tap.receive(tap.keep(torch.randn(2, 5, matrix.shape[1])), torch.randn(2, 5, matrix.shape[0]))
    corrections, without_tokens = _decomposed(matrices, taps)
    assert without_tokens == [matrices[0].name]
    borrowed = corrections[matrices[0].name]
    mean = sum(tap.factors()[0] for tap in taps[1:]) / 2
    torch.testing.assert_close(rebuilt(borrowed.tensors(), "input"), mean, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match=r"no token of the sample reached .*down_proj; raise --factor-sample"):
        _decomposed(matrices[:1], taps[:1])


def test_a_factor_of_zeros_is_refused_by_name(llama):
    model = load_model(read_checkpoint(str(llama)), ModelConfig(device="cpu"))
    matrix = find_weight_matrices(model)[0]
    tap = KroneckerTap(matrix, device=torch.device("cpu"))
    tap.begin(torch.ones(1, 3, dtype=torch.bool))
    tap.receive(tap.keep(torch.ones(1, 3, matrix.shape[1])), torch.zeros(1, 3, matrix.shape[0]))
    with pytest.raises(InputError, match=f"{matrix.name}: the mean eigenvalue of S, of its output gradients, is 0"):
        _decomposed([matrix], [tap])


class AxesOracle:
    """Whitened gradients in the eigenbases, in float64; which of their axes vary most is found by sorting them all."""

    def __init__(self, sampled, empirical, spec) -> None:
        self._oracle, self._spec, self._bases = sampled, spec, bases_of(spec)
        self._windows = [self.whole(window) for window in empirical.windowed]

    def whole(self, gradients):
        """t̃ of every matrix by its name."""
        return {m.name: self._whitened(gradients, m.name) for m in self._oracle.matrices}

    def variances(self):
        """Mean t̃² over the windows, under the text's own labels."""
        return {name: np.mean([window[name] ** 2 for window in self._windows], axis=0) for name in self._windows[0]}

    def _whitened(self, gradients, name):
        Q_S, Q_A = self._bases[name]
        if self._spec.gradient.correction == "ekfac":
            return self._oracle.corrected(gradients, name, (Q_S, Q_A))
        S_root, A_root = self._oracle.root(name)
        return Q_S.T @ S_root @ gradients[name].detach().numpy() @ A_root @ Q_A


@pytest.mark.parametrize("correction", ["kfac", "ekfac"])
@pytest.mark.parametrize("num_axes", [60, 8192])
def test_the_kept_axes_are_those_of_largest_whitened_variance(family, oracles, shards, tmp_path, correction, num_axes):
    spec = spec_of(requests(family, tmp_path, shards), correction, projection="axes", num_axes=num_axes)
    oracle = AxesOracle(oracles["sampled"], oracles["empirical"], spec)
    variances = oracle.variances()
    kept = read_tensors(spec.kronecker[-1].path(spec.index), AXES)
    indices = {name: kept[f"{name}.indices"].numpy() for name in variances}
    facts = spec.kronecker[-1].facts
    total = sum(of.size for of in variances.values())
    assert facts["num_axes"] == sum(map(len, indices.values())) == min(num_axes, total)
    left_out = [np.delete(of.ravel(), indices[name]).max(initial=0) for name, of in variances.items()]
    for matrices in oracles["sampled"].blocks.values():
        own = np.concatenate([variances[m.name].ravel()[indices[m.name]] for m in matrices])
        assert len(own)
        assert len(own) == 1 or own.min() >= (1 - 1e-3) * max(left_out)  # but for rounding, none left out varies more
    held = sum(of.ravel()[indices[name]].sum() for name, of in variances.items())
    assert facts["share_of_variance"] == pytest.approx(held / sum(of.sum() for of in variances.values()), rel=1e-3)

    _, vectors = Engine(spec).gradients(oracles["sampled"].token_ids, first_targets=[1] * len(TEXTS))
    for block, matrices in oracles["sampled"].blocks.items():
        for found, document in zip(vectors[block], oracles["sampled"].documents, strict=True):
            whole = oracle.whole(document)
            expected = np.concatenate([whole[m.name].ravel()[indices[m.name]] for m in matrices])
            assert np.linalg.norm(found - expected) < PROJECTED * np.linalg.norm(expected)


def test_axes_of_every_expert_are_read_off_the_tokens_it_is_given(mixtral, shards, tmp_path):  # noqa: F811
    spec = spec_of(requests(mixtral, tmp_path, shards), "ekfac", projection="axes", num_axes=200)
    sampled = FactorOracle(mixtral, labels="sampled")
    oracle = AxesOracle(sampled, sampled, spec)
    kept = read_tensors(spec.kronecker[-1].path(spec.index), AXES)
    _, vectors = Engine(spec).gradients(sampled.token_ids[:3], first_targets=[1] * 3)
    for block, matrices in sampled.blocks.items():
        for found, document in zip(vectors[block], sampled.documents, strict=False):
            whole = oracle.whole(document)
            expected = np.concatenate([whole[m.name].ravel()[kept[f"{m.name}.indices"].numpy()] for m in matrices])
            assert np.linalg.norm(found - expected) <= PROJECTED * np.linalg.norm(expected)
