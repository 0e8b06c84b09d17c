"""What each flow is asked to do: its form in the Prefect UI, its parameters in a deployment, its command line flags."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from trackstar.storage.errors import InputError
from trackstar.storage.gradients import StoreDtype
from trackstar.storage.layout import location
from trackstar.storage.queries import Query, read_queries
from trackstar.tasks.evaluation.entailment import EntailmentConfig, Judge, require_undecided
from trackstar.tasks.evaluation.entailment_model import read_entailment_model
from trackstar.tasks.evaluation.tail_patch import TailPatchConfig
from trackstar.tasks.index.contents import read_index
from trackstar.tasks.index.corpus import CorpusConfig
from trackstar.tasks.index.curvature import CurvatureConfig
from trackstar.tasks.index.kronecker import FactorConfig
from trackstar.tasks.index.second_moment import SecondMomentConfig
from trackstar.tasks.methods.influence import InfluenceConfig
from trackstar.tasks.methods.registry import DEFAULT_METHODS, METHODS, MethodSettings, require_possible
from trackstar.tasks.models.checkpoint import ModelConfig, model_files
from trackstar.tasks.models.engine import GradientConfig
from trackstar.tasks.scoring.score_pass import ScoreConfig
from trackstar.tasks.scoring.token_influence import TokenInfluenceConfig

Url = Annotated[str, AfterValidator(lambda url: str(location(url)))]  # absolute: workers run in other directories

QUERIES_HELP = 'JSON Lines: {"id", "prompt", "completion", "relevant_ids"?}.'
SUBJECT_CHARACTERS = 60
SHARDS_ON_HELP = (
    "Where shards are computed: local (one after another in this process), processes (one a core of this machine), or "
    "the address of a Dask scheduler."
)
DASK_HELP = "Where Dask runs: local (threads of this process), processes, or a scheduler's address."


def name_of(url: str) -> str:
    return location(url).name


def _ids_of(value: str) -> list[str]:
    """The lines of a file of this name, or the id itself where there is none."""
    path = location(value)
    if not path.is_file():
        return [value]
    return [line for line in path.read_text("utf-8").splitlines() if line.strip()]


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
    factors: FactorConfig = FactorConfig()
    store_dtype: StoreDtype = Field("float32", title="Store precision", description="float16 halves the disk.")
    curvature: CurvatureConfig = CurvatureConfig()
    shards_on: str = Field("local", title="Shards on", description=SHARDS_ON_HELP)
    dask: str = Field("local", title="Dask", description=DASK_HELP)

    @property
    def name(self) -> str:
        """The checkpoint, as runs are called after it."""
        return name_of(self.checkpoint)

    def check(self) -> None:
        model_files(self.checkpoint)
        self.corpus.files()


class AttributeConfig(FlowConfig):
    """Queries to proponents and opponents."""

    index: Url = Field(title="Index", description="A finished index.")
    prompt: str = Field("", title="Prompt", description="Ask one query by hand: what the model reads first.")
    completion: str = Field("", title="Completion", description="And what it then says, with its leading space.")
    queries: Url | None = Field(None, title="Queries file", description=f"Instead of one by hand: {QUERIES_HELP}")
    out: Url = Field(title="Results", description="Directory the results are written to.")
    score: ScoreConfig = ScoreConfig()
    dask: str = Field("local", title="Dask", description=DASK_HELP)

    @property
    def subject(self) -> str:
        """What a run of this is called: the checkpoint's index and what is asked."""
        asked = name_of(self.queries) if self.queries else f"{self.prompt}{self.completion}"
        return f"{name_of(self.index)}: {asked[:SUBJECT_CHARACTERS]}"

    def check(self) -> None:
        self.score.check()
        read_index(self.index)
        self.asked()

    def asked(self) -> list[Query]:
        """The queries of the file, or the one that was typed in.

        Raises:
            InputError: Both were given, or neither, or the file is wrong.
        """
        is_typed = bool(self.completion or self.prompt)
        if (self.queries is not None) == is_typed:
            raise InputError(
                f"queries is {self.queries} and completion is {self.completion!r}; give either a file of queries, or a "
                "prompt and a completion"
            )
        return read_queries(self.queries) if self.queries is not None else [self._typed()]

    def _typed(self) -> Query:
        if not self.completion.strip():
            raise InputError(f"completion is {self.completion!r}; type what the model says after the prompt")
        return Query(id="typed", prompt=self.prompt, completion=self.completion)


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
    token_influence: TokenInfluenceConfig = TokenInfluenceConfig()
    influence: InfluenceConfig = InfluenceConfig()
    also_checkpoints: tuple[Url, ...] = Field(
        (), title="Further checkpoints", description="Of the same training; grad_dot and grad_cosine sum over them."
    )
    dense_encoder: Url | None = Field(
        None, title="Sentence encoder", description="Directory of a local sentence encoder, for the method dense."
    )
    entailment_model: Url | None = Field(
        None,
        title="Entailment model",
        description="Directory of a local one, to judge what is evidence for queries without relevant_ids and aliases.",
    )
    entailment: EntailmentConfig = EntailmentConfig()

    def check(self) -> None:
        require_possible(self.methods, dense_encoder=self.dense_encoder, also_checkpoints=self.also_checkpoints)
        for checkpoint in self.also_checkpoints:
            model_files(checkpoint)
        if self.dense_encoder is not None:
            model_files(self.dense_encoder)
        super().check()
        if self.entailment_model is not None:
            require_undecided(self.asked())
            read_entailment_model(self.entailment_model)

    @property
    def settings(self) -> MethodSettings:
        return MethodSettings(
            score=self.score,
            influence=self.influence,
            also_checkpoints=self.also_checkpoints,
            dense_encoder=self.dense_encoder,
            dask=self.dask,
        )

    @property
    def judge(self) -> Judge | None:
        return Judge(self.entailment_model, self.entailment) if self.entailment_model is not None else None


class WithdrawConfig(FlowConfig):
    """Documents to be left out of an index."""

    index: Url = Field(title="Index", description="A finished index.")
    ids: tuple[str, ...] = Field(
        min_length=1, title="Documents", description="Ids of documents, or files with one id a line."
    )
    reason: str = Field("", title="Reason", description="Recorded with the ids.")
    dask: str = Field("local", title="Dask", description=DASK_HELP)

    @property
    def name(self) -> str:
        return name_of(self.index)

    def check(self) -> None:
        read_index(self.index)
        self.asked()

    def asked(self) -> list[str]:
        """The ids, files read.

        Raises:
            InputError: There is none.
        """
        ids = [id_ for value in self.ids for id_ in _ids_of(value)]
        if not ids:
            raise InputError(f"{', '.join(self.ids)} holds no id; give ids, or a file with one a line")
        return ids


class ReindexConfig(FlowConfig):
    """A training run's checkpoints, each indexed and asked the standing queries."""

    checkpoints: Url = Field(title="Checkpoints", description="Directory that training saves its checkpoints in.")
    indexes: Url = Field(title="Indexes", description="Directory that an index and results per checkpoint go to.")
    corpus: CorpusConfig
    queries: Url | None = Field(None, title="Standing queries", description=QUERIES_HELP)
    keep_last: int | None = Field(
        None, ge=1, title="Keep", description="Only the last N checkpoints have an index; by default all. Results stay."
    )
    model: ModelConfig = ModelConfig()
    gradient: GradientConfig = GradientConfig()
    second_moment: SecondMomentConfig = SecondMomentConfig()
    factors: FactorConfig = FactorConfig()
    store_dtype: StoreDtype = Field("float32", title="Store precision", description="float16 halves the disk.")
    curvature: CurvatureConfig = CurvatureConfig()
    score: ScoreConfig = ScoreConfig()
    shards_on: str = Field("local", title="Shards on", description=SHARDS_ON_HELP)
    dask: str = Field("local", title="Dask", description=DASK_HELP)

    @property
    def name(self) -> str:
        return name_of(self.checkpoints)

    def check(self) -> None:
        self.score.check()
        self.corpus.files()
        if self.queries is not None:
            read_queries(self.queries)
