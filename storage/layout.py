"""Every directory and file name of an index and of a result directory, in one place.

    INDEX/
      index.json                     which shards, curvature and second moment make up the index; written last
      index.lock index.lock.json     held by whoever changes the index; the second says who that is
      second_moment/<digest>/        second_moment.safetensors
      kronecker/<digest>/            kronecker.safetensors: eigenvectors and eigenvalues of K-FAC's factors
      variances/<digest>/            variances.safetensors: EK-FAC's Λ in those eigenbases
      axes/<digest>/                 axes.safetensors: which axes of those eigenbases are kept, and their scales
      shards/<digest>/               gradients.zarr, documents.parquet, norms.safetensors, quarantine.parquet
      fidelity/<digest>/             fidelity.safetensors: how far scores by the store are those of float32, on a sample
      tombstones/<digest>/           tombstones.parquet: which documents were withdrawn, when and why
      tombstone_copies/<digest>/     the same files again: what cannot be computed anew is kept twice
      grams/<digest>/                gram.zarr: ΦᵀΦ of each block over a run of shards
      autocorrelation/<digest>/      matrices.zarr: R_train of each block
      spectrum/<digest>/             spectrum.safetensors: the eigenvalues of R_train, block by block
      factors/<digest>/              factors.zarr: the Cholesky factor of R_train of each block, at one damping
      train_norms/<digest>/          <shard>.safetensors: ‖R_train^(-1/2) φ‖² and ‖φ‖² of every document, at one damping
      plain_shards/<digest>/         gradients.zarr without V, documents.parquet: only for methods that need them
      embeddings/<digest>/           embeddings.safetensors: of each document, by a sentence encoder
      judgements/<digest>/           judgements.parquet: how surely documents entail the facts asked about
      queries/<digest>/              vectors.safetensors, queries.parquet
      tail_patch/<digest>/           tail_patch.parquet: what training on each proponent changes
      token_influence/<digest>/      token_influence.parquet: two shares of each token in a proponent's score
      histograms/<digest>/           histogram.parquet, evidence.parquet: all scores of a query counted in bins
      rankings/<digest>/             ranking.parquet: proponents and opponents of one query set by one method
      reranked/<digest>/             ranking.parquet: the first of a ranking, by whole gradients
      joint/<digest>/                ranking.parquet, shares.parquet: the sum over several checkpoints
      shrunk/<digest>/               ranking.parquet with scores shrunk, shrinkage.parquet: medians and σ of all scores
    OUT/
      proponents.parquet proponents.csv proponents.jsonl run.json shares.parquet metrics.json tail_patch.parquet
      report.html

    INDEXES/
      NAME/                          an index; results/NAME/ holds what it answered to the standing queries
      current.json previous.json     which index serves, and what served before
      withdrawn.json withdrawn.copy.json   which documents were withdrawn from all of them, twice

``<digest>`` is the first 16 hexadecimal digits of the SHA-256 of the artifact's identity, so that a different
configuration is a different directory. Each artifact directory holds a ``manifest.json``, written last; some have a
``cost.json`` beside it, the seconds that the artifact took.
"""

import re
from typing import Literal

from upath import UPath

from trackstar.storage.errors import InputError

StoreAs = Literal["float32", "float16", "int8", "sign"]  # the codes of storage/codes/
OF_AN_INDEX = frozenset(
    {"second_moment", "shards", "tombstones", "tombstone_copies", "grams", "autocorrelation", "spectrum", "factors",
     "train_norms", "plain_shards", "embeddings", "judgements", "queries", "tail_patch", "token_influence",
     "histograms", "rankings", "shrunk", "reranked", "joint", "kronecker", "variances", "axes", "fidelity"}
)  # fmt: skip
OF_A_DEMO_OR_STUDY = frozenset({"checkpoints", "images", "pictures", "terms", "sweeps", "geometry", "parameters"})
KINDS = OF_AN_INDEX | OF_A_DEMO_OR_STUDY

MANIFEST = "manifest.json"
INDEX = "index.json"
LOCK = "index.lock"
HOLDER = "index.lock.json"
COST = "cost.json"
COST_CURE = "delete this file: nothing is lost but the seconds that it tells"

SECOND_MOMENT = "second_moment.safetensors"
KRONECKER = "kronecker.safetensors"
VARIANCES = "variances.safetensors"
AXES = "axes.safetensors"
FIDELITY = "fidelity.safetensors"

GRADIENTS = "gradients.zarr"
DOCUMENTS = "documents.parquet"
QUARANTINE = "quarantine.parquet"
NORMS = "norms.safetensors"

TOMBSTONES = "tombstones.parquet"

GRAM = "gram.zarr"
MATRICES = "matrices.zarr"
FACTORS = "factors.zarr"
SPECTRUM = "spectrum.safetensors"

QUERIES = "queries.parquet"
QUERY_VECTORS = "vectors.safetensors"

EMBEDDINGS = "embeddings.safetensors"
JUDGEMENTS = "judgements.parquet"

RANKING = "ranking.parquet"
SHRINKAGE = "shrinkage.parquet"
SHARES = "shares.parquet"
TAIL_PATCH = "tail_patch.parquet"
TOKEN_INFLUENCE = "token_influence.parquet"
HISTOGRAM = "histogram.parquet"
EVIDENCE_SCORES = "evidence.parquet"

PROPONENTS_PARQUET = "proponents.parquet"
PROPONENTS_JSONL = "proponents.jsonl"
PROPONENTS_CSV = "proponents.csv"
RUN = "run.json"
METRICS = "metrics.json"
REPORT = "report.html"
DRIFT_PAGE = "drift.html"
RESULTS = "results"  # directory of a directory of indexes
CURRENT = "current.json"  # which of its indexes serves
PREVIOUS = "previous.json"
WITHDRAWN = "withdrawn.json"  # of all of them
WITHDRAWN_COPY = "withdrawn.copy.json"


FINISHED = r"[0-9a-f]{16}"
DRAFT = r"\.[0-9a-f]{16}\.partial-[0-9a-f]{8}"
PLACE = "a file, a directory or an object store URL"


def location(url: object) -> UPath:
    """A path object for a local path, made absolute, or an object store URL (``s3://bucket/prefix``).

    Raises:
        InputError: It is empty, which would be the current directory, or names no place.
    """
    named = require_named(str(url)).removeprefix("file://")
    try:
        path = UPath(named)
    except (ValueError, ImportError) as error:  # a scheme that nothing here reads
        raise InputError(f"the path is {named!r}, which cannot be opened ({error}); give {PLACE}") from error
    return path.absolute() if is_local(path) else path


def require_named(url: str) -> str:
    """A path or URL as it was, unless it names nothing.

    Raises:
        InputError: It is empty, or holds what no path does.
    """
    scheme, separator, rest = url.partition("://")
    if not (rest if separator else scheme).strip():
        raise InputError(f"the path is {url!r}, which names nothing; give {PLACE}")
    if "\0" in url:
        raise InputError(f"the path is {url!r}, and no path holds a null character; give {PLACE}")
    return url


def is_local(path: UPath) -> bool:
    return path.protocol in ("", "file")


def is_link(path: UPath) -> bool:
    """Whether a path is a symbolic link, to wherever it leads."""
    return is_local(path) and path.is_symlink()


def tensors_file(artifact: str) -> str:
    """The file of an artifact that keeps tensors: it is called as the kind of the artifact, which is in its name."""
    return f"{artifact.partition('/')[0]}.safetensors"


def norms_file(shard: str) -> str:
    return f"{shard}.safetensors"


def is_artifact_name(name: str) -> bool:
    """Whether a directory of this name holds an artifact, finished or being written."""
    return re.fullmatch(f"{FINISHED}|{DRAFT}", name) is not None


def is_draft_name(name: str) -> bool:
    """Whether a directory of this name holds an artifact that is being written, or was."""
    return re.fullmatch(DRAFT, name) is not None


def require_artifact_name(name: str) -> str:
    """A name of an artifact below an index, ``<kind>/<16 hexadecimal digits>``, as it was.

    Names come out of files, which anybody may have written; one that is a path of another kind must never become one.

    Raises:
        ValueError: It is no such name.
    """
    if re.fullmatch(f"[a-z][a-z_]*/{FINISHED}", name) is None:
        raise ValueError(f"{name!r} names no artifact; expected KIND/DIGEST, such as shards/0123456789abcdef")
    return name


def artifact_path(index: object, name: str) -> UPath:
    """The directory of an artifact, by the name that a file gives it."""
    return location(index) / require_artifact_name(name)


def artifact_directory(index: object, kind: str, digest: str) -> UPath:
    return location(index) / kind / digest[:16]
