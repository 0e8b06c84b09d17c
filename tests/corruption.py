"""Damage every file of an index in every way, one by one: each is found by what reads it, named, and cured as it says.

python -m tests.corruption [SEED]     all files and all damages; prints the counts, and whatever was missed

An index of two shards and its twin (other documents, another seed) are made without Prefect. A trial damages one file,
runs what reads that kind of file, does what the error says, and compares every byte with what was there before.
"""

import json
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from upath import UPath

from tests.tiny import QUERIES as ASKED_QUERIES
from tests.tiny import TEXTS, save_llama
from trackstar.flows.cli.tables import verify_index
from trackstar.storage.errors import CorruptionError, StorageError
from trackstar.storage.gradients import GradientReader
from trackstar.storage.layout import (
    COST,
    FACTORS,
    GRAM,
    HOLDER,
    INDEX,
    LOCK,
    MANIFEST,
    QUARANTINE,
    QUERIES,
    RANKING,
    SPECTRUM,
)
from trackstar.storage.manifest import Artifact
from trackstar.storage.matrices import read_arrays
from trackstar.storage.queries import Query
from trackstar.storage.results import read_proponents, read_run, write_proponents, write_run
from trackstar.storage.tables import read_table
from trackstar.storage.triangles import read_lower
from trackstar.storage.verification import findings
from trackstar.tasks.index.contents import (
    Index,
    each_text,
    existing_index,
    read_index,
    require_same_settings,
    write_index,
)
from trackstar.tasks.index.corpus import CorpusConfig, plan_file, plan_requests
from trackstar.tasks.index.curvature import (
    AutocorrelationRequest,
    CurvatureConfig,
    GramRequest,
    closed_groups,
    read_autocorrelation,
    write_autocorrelation,
    write_gram,
)
from trackstar.tasks.index.norms import read_document_norms
from trackstar.tasks.index.second_moment import SecondMomentConfig, SecondMomentRequest, write_second_moment
from trackstar.tasks.index.settings import FactorConfig
from trackstar.tasks.index.shards import index_shard, shard_requests
from trackstar.tasks.index.withdrawals import TombstoneRequest, Withdrawal, read_ids, withdrawn_rows, write_tombstones
from trackstar.tasks.models.checkpoint import ModelConfig, read_checkpoint
from trackstar.tasks.models.engine import EngineSpec, GradientConfig, read_corrections
from trackstar.tasks.reindex.checkpoints import ASKED, Asked, asked_of, require_asked, write_asked
from trackstar.tasks.report.results import run_record
from trackstar.tasks.runtime.costs import seconds
from trackstar.tasks.runtime.stage import build
from trackstar.tasks.scoring.queries import QueryRequest, encode_queries
from trackstar.tasks.scoring.score_pass import ScoreConfig, ScoreRequest, rank_candidates, read_query_vectors
from trackstar.tasks.scoring.whitening import (
    FactorRequest,
    SpectrumRequest,
    TrainNormsRequest,
    TrainWhitening,
    write_factors,
    write_spectrum,
    write_train_norms,
)

RESULTS = "results"
NUM_FLIPS = 8  # of each file, at places drawn at random, besides its first and its last byte


@dataclass(frozen=True)
class World:
    """An index, what one query set added to it, and the results, below one directory."""

    root: Path
    checkpoint: Path
    corpus: Path
    seed: int = 0
    num_layer_blocks: int = 1

    @property
    def index(self) -> str:
        return str(self.root / "index")

    @property
    def results(self) -> UPath:
        return UPath(self.root / RESULTS)

    def make(self) -> tuple[Index, ScoreRequest, Artifact]:
        """What `trackstar index`, `withdraw` and `reindex` would leave; what is there already is left as it is."""
        index = self._make_index(existing_index(self.index))
        request = self._score_request(index)
        ranking = build(rank_candidates.body, request)
        self._write_results(index, request, ranking)
        return index, request, ranking

    def _make_index(self, existing: Index | None) -> Index:
        corpus = CorpusConfig(paths=(str(self.corpus),), shard_size=11)
        shards = [shard for plan in plan_requests(corpus) for shard in plan_file.fn(plan).shards]
        engine = EngineSpec(
            index=self.index,
            checkpoint=read_checkpoint(str(self.checkpoint)),
            model=ModelConfig(),
            gradient=GradientConfig(projection_dim=4, num_layer_blocks=self.num_layer_blocks, seed=self.seed),
            second_moment=None,
        )
        require_same_settings(existing, engine, SecondMomentConfig(), FactorConfig())
        common = {"checkpoint": engine.checkpoint, "model": engine.model, "gradient": engine.gradient}
        V = build(write_second_moment.body, SecondMomentRequest(index=self.index, mode="factored", **common))
        engine = engine.model_copy(update={"second_moment": V})
        requests = shard_requests(engine, corpus, shards, store_as="float16")
        stored = tuple(build(index_shard.body, request) for request in requests)
        withdrawal = Withdrawal(ids=(f"d{3 + self.seed}",), at="2026-01-01T00:00:00+00:00", reason="asked to")
        wanted = TombstoneRequest(index=self.index, previous=None, withdrawal=withdrawal)
        tombstones = build(write_tombstones.body, wanted)
        groups = closed_groups(stored, mean_size=1)
        grams = tuple(build(write_gram.body, GramRequest(index=self.index, shards=group)) for group in groups)
        pairs = tuple(zip(grams, groups, strict=True))
        store = {"index": self.index, "shards": stored, "tombstones": tombstones}
        R = build(write_autocorrelation.body, AutocorrelationRequest(grams=pairs, **store))
        index = Index(
            engine=engine,
            corpus=corpus,
            curvature=CurvatureConfig(group_shards=1),
            shards=stored,
            autocorrelation=R,
            grams=grams,
            tombstones=tombstones,
            num_withdrawn=1,
        )
        write_index(index)
        return index

    def _score_request(self, index: Index) -> ScoreRequest:
        store = {"index": self.index, "shards": index.shards, "tombstones": index.tombstones}
        R, config = index.autocorrelation, ScoreConfig(mixing_weight=0.5, damping=0.1, top_k=3)
        asked = QueryRequest(index=self.index, engine=index.engine, queries=self._queries())
        of_factors = FactorRequest(index=self.index, autocorrelation=R, damping=config.damping)
        factors = build(write_factors.body, of_factors)
        return ScoreRequest(
            method="trackstar",
            config=config,
            queries=build(encode_queries.body, asked),
            factors=factors,
            spectrum=build(write_spectrum.body, SpectrumRequest(autocorrelation=R, **store)),
            train_norms=build(write_train_norms.body, TrainNormsRequest(factors=factors, **store)),
            **store,
        )

    def _queries(self) -> tuple[Query, ...]:
        return tuple(Query.model_validate(query) for query in ASKED_QUERIES[self.seed :])

    def _write_results(self, index: Index, request: ScoreRequest, ranking: Artifact) -> None:
        frame = read_table(ranking.path(self.index), RANKING)
        texts = dict(each_text(index.shard_paths))
        files = write_proponents(self.results, frame, queries=self._queries(), texts=texts, query_set="q")
        (self.results / "proponents.csv").unlink()  # for people: no command reads it
        write_run(self.results, run_record(index, self._queries(), request.queries, [ranking]), files=files)
        if asked_of(self.results) is None:
            queries, step = self._queries(), self.seed
            asked = Asked(checkpoints="run", name="step", step=step, digest="0", queries=queries, score=request.config)
            write_asked(self.results, asked)


def make_worlds(root: Path) -> tuple[World, World]:
    """An index, and another one of another checkpoint, other documents, another projection and other queries."""
    worlds = []
    for seed, texts in enumerate(([*TEXTS, ""], ["", *TEXTS[::-1]])):  # one document is quarantined
        checkpoint, corpus = save_llama(root / f"checkpoint-{seed}", seed=seed), root / f"corpus-{seed}.jsonl"
        corpus.write_text("".join(json.dumps({"id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(texts)))
        worlds.append(World(root / f"world-{seed}", checkpoint, corpus, seed))
    return worlds[0], worlds[1]


class Readers:
    """What reads each kind of file, by the references that a command would hold."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.index, self.request, self.ranking = world.make()

    def of(self, file: str) -> Callable[[], object]:
        """What reads one file, named relative to the world."""
        place, kind, *rest = file.split("/")
        if place == RESULTS:
            return self._result_reader(kind)
        if kind == INDEX:
            return lambda: read_index(self.world.index).shard_paths
        if rest[-1] == COST:
            return lambda: seconds(UPath(self.world.root / file).parent)
        return getattr(self, f"_read_{kind}")

    def _result_reader(self, name: str) -> Callable[[], object]:
        directory = self.world.results
        readers = {
            "proponents.parquet": read_proponents,
            "proponents.csv": read_proponents,
            "run.json": read_run,
            "asked.json": require_asked,
        }
        return lambda: readers[name](directory)

    def _read_second_moment(self) -> None:
        read_corrections(self.index.engine, self.index.engine.corrected_by)

    def _read_shards(self) -> None:
        for path in self.index.shard_paths:
            reader = GradientReader(path)
            for block in reader.block_names:
                reader.rows(block, 0, reader.num_rows)
            read_document_norms(path)
            read_ids(path)
            read_table(path, QUARANTINE)
        list(each_text(self.index.shard_paths))

    def _read_tombstones(self) -> None:
        withdrawn_rows(self.index.shard_paths, self.index.tombstones, self.world.index)

    def _read_tombstone_copies(self) -> None:
        """Only ``verify`` reads the second copy."""
        for finding in findings(UPath(self.world.index)):
            if finding is not None:
                cure = f"run `trackstar verify {self.world.index} --repair`"
                raise CorruptionError(finding.path, finding.problem, cure)

    def _read_grams(self) -> None:
        for gram in self.index.grams:
            for block in self.index.block_dims:
                read_lower(gram.path(self.world.index), GRAM, block)

    def _read_autocorrelation(self) -> None:
        for block in self.index.block_dims:
            read_autocorrelation(self.index.autocorrelation.path(self.world.index), block)

    def _read_factors(self) -> None:
        for block in self.index.block_dims:
            read_lower(self.request.factors.path(self.world.index), FACTORS, block)

    def _read_spectrum(self) -> None:
        read_arrays(self.request.spectrum.path(self.world.index), SPECTRUM)

    def _read_train_norms(self) -> None:
        for path in self.index.shard_paths:
            TrainWhitening(norms=self.request.train_norms.path(self.world.index)).document_norms(path)

    def _read_queries(self) -> None:
        read_query_vectors(self.request)
        read_table(self.request.queries.path(self.world.index), QUERIES)

    def _read_rankings(self) -> None:
        read_table(self.ranking.path(self.world.index), RANKING)


@dataclass(frozen=True)
class Trial:
    """One damage done to one file, and what is there instead; None: the file is deleted."""

    file: str
    damage: str
    content: bytes | None


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: the error, or none; whether it named the file; whether its cure brought all bytes back."""

    trial: Trial
    error: Exception | None
    is_named: bool = False
    is_cured: bool | None = None

    @property
    def is_sound(self) -> bool:
        return self.error is not None and self.is_named and self.is_cured is not False


class Torture:
    """Trials on one index, with its twin to swap files with."""

    def __init__(self, root: Path) -> None:
        self.world, twin = make_worlds(root)
        self.readers = Readers(self.world)
        twin.make()
        self.files, self._twin_files, self._twin_root = snapshot(self.world.root), snapshot(twin.root), twin.root
        twin_at = dict(zip(_places(self._twin_files), self._twin_files, strict=True))
        places = zip(self.files, _places(self.files), strict=True)
        self._twin_names = {file: twin_at[place] for file, place in places if place in twin_at}

    def trials(self, generator: random.Random) -> Iterator[Trial]:
        """Every file flipped at some places, cut, emptied, deleted, and swapped with that of the other index."""
        for file, content in self.files.items():
            if file.endswith("proponents.jsonl"):
                continue  # never read again
            places = {0, len(content) - 1, *(generator.randrange(len(content)) for _ in range(NUM_FLIPS))}
            for place in sorted(places):
                flipped = content[place] ^ 1 << generator.randrange(8)
                yield Trial(file, "flipped", content[:place] + bytes([flipped]) + content[place + 1 :])
            yield Trial(file, "cut", content[: generator.randrange(1, len(content))])
            yield Trial(file, "emptied", b"")
            if not file.endswith(COST):  # without it, no seconds are shown
                yield Trial(file, "deleted", None)
            twin = self._twin_files.get(self._twin_names.get(file, ""))
            if twin not in (None, content) and not file.startswith(RESULTS) and not file.endswith(COST):
                yield Trial(file, "swapped", twin)

    def run(self, trial: Trial, *, cure: bool) -> Outcome:
        """Damage, read, cure as the error says; then put back what was there."""
        path = self.world.root / trial.file
        try:
            path.unlink() if trial.content is None else path.write_bytes(trial.content)
            error = self._error_of(trial)
            if error is None:
                return Outcome(trial, None)
            of_all = path.name in (MANIFEST, INDEX, ASKED)  # without it, the directory is nothing
            of_all |= path.parent.parent.name == "tombstone_copies"  # verify names the artifact, and the file after it
            is_named = isinstance(error, StorageError) and error.path.startswith(str(path.parent if of_all else path))
            return Outcome(trial, error, is_named, self._cure(error) if cure else None)
        finally:
            self._restore()

    def swap_artifacts(self, *, cure: bool) -> Iterator[Outcome]:
        """Each artifact replaced as a whole, its manifest with it, by that of the other index."""
        for file in [file for file in self.files if file.endswith(f"/{MANIFEST}")]:
            directory = (self.world.root / file).parent
            twin = (self._twin_root / self._twin_names[file]).parent
            if (twin / MANIFEST).read_bytes() == self.files[file]:
                continue
            try:
                shutil.rmtree(directory)
                shutil.copytree(twin, directory)
                trial = Trial(file, "whole artifact swapped", None)
                error = self._error_of(trial)
                is_named = isinstance(error, StorageError) and error.path.startswith(str(directory))
                yield Outcome(trial, error, is_named, self._cure(error) if cure and error else None)
            finally:
                self._restore()

    def _error_of(self, trial: Trial) -> Exception | None:
        try:
            self.readers.of(trial.file)()
        except Exception as error:  # whatever comes is judged: a parser's own error is a fault
            return error
        return None

    def _cure(self, error: Exception) -> bool:
        """Do what the error says; then all bytes are as they were, but for the seconds that something took."""
        if not isinstance(error, StorageError):
            return False
        if "verify" in error.cure:
            verify_index(self.world.index, repair=True)
        if "delete both and index.json" in error.cure:  # of tables that another index's index.json names
            (self.world.root / "index" / INDEX).unlink()
        if "delete this file" in error.cure:
            Path(error.path).unlink(missing_ok=True)
        if "again" in error.cure or "trackstar index" in error.cure:
            self.world.make()
        self.readers.of(f"index/{INDEX}")()
        after = snapshot(self.world.root)
        lost = {error.path.removeprefix(f"{self.world.root}/")} if "nothing is lost but" in error.cure else set()
        expected = {file for file in self.files if file not in lost}
        return after.keys() == expected and all(
            after[file] == self.files[file] for file in expected if not file.endswith(COST)
        )

    def _restore(self) -> None:
        now = snapshot(self.world.root)
        for file in now.keys() - self.files.keys():
            (self.world.root / file).unlink()
        for file, content in self.files.items():
            if now.get(file) != content:
                path = self.world.root / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file below a directory by its relative name, sorted; locks are none of what is kept."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name not in (LOCK, HOLDER))
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def kind_of(file: str) -> str:
    """A file's name without what differs between those of its kind."""
    return re.sub(r"[0-9a-f]{16}|(?<=/)\d+(?=/|$)|(?<=\.)\d\d", "*", file)


def _places(files: dict[str, bytes]) -> list[str]:
    """Each file's name, with the number of its artifact among its kind in place of the digest."""
    directories: dict[str, list[str]] = {}
    for file in files:
        for found in re.finditer(r"(?<=/)[0-9a-f]{16}", file):
            known = directories.setdefault(file[: found.start()], [])
            if found[0] not in known:
                known.append(found[0])

    def place(file: str) -> str:
        return re.sub(
            r"(?<=/)[0-9a-f]{16}", lambda found: str(directories[file[: found.start()]].index(found[0])), file
        )

    return [place(file) for file in files]


def summary(outcomes: list[Outcome]) -> pl.DataFrame:
    """How many trials of each kind of file there were, and how many were found, named and cured."""
    counts: dict[str, Counter] = {}
    for outcome in outcomes:
        for key in (kind_of(outcome.trial.file), "all"):
            counts.setdefault(key, Counter()).update(
                tried=1,
                found=outcome.error is not None,
                named=outcome.is_named,
                cures=outcome.is_cured is not None,
                cured=outcome.is_cured is True,
            )
    return pl.DataFrame([{"file": key, **counts[key]} for key in sorted(counts)])


def main(seed: int = 0) -> int:
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        torture = Torture(Path(directory))
        outcomes = [torture.run(trial, cure=True) for trial in torture.trials(generator)]
        outcomes += torture.swap_artifacts(cure=True)
    with pl.Config(tbl_rows=-1, fmt_str_lengths=80, tbl_hide_dataframe_shape=True):
        print(summary(outcomes))
    missed = [outcome for outcome in outcomes if not outcome.is_sound]
    for outcome in missed:
        print(outcome.trial.file, outcome.trial.damage, outcome.error and repr(outcome.error), outcome)
    return len(missed)


if __name__ == "__main__":
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
