"""R_train and rankings of a store that has grown and shrunk, against those of one that was built as it is now."""

# ruff: noqa: F811  (fixtures of another module)

import numpy as np
import polars as pl
import pytest
from upath import UPath

from tests.reference import influence
from tests.scoring.test_score_pass import DIMS, NUM_QUERIES, SHARD_ROWS, gradients, write_shard, write_store  # noqa: F401
from trackstar.storage.errors import InputError
from trackstar.storage.layout import RANKING
from trackstar.storage.tables import read_table
from trackstar.tasks.index import curvature
from trackstar.tasks.index.curvature import (
    AutocorrelationRequest,
    GramRequest,
    IndexedShards,
    closed_groups,
    read_autocorrelation,
    used_rows,
)
from trackstar.tasks.index.norms import mean_squares
from trackstar.tasks.index.withdrawals import TombstoneRequest, new_withdrawal, write_tombstones
from trackstar.tasks.runtime.stage import build
from trackstar.tasks.scoring.score_pass import ScoreConfig, ScoreRequest, rank_candidates
from trackstar.tasks.scoring.whitening import (
    FactorRequest,
    SpectrumRequest,
    TrainNormsRequest,
    write_factors,
    write_spectrum,
    write_train_norms,
)

pytestmark = pytest.mark.numerical

IDS = [f"d{number}" for number in range(sum(SHARD_ROWS))]
GONE = ("d1", "d7", "d8", "d20")
CONFIG = ScoreConfig(mixing_weight=0.9, damping=0.1, top_k=0)


@pytest.fixture
def index(tmp_path):
    return UPath(tmp_path)


@pytest.fixture
def store(index, gradients):
    return write_store(index, gradients)


def withdraw(index, shards, ids, previous=None, at="2026-01-01T00:00:00+00:00"):
    withdrawal = new_withdrawal(ids, index=str(index), shards=shards, tombstones=previous, at=at, reason="a reason")
    return build(write_tombstones.body, TombstoneRequest(index=str(index), previous=previous, withdrawal=withdrawal))


def reduce(index, shards, *, tombstones=None, groups=(), sample=None):
    grams = [build(curvature.write_gram.body, GramRequest(index=str(index), shards=group)) for group in groups]
    request = AutocorrelationRequest(
        index=str(index),
        shards=shards,
        tombstones=tombstones,
        sample=sample,
        grams=tuple(zip(grams, groups, strict=True)),
    )
    return build(curvature.write_autocorrelation.body, request)


def rank(index, shards, queries, *, tombstones=None, groups=(), config=CONFIG):
    common = {"index": str(index), "shards": shards, "tombstones": tombstones}
    R = reduce(index, shards, tombstones=tombstones, groups=groups)
    of_factors = FactorRequest(index=str(index), autocorrelation=R, damping=config.damping)
    factors = build(write_factors.body, of_factors)
    norms = build(write_train_norms.body, TrainNormsRequest(factors=factors, **common))
    spectrum = build(write_spectrum.body, SpectrumRequest(autocorrelation=R, **common))
    request = ScoreRequest(
        method="trackstar",
        config=config,
        queries=queries,
        factors=factors,
        train_norms=norms,
        spectrum=spectrum,
        **common,
    )
    return build(rank_candidates.body, request)


def scores(index, ranking):
    return read_table(ranking.path(str(index)), RANKING).sort("method", "query_id", "kind", "candidate_id")


def kept(gradients, gone=GONE):
    rows = [number for number, id_ in enumerate(IDS) if id_ not in gone]
    return {name: vectors[rows] for name, vectors in gradients[0].items()}


def test_appending_and_withdrawing_gives_the_rankings_of_a_store_built_without_the_documents(
    index,
    store,
    gradients,
    tmp_path,
):
    shards, queries = store
    tombstones = withdraw(index, shards, GONE)
    groups = [tuple(shard for shard in shards[:3] if shard.facts["num_documents"])]  # summed before the last two came
    changed = scores(index, rank(index, shards, queries, tombstones=tombstones, groups=groups))

    scratch = UPath(tmp_path / "scratch")
    _, queries = write_store(scratch, gradients)
    ids = [id_ for id_ in IDS if id_ not in GONE]
    built = scores(scratch, rank(scratch, (write_shard(scratch, "all", kept(gradients), ids),), queries))

    assert changed.drop("score").equals(built.drop("score"))
    # sums of other orders; float32 products of rows in other batches
    np.testing.assert_allclose(changed["score"], built["score"], atol=1e-6)
    assert not set(GONE) & set(changed["candidate_id"])


@pytest.mark.parametrize("gone", [(), GONE])
@pytest.mark.parametrize("whitening", ["mixed", "train"])
def test_without_R_train_scores_are_those_of_the_definition_with_the_mean_square_of_what_is_left(
    index, store, gradients, gone, whitening
):
    shards, queries = store
    tombstones = withdraw(index, shards, gone) if gone else None
    common = {"index": str(index), "shards": shards, "tombstones": tombstones}
    squares = mean_squares(IndexedShards(**common))
    documents = kept(gradients, gone)
    for block, phi in documents.items():
        assert squares[block] == pytest.approx(np.square(phi, dtype=np.float64).mean(), rel=1e-12)
    request = ScoreRequest(
        method="trackstar", config=ScoreConfig(mixing_weight=0.9, whitening=whitening, top_k=0), queries=queries,
        factors=None, spectrum=None, train_norms=None, mean_squares=squares, **common,
    )  # fmt: skip
    found = scores(index, build(rank_candidates.body, request)).filter(pl.col("kind") == "proponent")
    expected = influence(
        documents.values(), gradients[1].values(), mixing_weight=0.9, whitening=whitening, is_flat=True
    )
    ids = [id_ for id_ in IDS if id_ not in gone]
    for query in range(NUM_QUERIES):
        by_id = dict(found.filter(pl.col("query_id") == f"q{query}").select("candidate_id", "score").iter_rows())
        np.testing.assert_allclose([by_id[id_] for id_ in ids], expected[:, query], atol=1e-5)


def test_lambda_is_where_the_flat_spectrum_and_that_of_R_eval_cross(index, store, gradients):
    shards, queries = store
    common = {"index": str(index), "shards": shards}
    squares = mean_squares(IndexedShards(**common))
    request = ScoreRequest(
        method="trackstar", config=ScoreConfig(), queries=queries, factors=None, spectrum=None, train_norms=None,
        mean_squares=squares, **common,
    )  # fmt: skip
    facts = build(rank_candidates.body, request).facts
    train = sorted((s for block, s in squares.items() for _ in range(DIMS[block])), reverse=True)
    singular = [np.linalg.svd(phi.astype(np.float64), compute_uv=False) for phi in gradients[1].values()]
    evaluation = sorted((v**2 / NUM_QUERIES for values in singular for v in values), reverse=True)
    at = facts["crossing_index"] - 1
    assert facts["mixing_weight"] == pytest.approx(train[at] / (train[at] + evaluation[at]), rel=1e-9)
    assert (facts["damping"], facts["factors"], facts["train_norms"]) == (None, None, None)


def test_R_train_less_withdrawn_rows_is_that_of_the_rest_to_rounding(index, store, gradients):
    shards, _ = store
    tombstones = withdraw(index, shards, GONE)
    whole = tuple(shard for shard in shards if shard.facts["num_documents"])
    for groups in ([], [whole[:2]], [whole]):
        R = reduce(index, shards, tombstones=tombstones, groups=groups)
        assert (R.facts["num_documents"], R.facts["num_withdrawn"]) == (len(IDS) - len(GONE), len(GONE))
        for block, phi in kept(gradients).items():
            expected = phi.astype(np.float64).T @ phi.astype(np.float64) / len(phi)
            np.testing.assert_allclose(read_autocorrelation(R.path(str(index)), block), expected, atol=1e-13)
        UPath(index / R.name).rename(index / f"aside-{len(groups)}-{len(groups and groups[0])}")


def test_sums_of_shards_are_used_and_not_computed_again(index, store, monkeypatch):
    shards, _ = store
    groups = [tuple(shard for shard in shards[:3] if shard.facts["num_documents"])]
    gram = build(curvature.write_gram.body, GramRequest(index=str(index), shards=groups[0]))
    read, real = [], curvature.block_rows

    def counting(rows, block):
        rows = list(rows)
        read.extend(path.name for path, _ in rows)
        return real(rows, block)

    monkeypatch.setattr(curvature, "block_rows", counting)
    request = AutocorrelationRequest(index=str(index), shards=shards, grams=((gram, groups[0]),))
    build(curvature.write_autocorrelation.body, request)
    assert set(read) == {location.name for location in (shards[3].path(str(index)), shards[4].path(str(index)))}


def test_a_changed_shard_leaves_all_closed_groups_but_its_own_as_they_were(store):
    shards = [
        store[0][0].model_copy(update={"digest": f"{number:016x}".ljust(64, "0"), "name": f"shards/{number:016x}"})
        for number in np.random.default_rng(0).integers(1, 2**63, size=200).tolist()
    ]
    before = closed_groups(shards, mean_size=8)
    assert 10 < len(before) < 50
    assert shards[: sum(map(len, before))] == [shard for group in before for shard in group]
    middle = [*shards[:100], shards[100].model_copy(update={"digest": "f" * 64}), *shards[101:]]
    after = closed_groups([*middle, *shards[:1]], mean_size=8)
    assert sum(group not in after for group in before) <= 1


@pytest.mark.parametrize("size", [1, 9, 1000])
def test_a_sample_has_the_stated_size_no_withdrawn_row_and_depends_on_its_seed_alone(index, store, gradients, size):
    shards, _ = store
    tombstones = withdraw(index, shards, GONE)
    R = reduce(index, shards, tombstones=tombstones, sample=(size, 3))
    request = AutocorrelationRequest(index=str(index), shards=shards, tombstones=tombstones)
    starts = dict(zip(request.shard_paths, np.cumsum([0, *SHARD_ROWS[:-1]]), strict=True))

    def drawn(seed):
        used = used_rows(request, request.withdrawn(), sample=(size, seed))
        return [
            int(starts[path]) + row
            for path, rows in used
            for row in (range(SHARD_ROWS[request.shard_paths.index(path)]) if rows is None else rows)
        ]

    assert len(drawn(3)) == len(set(drawn(3))) == R.facts["num_documents"] == min(size, len(IDS) - len(GONE))
    assert not {IDS[position] for position in drawn(3)} & set(GONE)
    assert drawn(3) == drawn(3)
    assert size == 1000 or any(drawn(seed) != drawn(3) for seed in range(5))
    for block, vectors in gradients[0].items():
        phi = vectors[drawn(3)].astype(np.float64)
        np.testing.assert_allclose(read_autocorrelation(R.path(str(index)), block), phi.T @ phi / len(phi), atol=1e-13)


def test_every_mixing_weight_of_one_pass_has_the_scores_of_the_definition(index, store, gradients):
    shards, queries = store
    weights = {"trackstar": 0.9, "trackstar@0": 0.0, "trackstar@0.5": 0.5, "trackstar@0.99": 0.99}
    for damping in (0.1, 1e-6):  # the second has float32 products nowhere near the tolerance
        config = ScoreConfig(mixing_weight=0.9, mixing_weights=(0, 0.5, 0.99), damping=damping, top_k=0)
        ranking = rank(index, shards, queries, config=config)
        assert ranking.facts["mixing_weights"] == weights
        found = scores(index, ranking).filter(pl.col("kind") == "proponent")
        for method, weight in weights.items():
            expected = influence(*(part.values() for part in gradients), mixing_weight=weight, damping=damping)
            for query in range(NUM_QUERIES):
                rows = found.filter((pl.col("method") == method) & (pl.col("query_id") == f"q{query}"))
                by_id = dict(rows.select("candidate_id", "score").iter_rows())
                np.testing.assert_allclose([by_id[id_] for id_ in IDS], expected[:, query], atol=1e-5)


def test_the_spectra_are_in_the_facts_of_a_ranking(index, store, gradients):
    shards, queries = store
    spectra = rank(index, shards, queries).facts["spectra"]
    values = [np.linalg.eigvalsh(phi.T @ phi / len(phi)) for phi in gradients[0].values()]
    dims = sum(DIMS.values())
    dimension = sum((v / (v + CONFIG.damping * v.mean())).sum() for v in values)
    assert (spectra["R_train"]["num_dims"], spectra["R_train"]["rank"]) == (dims, dims)
    assert spectra["R_train"]["effective_dimension"] == pytest.approx(dimension, rel=1e-5)
    assert spectra["R_train"]["damping_share"] == pytest.approx(1 - dimension / dims, rel=1e-4)
    assert spectra["R_eval"]["rank"] == NUM_QUERIES * len(DIMS)


def test_withdrawing_again_changes_nothing_and_wrong_ids_are_named(index, store):
    shards, _ = store
    first = withdraw(index, shards, GONE)
    arguments = {"index": str(index), "shards": shards, "at": "later", "reason": ""}
    assert new_withdrawal(GONE, tombstones=first, **arguments) is None
    with pytest.raises(InputError, match="no document 'nobody'"):
        new_withdrawal(["d0", "nobody"], tombstones=first, **arguments)
    with pytest.raises(InputError, match="every document"):
        new_withdrawal(IDS, tombstones=first, **arguments)
    second = withdraw(index, shards, ["d0", "d1"], previous=first, at="2026-01-02T00:00:00+00:00")
    assert second.facts["num_ids"] == len(GONE) + 1
