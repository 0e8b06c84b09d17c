"""Corpus files as shards: units of work whose identity is their content."""

from pydantic import BaseModel, ConfigDict

from trackstar.storage.corpus import CorpusFile, CorpusShard, plan_shards
from trackstar.storage.digests import digest_file, digest_of
from trackstar.storage.layout import location
from trackstar.storage.reading import Reading
from trackstar.tasks.index.settings import CorpusConfig
from trackstar.tasks.runtime.stage import cached_task


class FilePlan(BaseModel):
    """The shards of one corpus file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: tuple[CorpusShard, ...]


class PlanRequest(BaseModel):
    """One file to be cut into shards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: CorpusFile
    shard_size: int
    reading: Reading

    @property
    def label(self) -> str:
        return f"plan {location(self.file.path).name}"

    @property
    def cache_key(self) -> str:
        """By content: a file that was only touched is not planned again."""
        return f"plan-v3-{digest_of([self.model_dump(mode='json'), digest_file(location(self.file.path))])}"


@cached_task
def plan_file(request: PlanRequest) -> FilePlan:
    """Cut one corpus file into shards."""
    return FilePlan(shards=tuple(plan_shards(request.file, shard_size=request.shard_size, reading=request.reading)))


def plan_requests(config: CorpusConfig) -> list[PlanRequest]:
    return [PlanRequest(file=file, shard_size=config.shard_size, reading=config.reading) for file in config.files()]
