"""Every method by its name: TrackStar, what is left of it without one term, its relatives, and what needs no gradient.

    name           gradient      R           unit norm   remark
    trackstar      ÷ √V          mixed       yes         as the score options say, and these are its defaults
    mixed          ÷ √V          mixed       yes         whatever the options say
    train_only     ÷ √V          R_train     yes
    no_whitening   ÷ √V          none        yes
    no_unit_norm   ÷ √V          mixed       no
    no_v           plain         mixed       yes
    trak           plain         R_train     no          see below
    grad_dot       plain         none        no          TracIn, summed over checkpoints
    grad_cosine    plain         none        yes         the same of cosines
    influence      plain, whole  H           no          Gauss-Newton by conjugate gradients; small models
    bm25, dense, hybrid (reciprocal-rank fusion of trackstar and bm25), random

``trak`` has TRAK's estimator (Park et al. 2023): projected gradients φ(m)ᵀ (ΦᵀΦ)^-1 φ(q), no second moment, no mixing,
no normalisation. It is not TRAK to the letter: gradients are those of the summed loss and not of the model output
(log-odds), which takes the place of its factor 1 - p; P is two-sided per matrix and R block-diagonal; R is damped; and
there is one checkpoint where TRAK averages over several, trained independently.
"""

from collections.abc import Sequence

from trackstar.storage.errors import InputError
from trackstar.storage.manifest import Artifact
from trackstar.storage.queries import Query
from trackstar.tasks.index.contents import Index
from trackstar.tasks.methods.bm25 import BaselineRequest, rank_by_baseline
from trackstar.tasks.methods.dense import rank_densely
from trackstar.tasks.methods.hybrid import FUSED_DEPTH, HybridRequest, fuse_rankings
from trackstar.tasks.methods.influence import InfluenceRequest, rank_by_influence
from trackstar.tasks.methods.plain_gradients import plain_index, with_autocorrelation
from trackstar.tasks.methods.settings import (
    DEFAULT_METHODS,
    DENSE,
    FUSED_METHODS,
    GRADIENT_METHODS,
    HYBRID,
    INFLUENCE,
    METHODS,
    TRACIN_METHODS,
    TRACKSTAR,
    MethodSettings,
    Preset,
    require_possible,
)
from trackstar.tasks.methods.tracin import TracInRequest, rank_by_tracin
from trackstar.tasks.models.checkpoint import Checkpoint, read_checkpoint
from trackstar.tasks.scoring.rank import encode, rank
from trackstar.tasks.scoring.settings import ScoreConfig

__all__ = ["DEFAULT_METHODS", "DENSE", "METHODS", "TRACKSTAR", "Comparison", "MethodSettings", "require_possible"]


class Comparison:
    """The methods of one comparison: an index, a query set, and settings; what several methods need is made once."""

    def __init__(self, index: Index, queries: Sequence[Query], encoded: Artifact, settings: MethodSettings) -> None:
        self._index, self._queries, self._encoded, self._settings = index, queries, encoded, settings

    def rank_by(self, method: str, *, score: ScoreConfig | None = None) -> Artifact:
        """The ranking of the query set by the method of this name."""
        score = score or self._settings.score
        if method in GRADIENT_METHODS:
            return self._rank_by_gradients(method, GRADIENT_METHODS[method], score)
        if method in TRACIN_METHODS:
            return self._rank_by_tracin(method, score)
        if method == INFLUENCE:
            return self._rank_by_influence(score)
        if method == DENSE:
            encoder = self._settings.dense_encoder
            return rank_densely(self._index, self._queries, encoder=encoder, top_k=score.top_k)
        if method == HYBRID:
            return self._fuse(score)
        return rank_by_baseline(
            BaselineRequest(
                index=str(self._index.path),
                shards=self._index.shards,
                tombstones=self._index.tombstones,
                method=method,
                queries=tuple(self._queries),
                top_k=score.top_k,
            )
        )

    def _rank_by_gradients(self, method: str, preset: Preset, score: ScoreConfig) -> Artifact:
        changed = ScoreConfig.model_validate({**score.model_dump(), **preset.changes})
        index, encoded = self._index, self._encoded
        if not preset.is_corrected:
            index = plain_index(index)
            if changed.whitening != "none":
                index = with_autocorrelation(index, dask=self._settings.dask)
            encoded = encode(index, self._queries, is_said=True)
        return rank(index, encoded, changed, method=method, dask=self._settings.dask)

    def _rank_by_tracin(self, method: str, score: ScoreConfig) -> Artifact:
        others = self._other_checkpoints()
        indexes = [plain_index(self._index), *(plain_index(self._index, checkpoint=other) for other in others)]
        return rank_by_tracin(
            TracInRequest(
                index=str(self._index.path),
                method=method,
                shards=tuple(index.shards for index in indexes),
                queries=tuple(encode(index, self._queries, is_said=True) for index in indexes),
                unit_norm=TRACIN_METHODS[method],
                top_k=score.top_k,
                tombstones=self._index.tombstones,
            )
        )

    def _other_checkpoints(self) -> list[Checkpoint]:
        """The further checkpoints, each another than the index's and than the ones before it."""
        engine = self._index.engine
        seen, others = {engine.checkpoint.digest: engine.checkpoint.path}, []
        for path in self._settings.also_checkpoints:
            other = read_checkpoint(path, trust_remote_code=engine.model.trust_remote_code)
            if other.digest in seen:
                raise InputError(f"{path} is the same checkpoint as {seen[other.digest]}; give each one once")
            seen[other.digest] = path
            others.append(other)
        return others

    def _rank_by_influence(self, score: ScoreConfig) -> Artifact:
        return rank_by_influence(
            InfluenceRequest(
                index=str(self._index.path),
                engine=self._index.engine.uncorrected(),
                documents=self._index.shards,
                queries=tuple(self._queries),
                config=self._settings.influence,
                top_k=score.top_k,
                tombstones=self._index.tombstones,
            )
        )

    def _fuse(self, score: ScoreConfig) -> Artifact:
        depth = max(score.top_k, FUSED_DEPTH) if score.top_k else 0
        deep = score.model_copy(update={"top_k": depth})
        rankings = tuple(self.rank_by(method, score=deep) for method in FUSED_METHODS)
        return fuse_rankings(HybridRequest(index=str(self._index.path), rankings=rankings, top_k=score.top_k))
