"""What each flow is asked to do: its form in the Prefect UI, its parameters in a deployment, its command line flags."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from storage.gradients import StoreDtype
from storage.layout import location
from storage.queries import read_queries
from tasks.checkpoint import ModelConfig, model_files
from tasks.corpus import CorpusConfig
from tasks.engine import GradientConfig
from tasks.index import read_index
from tasks.methods import DEFAULT_METHODS, METHODS, require_known
from tasks.scores import ScoreConfig
from tasks.second_moment import SecondMomentConfig
from tasks.tail_patch import TailPatchConfig

Url = Annotated[str, AfterValidator(lambda url: str(location(url)))]  # absolute: workers run in other directories

DASK_HELP = "Where Dask runs: local (threads of this process), processes, or a scheduler's address."


class FlowConfig(BaseModel):
    """Common to all flows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def check(self) -> None:
        """Raise InputError for what can be seen to be wrong before any work is done."""


class IndexConfig(FlowConfig):
    """Checkpoint and corpus to a gradient store, R_train and V."""

    checkpoint: Url = Field(title="Checkpoint", description="Directory of a Hugging Face checkpoint.")
    index: Url = Field(title="Index", description="Directory or object store URL the index is written to.")
    corpus: CorpusConfig
    model: ModelConfig = ModelConfig()
    gradient: GradientConfig = GradientConfig()
    second_moment: SecondMomentConfig = SecondMomentConfig()
    store_dtype: StoreDtype = Field("float32", title="Store precision", description="float16 halves the disk.")
    dask: str = Field("local", title="Dask", description=DASK_HELP)

    def check(self) -> None:
        model_files(self.checkpoint)
        self.corpus.files()


class AttributeConfig(FlowConfig):
    """Queries to proponents and opponents."""

    index: Url = Field(title="Index", description="A finished index.")
    queries: Url = Field(title="Queries", description='JSON Lines: {"id", "prompt", "completion", "relevant_ids"?}.')
    out: Url = Field(title="Results", description="Directory the results are written to.")
    score: ScoreConfig = ScoreConfig()
    dask: str = Field("local", title="Dask", description=DASK_HELP)

    def check(self) -> None:
        self.score.check()
        read_index(self.index)
        read_queries(self.queries)


class CompareConfig(AttributeConfig):
    """The same queries through every method, measured."""

    methods: tuple[str, ...] = Field(
        DEFAULT_METHODS,
        min_length=1,
        title="Methods",
        description=f"Any of {', '.join(METHODS)}; the first is compared to.",
    )
    score: ScoreConfig = ScoreConfig(top_k=100)
    tail_patch: TailPatchConfig = TailPatchConfig()

    def check(self) -> None:
        require_known(self.methods)
        super().check()
