"""``index.json``: what an index is made of. Written last, it is what makes an index complete."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from upath import UPath

from trackstar.storage.errors import CorruptionError, InputError, MissingError
from trackstar.storage.index_file import read_index_file
from trackstar.storage.layout import INDEX, StoreAs, location
from trackstar.storage.manifest import Artifact
from trackstar.storage.tombstone_copies import require_sound
from trackstar.tasks.index.settings import CorpusConfig, CurvatureConfig, FactorConfig
from trackstar.tasks.models.settings import EngineSpec, GradientConfig, ModelConfig, SecondMomentConfig


class Index(BaseModel):
    """A finished index.

    Attributes:
        engine: The checkpoint and all that determines a gradient; queries go through the same.
        preset: The settings it was asked for by, as far as single ones did not say otherwise.
        corpus: Where the documents came from.
        curvature: How R_train was reduced.
        shards: In corpus order.
        autocorrelation: R_train, or None where there is to be none, or blocks are too large for it.
        grams: The sums over runs of shards that R_train was put together from, kept for the next time.
        tombstones: Which documents were withdrawn, or None.
        num_withdrawn: How many of the documents of the shards.
        store_as: How rows are stored, or None in an index that does not say.
        fidelity: What that loses, where it is not float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: EngineSpec
    preset: str | None = None
    corpus: CorpusConfig
    curvature: CurvatureConfig = CurvatureConfig()
    shards: tuple[Artifact, ...]
    autocorrelation: Artifact | None
    grams: tuple[Artifact, ...] = ()
    tombstones: Artifact | None = None
    num_withdrawn: int = 0
    store_as: StoreAs | None = None
    fidelity: Artifact | None = None

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
        InputError: It is of another format version.
        CorruptionError: Its index.json is not what was written, or nobody can read which documents were withdrawn.
    """
    return _with_tombstones(_read(url))


def existing_index(url: str) -> Index | None:
    """The index that is there, or None; an unreadable index.json is written anew, from artifacts named by content.

    Raises:
        CorruptionError: Nobody can read which documents were withdrawn.
    """
    try:
        found = _read(url)
    except (MissingError, CorruptionError):
        return None
    return _with_tombstones(found)


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
    asked = _settings(engine, config.resolve(engine.checkpoint), factors.model_dump())
    _require_equal(existing, _known_settings(existing), asked)


def require_autocorrelation(index: Index, whitening: str) -> None:
    """Raise InputError where whitening needs an R_train that the index does not have."""
    if whitening != "none" and index.autocorrelation is None and not index.is_flat:
        raise InputError(f"{index.path} has no R_train, its blocks being too large for one; use --whitening none")


def require_same_kind(existing: Index | None, model: ModelConfig, gradient: GradientConfig) -> None:
    """``require_same_settings`` without reading a checkpoint: for those that ask before they start."""
    if existing is not None:
        asked = existing.engine.model_copy(update={"model": model, "gradient": gradient})
        known = _settings(asked, _mode(existing), factor_facts(existing.engine.kronecker))
        _require_equal(existing, _known_settings(existing), known)


def factor_facts(kronecker: Sequence[Artifact]) -> Mapping[str, Any]:
    """What the Kronecker factors were estimated from."""
    return kronecker[0].facts if kronecker else {}


def _read(url: str) -> Index:
    value = read_index_file(location(url))
    try:
        found = Index.model_validate(value)
    except ValidationError as error:
        problem = f"is no index.json of this version ({error.errors()[0]['msg']})"
        raise CorruptionError(location(url) / INDEX, problem, "run `trackstar index` again") from error
    return found.model_copy(update={"engine": found.engine.model_copy(update={"index": str(location(url))})})


def _with_tombstones(index: Index) -> Index:
    if index.tombstones is not None:
        require_sound(index.path, index.tombstones.name)
    return index


def _mode(index: Index) -> str:
    V = index.engine.second_moment
    return V.facts["mode"] if V else "none"


def _require_equal(existing: Index, previous: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for name, value in asked.items():
        if previous.get(name) != value:
            raise InputError(
                f"{existing.path} was built with {name} {previous.get(name)}, and this run asks for {value}; choose "
                "another --index directory, or delete this one"
            )


def _known_settings(index: Index) -> dict[str, Any]:
    return _settings(index.engine, _mode(index), factor_facts(index.engine.kronecker))


def _settings(engine: EngineSpec, mode: str, factors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that determine a gradient by name, those of an estimate instead of what was estimated."""
    optimizer = engine.checkpoint.optimizer_digest if mode in ("factored", "full") else None
    gradient, own = engine.gradient.model_dump(), {}
    if engine.gradient.has_kronecker_factors:
        own = {"factors": {name: factors.get(name) for name in FactorConfig.model_fields}}
    else:
        del gradient["factor_damping"]
    return _flat({**engine.inputs(), "gradient": gradient, "second_moment": mode, "optimizer": optimizer, **own})


def block_summary(dims: Sequence[int]) -> str:
    return f"{len(dims)} blocks of {dims[0]}" if len(set(dims)) == 1 else f"{len(dims)} blocks, {sum(dims)} dimensions"


def store_facts(index: Index) -> dict[str, str]:
    """How many bytes a document takes in which code, and what that loses."""
    from trackstar.storage.codes import CODES  # here: it loads numpy, and commands read this module for their help

    if index.store_as is None:
        return {}
    num_bytes = sum(map(CODES[index.store_as].row_bytes, index.block_dims.values()))
    facts = {"store": f"{index.store_as}, {num_bytes:,} bytes a document"}
    if index.fidelity is None:
        return facts
    known = index.fidelity.facts
    loss = (
        f"{known['overlap']:.0%} of the best {known['top_k']} stay, scores correlate at {known['correlation']:.3f} "
        f"({known['num_documents']} documents as queries, before R)"
    )
    return {**facts, "beside float32": loss}


def projection_summary(engine: EngineSpec) -> str:
    """How gradients are projected, or how many axes of how many are kept."""
    gradient = engine.gradient
    if gradient.projection == "two_sided":
        return f"k = {gradient.projection_dim}"
    if gradient.projection == "none":
        return "none"
    facts = engine.kronecker[-1].facts
    return f"{facts['num_axes']:,} of {facts['num_possible']:,} axes, {facts['share_of_variance']:.0%} of the variance"


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return flat
