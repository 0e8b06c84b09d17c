"""Corpus files as shards: units of work whose identity is their content."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

from trackstar.storage.corpus import CorpusFile, CorpusShard, corpus_files, plan_shards
from trackstar.storage.layout import location, require_named
from trackstar.storage.manifest import digest_file, digest_of
from trackstar.tasks.runtime.stage import cached_task

DOCUMENT_COLUMNS = frozenset({"row", "id", "text", "num_tokens", "num_windows", "loss"})  # of every document table


class CorpusConfig(BaseModel):
    """Where the corpus is and how it is cut."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Corpus")

    paths: tuple[str, ...] = Field(description="JSON Lines (.jsonl, .jsonl.gz, .jsonl.zst) or Parquet, or directories.")
    text_column: str = Field("text", description="Column with the document's text.")
    id_column: str = Field("id", description="Column with the document's id; rows without one are called file:row.")
    extra_columns: tuple[str, ...] = Field(
        (), description="Further columns to keep with each document, to group influence by: source, date, ..."
    )
    shard_size: int = Field(2048, ge=1, description="Documents of a shard, which is one task run.")

    @field_validator("extra_columns")
    @classmethod
    def _require_free_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if taken := sorted(DOCUMENT_COLUMNS.intersection(names)) or len(set(names)) < len(names):
            raise ValueError(f"{taken if taken is not True else 'a name'} is there already; name other columns")
        return names

    @field_validator("paths")
    @classmethod
    def _require_named(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(require_named, paths))

    def files(self) -> list[CorpusFile]:
        return corpus_files(self.paths)


class FilePlan(BaseModel):
    """The shards of one corpus file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: tuple[CorpusShard, ...]


class PlanRequest(BaseModel):
    """One file to be cut into shards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: CorpusFile
    shard_size: int
    text_column: str

    @property
    def label(self) -> str:
        return f"plan {location(self.file.path).name}"

    @property
    def cache_key(self) -> str:
        """By content: a file that was only touched is not planned again."""
        return f"plan-v2-{digest_of([self.model_dump(mode='json'), digest_file(location(self.file.path))])}"


@cached_task
def plan_file(request: PlanRequest) -> FilePlan:
    """Cut one corpus file into shards."""
    return FilePlan(
        shards=tuple(plan_shards(request.file, shard_size=request.shard_size, text_column=request.text_column))
    )


def plan_requests(config: CorpusConfig) -> list[PlanRequest]:
    return [
        PlanRequest(file=file, shard_size=config.shard_size, text_column=config.text_column) for file in config.files()
    ]
