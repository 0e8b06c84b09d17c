"""What each flow is asked to do: its form in the Prefect UI, its parameters in a deployment, its command line flags."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from trackstar.flows.cli.options import settings_of
from trackstar.flows.places import Place, require_device, require_place, require_where
from trackstar.storage.errors import InputError
from trackstar.storage.layout import StoreAs, location
from trackstar.storage.queries import Id, Query, Text, read_ids, read_queries
from trackstar.storage.verification import require_no_indexes
from trackstar.tasks.demo.settings import DemoCorpusConfig, TrainingConfig
from trackstar.tasks.evaluation.settings import (
    EntailmentConfig,
    Judge,
    TailPatchConfig,
    TokenInfluenceConfig,
    require_undecided,
)
from trackstar.tasks.index.index_file import existing_index, read_index, require_autocorrelation, require_same_kind
from trackstar.tasks.index.settings import CorpusConfig, CurvatureConfig, FactorConfig
from trackstar.tasks.methods.settings import DEFAULT_METHODS, METHODS, InfluenceConfig, MethodSettings, require_possible
from trackstar.tasks.mnist.settings import DIGITS, MNIST, StudyConfig
from trackstar.tasks.models.checkpoint_files import model_files, require_whole
from trackstar.tasks.models.optimizer_files import find_state
from trackstar.tasks.models.settings import GradientConfig, ModelConfig, SecondMomentConfig
from trackstar.tasks.runtime.settings import Option, Settings
from trackstar.tasks.scoring.settings import ScoreConfig

WHAT, WHERE = "Input and output", "Where it runs"  # groups of options

# Absolute: workers run in other directories.
Url = Annotated[str, AfterValidator(lambda url: str(location(url))), Option(metavar="DIR", group=WHAT)]
Directory = Annotated[Url, Place.DIRECTORY]
NewDirectory = Annotated[Url, Place.NEW]
File = Annotated[Url, Place.FILE, Option(metavar="FILE", group=WHAT)]
Source = Annotated[str, AfterValidator(lambda data: data if data in (DIGITS, MNIST) else str(location(data)))]
Asked = Annotated[str, Option(metavar="TEXT", group=WHAT)]
Where = Annotated[str, Option(metavar="WHERE", group=WHERE)]

QUERIES_HELP = 'JSON Lines: {"id", "prompt", "completion", "relevant_ids"?}.'
SUBJECT_CHARACTERS = 60
SHARDS_ON_HELP = (
    "Where shards are computed: local (one after another in this process), processes (one a core of this machine), or "
    "the address of a Dask scheduler."
)
DASK_HELP = "Where Dask runs: local (threads of this process), processes, or a scheduler's address."


def name_of(url: str) -> str:
    return location(url).name


class FlowConfig(Settings):
    """Common to all flows."""

    def check(self) -> None:
        """Raise InputError for what can be seen to be wrong before any work is done; what loads torch comes last."""
        for setting in settings_of(type(self)):
            value = setting.value_in(self)
            for url in value if setting.is_list else [value]:
                if setting.place is not None and url is not None:
                    require_place(url, setting.place, name=setting.option.name)
            if setting.option.group == WHERE:
                require_where(value, name=setting.option.name)


Preset = Literal["paper", "small"]
# By group of settings; "" is the flow's own. A setting that is given by itself comes before the preset's. Neither says
# anything of k, whose default both have, so that it is known whether one was asked for.
PRESETS: dict[Preset, dict[str, dict[str, Any]]] = {
    "paper": {
        "gradient": {"correction": "v"},
        "curvature": {"autocorrelation": "auto"},  # on, but where kfac is asked for by itself
        "": {"store_as": "float32"},
    },
    "small": {
        "gradient": {"correction": "kfac"},
        "curvature": {"autocorrelation": "off"},
        "": {"store_as": "sign"},
    },
}


def with_preset(values: Any) -> Any:
    """The values of a form or a command, those of its preset put where it says nothing."""
    name = values.get("preset", "paper") if isinstance(values, dict) else None
    if name not in PRESETS:  # which the field's own type refuses
        return values
    filled = {**PRESETS[name][""], **values}
    for group, settings in PRESETS[name].items():
        given = filled.get(group, {})
        if group and isinstance(given, dict):
            filled[group] = {**settings, **given}
    return filled


class IndexingConfig(FlowConfig):
    """What determines an index besides its checkpoint, and where it is computed."""

    preset: Annotated[Preset, Option(group="Gradients")] = Field(
        "paper",
        title="Preset",
        description="paper: V, k = 64, R_train, float32; small: kfac, k = 64, no R_train, signs. Single settings come "
        "before it.",
    )
    corpus: CorpusConfig
    model: ModelConfig = ModelConfig()
    gradient: GradientConfig = GradientConfig()
    second_moment: SecondMomentConfig = SecondMomentConfig()
    factors: FactorConfig = FactorConfig()
    store_as: Annotated[StoreAs, Option(group="Gradients")] = Field(
        "float32", title="Store as", description="float16 halves the disk, int8 quarters it, sign keeps one bit of 32."
    )
    bytes_per_document: Annotated[int | None, Option(group="Gradients")] = Field(
        None,
        ge=1,
        title="Bytes per document",
        description="Of codes and scales; they say how large k may be, or how many axes are kept: axes where no "
        "projection is named.",
    )
    curvature: CurvatureConfig = CurvatureConfig()
    shards_on: Where = Field("local", title="Shards on", description=SHARDS_ON_HELP)
    dask: Where = Field("local", title="Dask", description=DASK_HELP)

    _fill = model_validator(mode="before")(with_preset)

    def check(self) -> None:
        gradient = self.wanted_gradient()
        gradient.check()
        self.curvature.resolve(is_white=gradient.has_kronecker_factors)
        super().check()

    @property
    def is_sized_by_checkpoint(self) -> bool:
        """Whether the number of blocks decides how large a projection is, or whether it can be had."""
        return self.bytes_per_document is not None or self.gradient.projection == "axes"

    def wanted_gradient(self) -> GradientConfig:
        """The settings of gradients, with the kind of projection that a number of bytes means; not yet with its size.

        Raises:
            InputError: A number of bytes and what it should choose are both given.
        """
        given = self.gradient.model_fields_set
        if self.bytes_per_document is None:
            return self.gradient
        for name in ("projection_dim", "num_axes"):
            if name in given:
                raise InputError(
                    f"--bytes-per-document is {self.bytes_per_document} and --{name.replace('_', '-')} "
                    f"{getattr(self.gradient, name)}; give one of them: bytes choose the other"
                )
        if self.gradient.projection == "none":
            raise InputError(
                f"--bytes-per-document is {self.bytes_per_document} and the projection none, which keeps whole "
                "gradients; leave out one of them"
            )
        projection = self.gradient.projection if "projection" in given else "axes"
        return self.gradient.model_copy(update={"projection": projection})

    def sized_gradient(self, checkpoint: str) -> GradientConfig:
        """The same with k, or the number of axes; this reads the headers of a checkpoint where it has to."""
        if not self.is_sized_by_checkpoint:
            return self.gradient
        from trackstar.tasks.index.sizing import sized  # which loads torch

        size = {"store_as": self.store_as, "bytes_per_document": self.bytes_per_document}
        return sized(self.wanted_gradient(), checkpoint=checkpoint, model=self.model, **size)


class IndexConfig(IndexingConfig):
    """Checkpoint and corpus to a gradient store, R_train and V."""

    checkpoint: Directory = Field(title="Checkpoint", description="Directory of a Hugging Face checkpoint.")
    index: NewDirectory = Field(title="Index", description="Directory or object store URL the index is written to.")

    @property
    def name(self) -> str:
        """The checkpoint, as runs are called after it."""
        return name_of(self.checkpoint)

    def check(self) -> None:
        super().check()
        require_no_indexes(location(self.index))
        require_whole(self.checkpoint, context_tokens=self.model.context_tokens)
        self.corpus.require_documents()
        existing = existing_index(self.index)
        if not self.is_sized_by_checkpoint:
            require_same_kind(existing, self.model, self.gradient)
        require_device(self.model.device, name="--device")
        if self.second_moment.mode not in ("estimated", "none"):
            find_state(self.checkpoint)
        from trackstar.tasks.models.loadable import require_loadable  # which loads torch

        require_loadable(self.checkpoint, self.model)
        if self.is_sized_by_checkpoint:
            require_same_kind(existing, self.model, self.sized_gradient(self.checkpoint))


class AttributeConfig(FlowConfig):
    """Queries to proponents and opponents."""

    index: Url = Field(title="Index", description="A finished index.")
    prompt: Asked = Field("", title="Prompt", description="Ask one query by hand: what the model reads first.")
    completion: Asked = Field("", title="Completion", description="And what it then says, with its leading space.")
    queries: File | None = Field(None, title="Queries file", description=f"Instead of one by hand: {QUERIES_HELP}")
    out: NewDirectory = Field(title="Results", description="Directory the results are written to.")
    score: ScoreConfig = ScoreConfig()
    dask: Where = Field("local", title="Dask", description=DASK_HELP)

    @property
    def subject(self) -> str:
        """What a run of this is called: the checkpoint's index and what is asked."""
        asked = name_of(self.queries) if self.queries else f"{self.prompt}{self.completion}"
        return f"{name_of(self.index)}: {asked[:SUBJECT_CHARACTERS]}"

    def check(self) -> None:
        super().check()
        self.score.check()
        require_autocorrelation(read_index(self.index), self.score.whitening)
        self.asked()

    def asked(self) -> list[Query]:
        """The queries of the file, or the one that was typed in.

        Raises:
            InputError: Both were given, or neither, or the file is wrong.
        """
        is_typed = bool(self.completion or self.prompt)
        if (self.queries is not None) == is_typed:
            raise InputError(
                f"--queries is {self.queries} and --completion is {self.completion!r}; give either a file of queries, "
                "or a completion and what comes before it"
            )
        return read_queries(self.queries) if self.queries is not None else [self._typed()]

    def _typed(self) -> Query:
        if not self.completion.strip():
            raise InputError(f"--completion is {self.completion!r}; type what the model says after the prompt")
        return Query(id="typed", prompt=self.prompt, completion=self.completion)


class CompareConfig(AttributeConfig):
    """The same queries through every method, measured."""

    methods: Annotated[tuple[str, ...], Option(metavar="NAME,...", group=WHAT)] = Field(
        DEFAULT_METHODS,
        min_length=1,
        title="Methods",
        description=f"Any of {', '.join(METHODS)}; the first is compared to.",
    )
    score: ScoreConfig = ScoreConfig(top_k=100)
    tail_patch: TailPatchConfig = TailPatchConfig()
    token_influence: TokenInfluenceConfig = TokenInfluenceConfig()
    influence: InfluenceConfig = InfluenceConfig()
    also_checkpoints: Annotated[tuple[Directory, ...], Option(words=True, metavar="DIR...", group=WHAT)] = Field(
        (), title="Further checkpoints", description="Of the same training; grad_dot and grad_cosine sum over them."
    )
    dense_encoder: Directory | None = Field(
        None, title="Sentence encoder", description="Directory of a local sentence encoder, for the method dense."
    )
    entailment_model: Directory | None = Field(
        None,
        title="Entailment model",
        description="Directory of a local one, to judge what is evidence for queries without relevant_ids and aliases.",
    )
    entailment: EntailmentConfig = EntailmentConfig()

    def check(self) -> None:
        require_possible(self.methods, dense_encoder=self.dense_encoder, also_checkpoints=self.also_checkpoints)
        super().check()
        for checkpoint in self.also_checkpoints:
            require_whole(checkpoint)
        if self.dense_encoder is not None:
            model_files(self.dense_encoder)
        if self.entailment_model is not None:
            require_undecided(self.asked())
            model_files(self.entailment_model)
        self._check_models()

    def _check_models(self) -> None:
        """Raise InputError for a model that is not what it is given as; this loads torch."""
        if self.also_checkpoints:
            from trackstar.tasks.models.loadable import require_same_model

            engine = read_index(self.index).engine
            for checkpoint in self.also_checkpoints:
                require_same_model(checkpoint, engine.model, beside=engine.checkpoint.path)
        if self.dense_encoder is not None:
            from trackstar.tasks.methods.dense import read_encoder

            read_encoder(self.dense_encoder)
        if self.entailment_model is not None:
            from trackstar.tasks.evaluation.entailment_model import read_entailment_model

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
    ids: Annotated[tuple[Id, ...], Option(words=True, metavar="ID...", group=WHAT)] = Field(
        (), title="Documents", description="Ids of documents, as results show them."
    )
    ids_file: File | None = Field(None, title="Documents file", description="Further ids, one a line, in UTF-8.")
    reason: Annotated[Text, Option(metavar="TEXT", group=WHAT)] = Field(
        "", title="Reason", description="Recorded with the ids."
    )
    dask: Where = Field("local", title="Dask", description=DASK_HELP)

    @property
    def name(self) -> str:
        return name_of(self.index)

    def check(self) -> None:
        super().check()
        read_index(self.index)
        self.asked()

    def asked(self) -> list[str]:
        """The ids, those of the file after those given by themselves.

        Raises:
            InputError: There is none, or the file cannot be read.
        """
        ids = [*self.ids, *(read_ids(self.ids_file) if self.ids_file is not None else ())]
        if not ids:
            raise InputError("no document is named; give ids, or an ids file with one id a line")
        return ids


class ReindexConfig(IndexingConfig):
    """A training run's checkpoints, each indexed and asked the standing queries."""

    checkpoints: Directory = Field(title="Checkpoints", description="Directory that training saves its checkpoints in.")
    indexes: NewDirectory = Field(title="Indexes", description="Directory of an index and of results per checkpoint.")
    queries: File | None = Field(None, title="Standing queries", description=QUERIES_HELP)
    keep_last: Annotated[int | None, Option(group=WHAT)] = Field(
        None, ge=1, title="Keep", description="Only the last N checkpoints have an index; by default all. Results stay."
    )
    score: ScoreConfig = ScoreConfig()

    @property
    def name(self) -> str:
        return name_of(self.checkpoints)

    def check(self) -> None:
        super().check()
        self.score.check()
        self.corpus.require_documents()
        if self.queries is not None:
            read_queries(self.queries)
        require_device(self.model.device, name="--device")


class SelfcheckConfig(FlowConfig):
    """A checkpoint to be measured."""

    checkpoint: Directory = Field(title="Checkpoint", description="Directory of a Hugging Face checkpoint.")
    model: ModelConfig = ModelConfig()

    def check(self) -> None:
        super().check()
        require_whole(self.checkpoint)
        require_device(self.model.device, name="--device")


class DemoConfig(FlowConfig):
    """The demo from nothing: corpus, model, index, queries, comparison."""

    out: NewDirectory = Field(
        "demo", validate_default=True, title="Directory", description="All that is written goes below it."
    )
    corpus: DemoCorpusConfig = DemoCorpusConfig()
    training: TrainingConfig = TrainingConfig()
    gradient: GradientConfig = GradientConfig(projection_dim=32)
    tail_patch: TailPatchConfig = TailPatchConfig(num_proponents=5)
    methods: Annotated[tuple[str, ...], Option(metavar="NAME,...", group=WHAT)] = Field(
        ("trackstar", "bm25", "random"), title="Methods", description="What is compared."
    )


class MnistConfig(FlowConfig):
    """The study of the equation on small images."""

    out: NewDirectory = Field(title="Directory", description="The page, the numbers and the images go below it.")
    data: Annotated[Source, Option(metavar="digits|mnist|FILE.npz")] = Field(
        DIGITS, title="Images", description="digits, mnist, or an .npz file with arrays X and y."
    )
    study: StudyConfig = StudyConfig()
