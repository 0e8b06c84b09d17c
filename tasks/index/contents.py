"""``index.json``: what an index is made of. Written last, it is what makes an index complete."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import ceil
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError
from upath import UPath

from trackstar.storage.errors import CorruptionError, InputError, MissingError
from trackstar.storage.layout import DOCUMENTS, INDEX, is_artifact_name, location
from trackstar.storage.locks import is_held
from trackstar.storage.manifest import Artifact, Manifest, read_manifest, remove_tree
from trackstar.storage.results import write_text
from trackstar.storage.tables import read_table
from trackstar.tasks.index.corpus import CorpusConfig
from trackstar.tasks.index.curvature import CurvatureConfig
from trackstar.tasks.index.kronecker import FactorConfig, factor_facts
from trackstar.tasks.index.second_moment import SecondMomentConfig
from trackstar.tasks.index.shards import ShardRequest
from trackstar.tasks.index.withdrawals import read_ids
from trackstar.tasks.models.engine import EngineSpec

SHARDS = ShardRequest.kind
IDS_AT_ONCE = 1 << 24  # compared in one piece
DERIVED = ("grams", "autocorrelation", "factors", "spectrum", "train_norms")  # each from shards or from one before it


class Index(BaseModel):
    """A finished index.

    Attributes:
        engine: The checkpoint and all that determines a gradient; queries go through the same.
        corpus: Where the documents came from.
        curvature: How R_train was reduced.
        shards: In corpus order.
        autocorrelation: R_train, or None where there is to be none, or blocks are too large for it.
        grams: The sums over runs of shards that R_train was put together from, kept for the next time.
        tombstones: Which documents were withdrawn, or None.
        num_withdrawn: How many of the documents of the shards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: EngineSpec
    corpus: CorpusConfig
    curvature: CurvatureConfig = CurvatureConfig()
    shards: tuple[Artifact, ...]
    autocorrelation: Artifact | None
    grams: tuple[Artifact, ...] = ()
    tombstones: Artifact | None = None
    num_withdrawn: int = 0

    @property
    def path(self) -> UPath:
        return location(self.engine.index)

    @property
    def is_flat(self) -> bool:
        """Whether the place of R_train is taken by the identity times each block's mean square."""
        return self.autocorrelation is None and self.curvature.autocorrelation == "off"

    @property
    def block_dims(self) -> dict[str, int]:
        return self.shards[0].facts["block_dims"]

    @property
    def shard_paths(self) -> list[UPath]:
        return [shard.path(str(self.path)) for shard in self.shards]

    def total(self, fact: str) -> int:
        """Sum of one of the shards' counts."""
        return sum(shard.facts[fact] for shard in self.shards)


def read_index(url: str) -> Index:
    """Open a finished index, wherever it lies now.

    Raises:
        MissingError: There is none, or it was never finished.
        CorruptionError: Its index.json cannot be read.
    """
    path = location(url) / INDEX
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(url, "holds no finished index", "build it with `trackstar index`") from None
    try:
        found = Index.model_validate_json(content)
    except ValidationError as error:
        raise CorruptionError(path, "is no readable index", "run `trackstar index` again") from error
    return found.model_copy(update={"engine": found.engine.model_copy(update={"index": str(location(url))})})


def existing_index(url: str) -> Index | None:
    """The index that is there, or None; an unreadable index.json is written anew, from artifacts named by content."""
    try:
        return read_index(url)
    except (MissingError, CorruptionError):
        return None


def require_same_settings(
    existing: Index | None, engine: EngineSpec, config: SecondMomentConfig, factors: FactorConfig
) -> None:
    """Refuse to put gradients of one kind where those of another are: the corpus may change, nothing else may.

    Args:
        engine: As asked for, V not yet computed: what is refused should leave no trace.
        config: How V is asked for.
        factors: How the Kronecker factors are asked for.

    Raises:
        InputError: Names the first setting that differs.
    """
    if existing is None:
        return
    V, known = existing.engine.second_moment, existing.engine
    previous = _settings(known, V.facts["mode"] if V else "none", factor_facts(known.kronecker))
    asked = _settings(engine, config.resolve(engine.checkpoint), factors.model_dump())
    for name, value in asked.items():
        if previous.get(name) != value:
            raise InputError(
                f"{existing.path} was built with {name} {previous.get(name)}, and this run asks for {value}; choose "
                "another --index directory, or delete this one"
            )


def _settings(engine: EngineSpec, mode: str, factors: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that determine a gradient by name, those of an estimate instead of what was estimated."""
    optimizer = engine.checkpoint.optimizer_digest if mode in ("factored", "full") else None
    gradient, own = engine.gradient.model_dump(), {}
    if engine.gradient.has_kronecker_factors:
        own = {"factors": {name: factors.get(name) for name in FactorConfig.model_fields}}
    else:
        del gradient["factor_damping"]
    return _flat({**engine.inputs(), "gradient": gradient, "second_moment": mode, "optimizer": optimizer, **own})


def require_distinct_ids(shards: Sequence[UPath], *, num_documents: int) -> None:
    """Refuse a corpus in which two documents share an id: a result could not say which of them it means.

    Raises:
        InputError: Names such an id.
    """
    num_shared, example = 0, None
    num_parts = ceil(num_documents / IDS_AT_ONCE)
    for number in range(num_parts):
        # equal ids have equal hashes, so they meet in one part
        ids = pl.concat([ids.filter(ids.hash() % num_parts == number) for ids in map(read_ids, shards)])
        shared = ids.filter(ids.is_duplicated())
        num_shared += len(shared)
        example = example or next(iter(shared), None)
    if num_shared:
        raise InputError(
            f"{num_shared} documents share their id with another, {example!r} for one; give --id-column another "
            "column, or one that no document has, to call them by file and row"
        )


def require_documents(shards: Sequence[Artifact], *, index: str) -> tuple[Artifact, ...]:
    """All shards, those without a usable document too: what they quarantined counts.

    Raises:
        InputError: No shard has a document, or two documents have one id.
    """
    num_documents = sum(shard.facts["num_documents"] for shard in shards)
    if not num_documents:
        num_quarantined = sum(shard.facts["num_quarantined"] for shard in shards)
        raise InputError(
            f"the corpus has no usable document: {num_quarantined} rows were quarantined; see the reasons in "
            "shards/*/quarantine.parquet, and check the text column and the checkpoint"
        )
    require_distinct_ids([shard.path(index) for shard in shards], num_documents=num_documents)
    return tuple(shards)


def write_index(index: Index) -> None:
    """Publish an index, then remove the shards that no longer belong to it, and what rests on what is gone."""
    write_text(index.path / INDEX, index.model_dump_json(indent=1) + "\n")
    kept = {location(index.path / shard.name).name for shard in index.shards}
    for directory in list((index.path / SHARDS).iterdir()):
        if directory.name not in kept and not is_held(directory):  # another run may be writing it
            remove_tree(directory)
    _remove_outdated(index)


def _remove_outdated(index: Index) -> None:
    """Remove R_train where another has taken its place, and whatever was derived from something that is gone.

    They are as large as many documents, and each appended file or withdrawal leaves a set of them behind.
    """
    stores = [kind for kind in index.path.iterdir() if kind.name.endswith(SHARDS)]  # other methods have their own
    kept = {manifest.digest for kind in stores for _, manifest in manifests(kind)}
    own = {shard.digest for shard in index.shards}
    current = index.autocorrelation and index.autocorrelation.digest
    for kind in DERIVED:
        for directory, manifest in manifests(index.path / kind):
            is_replaced = kind == "autocorrelation" and not own.isdisjoint(manifest.identity["shards"])
            if _sources(manifest.identity) <= kept and (not is_replaced or manifest.digest == current):
                kept.add(manifest.digest)
            else:
                remove_tree(directory)


def _sources(identity: Mapping[str, Any]) -> set[str]:
    """Digests of the artifacts that one was derived from."""
    single = [identity[name] for name in DERIVED if identity.get(name)]
    return {*identity.get("shards", ()), *single}


def manifests(kind: UPath) -> Iterator[tuple[UPath, Manifest]]:
    for directory in list(kind.iterdir()) if kind.is_dir() else []:
        manifest = read_manifest(directory) if is_artifact_name(directory.name) else None
        if manifest is not None:
            yield directory, manifest


def each_text(shards: Sequence[UPath], *, without: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """Id and text of every document, in corpus order, a shard in memory at a time; those of withdrawn ones left out."""
    for shard in shards:
        rows = read_table(shard, DOCUMENTS).select("id", "text").iter_rows()
        yield from (row for row in rows if row[0] not in without)


def shard_texts(shards: Sequence[UPath], ids: Collection[str]) -> dict[str, str]:
    """The texts of some documents by id, in corpus order."""
    return {id_: text for id_, text in each_text(shards) if id_ in ids}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return flat


def block_summary(dims: Sequence[int]) -> str:
    return f"{len(dims)} blocks of {dims[0]}" if len(set(dims)) == 1 else f"{len(dims)} blocks, {sum(dims)} dimensions"
