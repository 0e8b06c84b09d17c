"""Answers by gradients: who ranks highest and lowest, how all scores lie, and the tokens that carry them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from trackstar.storage.errors import InputError
from trackstar.tasks.asking.answers import Spread
from trackstar.tasks.asking.corpus_side import CorpusSide
from trackstar.tasks.asking.document_shares import document_shares
from trackstar.tasks.asking.gradient_scan import Found, Reading, read_queries_by, scan
from trackstar.tasks.asking.held_documents import HeldDocuments
from trackstar.tasks.asking.held_model import HeldModel
from trackstar.tasks.asking.watching import Progress, Watch
from trackstar.tasks.index.candidates import Candidates
from trackstar.tasks.methods.settings import GRADIENT_METHODS
from trackstar.tasks.models.document_tokens import DocumentTokens
from trackstar.tasks.models.engine import Engine
from trackstar.tasks.numerics.ranking import Ranked
from trackstar.tasks.numerics.token_influence import candidate_norms, query_readout
from trackstar.tasks.report.passages import Token
from trackstar.tasks.scoring.score_pass import ScoreConfig

TOKENS_READ = 50  # documents at either end of a ranking whose tokens are read


class GradientAnswers:
    """Scores of an index's gradients by any method that needs no other store."""

    def __init__(self, side: CorpusSide, candidates: Candidates, documents: HeldDocuments, model: HeldModel) -> None:
        self._side, self._candidates, self._documents, self._model = side, candidates, documents, model

    def reading(self, method: str, vectors: Mapping[str, ndarray], score: ScoreConfig, watch: Watch) -> Reading:
        """How queries with these vectors [q d] read the corpus; its norms are measured if nobody has."""

        def advance(done: int, total: int) -> None:
            watch.tell(Progress("norms", method, done, total))

        config = preset(method, score)
        self._side.compute_norms(whitened=config.whitening != "none", advance=advance)
        return read_queries_by(self._side, vectors, config)

    def scan(self, reading: Reading, num_ranked: int, method: str, watch: Watch) -> Found:
        """One pass over the store; the first ``num_ranked`` queries get their documents ranked."""
        done = 0

        def advance(count: int, found: Found) -> None:
            nonlocal done
            done += count
            watch.tell(Progress("scores", method, done, self._candidates.num_live, found))

        return scan(self._side, self._candidates, reading, num_ranked=num_ranked, advance=advance)

    def tokens(
        self, method: str, ranked: Mapping[str, Ranked], reading: Reading, watch: Watch
    ) -> dict[int, tuple[Token, ...]]:
        """The shares of the tokens of the documents at either end, by position."""
        positions = sorted({p for best in ranked.values() for p in best.positions[0][:TOKENS_READ].tolist()})
        watch.tell(Progress("tokens", method, 0, len(positions)))
        readouts = {
            block: query_readout(basis, [0], mixing_weight=reading.mixing_weight)
            for block, basis in reading.bases.items()
        }
        with self._model.reader() as (reader, engine):
            documents = self._documents.tokens(positions, engine.tokenizer)
            shares = document_shares(
                reader,
                engine,
                documents,
                {block: w[0] for block, (w, _) in readouts.items()},
                token_budget=self._model.spec.model.token_budget,
            )
            norms = self._norms(engine, positions, documents, reading)
        q_norm = sum(norm[0] for _, norm in readouts.values())
        divisors = np.sqrt(norms * q_norm) if reading.config.unit_norm else np.ones(len(positions))
        return {
            position: tuple(Token(start, stop, share / divisor) for start, stop, share in of_text)
            for position, of_text, divisor in zip(positions, shares, divisors.tolist(), strict=True)
        }

    def _norms(
        self, engine: Engine, positions: Sequence[int], documents: Sequence[DocumentTokens], reading: Reading
    ) -> ndarray:
        """φ_mᵀ R^-1 φ_m of some documents, all blocks together."""
        psi_norms = np.stack([self._psi_norms(position, reading) for position in positions])
        if not reading.mixing_weight:
            return psi_norms.sum(axis=1)
        _, vectors = engine.gradients([row.ids for row in documents], first_targets=[row.targets for row in documents])
        return sum(
            candidate_norms(vectors[block], of_block, basis, mixing_weight=reading.mixing_weight)
            for (block, basis), of_block in zip(reading.bases.items(), psi_norms.T, strict=True)
        )

    def _psi_norms(self, position: int, reading: Reading) -> ndarray:
        path, row = self._documents.place(position)
        return self._side.norms(path, whitened=reading.is_whitened)[0][row]


def spread_of(found: Found) -> Spread:
    """How the scores of a pass's first query lie; the others are standing queries."""
    return Spread.of(found.sums, np.concatenate(found.sample), background_best=found.best[1:].tolist())


def preset(method: str, score: ScoreConfig) -> ScoreConfig:
    """The score settings of a gradient method."""
    changes = GRADIENT_METHODS[method].changes
    if changes.get("whitening") == "mixed" and score.whitening != "mixed":
        raise InputError(f"the method {method} mixes in R_eval, which one question has not; give a background")
    if score.whitening == "none" and changes.get("whitening", "none") == "train":
        raise InputError(f"the method {method} whitens by R_train, which the index does not have; use no_whitening")
    return ScoreConfig.model_validate({**score.model_dump(), **changes})


def facts_of(reading: Reading) -> dict[str, Any]:
    """How scores were made, for whoever reads them."""
    config = reading.config
    return {
        "whitening": config.whitening,
        "mixing_weight": reading.mixing_weight,
        "damping": config.damping,
        "unit_norm": config.unit_norm,
    }
