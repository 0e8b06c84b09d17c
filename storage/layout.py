"""Every directory and file name of an index and of a result directory, in one place.

    INDEX/
      index.json                     which shards, curvature and second moment make up the index; written last
      second_moment/<digest>/        second_moment.safetensors
      shards/<digest>/               gradients.zarr, documents.parquet, quarantine.parquet
      tombstones/<digest>/           tombstones.parquet: which documents were withdrawn, when and why
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
    OUT/
      proponents.parquet proponents.jsonl run.json metrics.json tail_patch.parquet report.html

``<digest>`` is the first 16 hexadecimal digits of the SHA-256 of the artifact's identity, so that a different
configuration is a different directory. Each artifact directory holds a ``manifest.json``, written last; some have a
``cost.json`` beside it, the seconds that the artifact took.
"""

import re

from upath import UPath

MANIFEST = "manifest.json"
INDEX = "index.json"
COST = "cost.json"

SECOND_MOMENT = "second_moment.safetensors"

GRADIENTS = "gradients.zarr"
DOCUMENTS = "documents.parquet"
QUARANTINE = "quarantine.parquet"

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
TAIL_PATCH = "tail_patch.parquet"
TOKEN_INFLUENCE = "token_influence.parquet"
HISTOGRAM = "histogram.parquet"
EVIDENCE_SCORES = "evidence.parquet"

PROPONENTS_PARQUET = "proponents.parquet"
PROPONENTS_JSONL = "proponents.jsonl"
RUN = "run.json"
METRICS = "metrics.json"
REPORT = "report.html"


def location(url: object) -> UPath:
    """A path object for a local path, made absolute, or an object store URL (``s3://bucket/prefix``)."""
    path = UPath(str(url).removeprefix("file://"))
    return path.absolute() if path.protocol == "" else path


def norms_file(shard: str) -> str:
    return f"{shard}.safetensors"


def is_artifact_name(name: str) -> bool:
    """Whether a directory of this name holds an artifact, finished or being written."""
    return re.fullmatch(r"[0-9a-f]{16}|\.[0-9a-f]{16}\.partial-[0-9a-f]{8}", name) is not None


def artifact_directory(index: object, kind: str, digest: str) -> UPath:
    return location(index) / kind / digest[:16]
