"""What each flow is asked to do: its form in the Prefect UI, its parameters in a deployment, its command line flags."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from trackstar.flows.cli.options import settings_of
from trackstar.flows.places import Place, require_device, require_place, require_store, require_where
from trackstar.storage.current import resolved
from trackstar.storage.errors import InputError
from trackstar.storage.layout import INDEX, StoreAs, is_local, location
from trackstar.storage.queries import Id, Query, Text, read_ids, read_queries
from trackstar.storage.verification import index_names, require_no_indexes
from trackstar.tasks.asking.settings import ASKED_METHODS
from trackstar.tasks.demo.settings import DemoCorpusConfig, TrainingConfig
from trackstar.tasks.evaluation.settings import (
    EntailmentConfig,
    Judge,
    TailPatchConfig,
    require_undecided,
)
from trackstar.tasks.index.index_file import existing_index, read_index, require_autocorrelation, require_same_kind
from trackstar.tasks.index.lineage import indexes_below
from trackstar.tasks.index.settings import CorpusConfig, CurvatureConfig, FactorConfig
from trackstar.tasks.methods.settings import (
    DEFAULT_METHODS,
    METHODS,
    TRACKSTAR,
    InfluenceConfig,
    MethodSettings,
    require_possible,
)
from trackstar.tasks.mnist.settings import DIGITS, MNIST, StudyConfig
from trackstar.tasks.models.checkpoint_files import model_files, require_whole
from trackstar.tasks.models.optimizer_files import find_state
from trackstar.tasks.models.settings import GradientConfig, ModelConfig, SecondMomentConfig
from trackstar.tasks.reindex.settings import GateConfig
from trackstar.tasks.runtime.settings import Option, Settings
from trackstar.tasks.scoring.settings import DAMPING, ScoreConfig, TokenInfluenceConfig
from trackstar.tasks.serving.settings import ServingConfig

WHAT, WHERE, MEMORY, SERVER = "Input and output", "Where it runs", "Memory", "Server"  # groups of options

# Absolute: workers run in other directories.
Url = Annotated[str, AfterValidator(lambda url: str(location(url))), Option(metavar="DIR", group=WHAT)]
# Of a directory of indexes, the one that serves; known when the settings are read, so that check and run mean the same.
AskedIndex = Annotated[Url, AfterValidator(lambda url: asked_index(url))]
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


def asked_index(url: str) -> str:
    """The index that is meant by the path of one, or of a directory of them."""
    path = location(url)
    if not is_local(path):
        require_store(path)
    return resolved(url)


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
    store_as: Annotated[StoreAs, Option(also=("--store-dtype",), group="Gradients")] = Field(
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
        self.corpus.require_documents()
        existing = existing_index(self.index)
        if not self.is_sized_by_checkpoint:
            require_same_kind(existing, self.model, self.gradient)
        require_device(self.model.device, name="--device")
        self.check_checkpoint()
        if self.is_sized_by_checkpoint:
            require_same_kind(existing, self.model, self.sized_gradient(self.checkpoint))

    def check_checkpoint(self) -> None:
        """Raise InputError for a checkpoint that cannot be indexed so; this loads torch."""
        require_whole(self.checkpoint, context_tokens=self.model.context_tokens)
        if self.second_moment.mode not in ("estimated", "none"):
            find_state(self.checkpoint)
        from trackstar.tasks.models.loadable import require_loadable  # which loads torch

        require_loadable(self.checkpoint, self.model)


def with_all_checkpoints(values: Any) -> Any:
    """The values of a form or a command, a directory of indexes taken for those in it, the newest first."""
    directory = values.get("all_checkpoints") if isinstance(values, dict) else None
    if directory is None:
        return values
    if values.get("index"):
        raise InputError(f"--index is {values['index']} and --all-checkpoints {directory}; give one of them")
    newest, *further = indexes_below(directory)
    return {**values, "all_checkpoints": None, "index": newest, "further_indexes": further}


class AttributeConfig(FlowConfig):
    """Queries to proponents and opponents."""

    index: Annotated[AskedIndex, Option(metavar="DIR", group=WHAT, then="further_indexes")] = Field(
        title="Index",
        description="A finished index, or a directory of them: the one that serves; given again, one more, of another "
        "checkpoint of the same corpus.",
    )
    further_indexes: Annotated[tuple[Url, ...], Option(words=True, metavar="DIR...", group=WHAT)] = Field(
        (), title="Further indexes", description="Of other checkpoints: scores are summed over all of them."
    )
    all_checkpoints: Directory | None = Field(
        None,
        title="All checkpoints",
        description="Directory of indexes, as `trackstar reindex` writes them: all of them, instead of --index.",
    )
    prompt: Asked = Field("", title="Prompt", description="Ask one query by hand: what the model reads first.")
    completion: Asked = Field("", title="Completion", description="And what it then says, with its leading space.")
    queries: File | None = Field(None, title="Queries file", description=f"Instead of one by hand: {QUERIES_HELP}")
    out: NewDirectory = Field(title="Results", description="Directory the results are written to.")
    score: ScoreConfig = ScoreConfig()
    dask: Where = Field("local", title="Dask", description=DASK_HELP)

    _find = model_validator(mode="before")(with_all_checkpoints)

    @property
    def subject(self) -> str:
        """What a run of this is called: the checkpoint's index and what is asked."""
        asked = name_of(self.queries) if self.queries else f"{self.prompt}{self.completion}"
        return f"{name_of(self.index)}: {asked[:SUBJECT_CHARACTERS]}"

    def check(self) -> None:
        super().check()
        self.score.check()
        for url in (self.index, *self.further_indexes):
            require_autocorrelation(read_index(url), self.score.whitening)
        if self.further_indexes and self.score.rerank is not None:
            raise InputError(
                f"--rerank is {self.score.rerank} and there are {len(self.further_indexes) + 1} indexes; leave it out, "
                "or ask one of them"
            )
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


class AskCommandConfig(FlowConfig):
    """One question at a terminal."""

    index: Url = Field(title="Index", description="A finished index.")
    methods: Annotated[tuple[str, ...], Option(metavar="NAME,...", group=WHAT)] = Field(
        (TRACKSTAR,), title="Methods", description=f"Any of {', '.join(ASKED_METHODS)}."
    )
    contrast: Annotated[str | None, Option(metavar="TEXT", group=WHAT)] = Field(
        None, title="Contrast", description="Ask about the completion rather than this."
    )
    background: File | None = Field(
        None, title="Standing queries", description="Whose R_eval is mixed in; without them R_train alone whitens."
    )
    dense_encoder: Directory | None = Field(
        None, title="Sentence encoder", description="Directory of a local sentence encoder, for the method dense."
    )
    top_k: Annotated[int, Option(group="Scores")] = Field(
        5, ge=0, title="Top k", description="Proponents and opponents of each method; 0: every document."
    )
    mixing_weight: Annotated[float | None, Option(group="Scores")] = Field(
        None, ge=0, lt=1, title="Mixing weight", description="λ with --background; by default where the spectra cross."
    )
    damping: Annotated[float | None, Option(group="Scores")] = Field(
        None, ge=0, title="Damping", description=f"Relative to R_train's mean eigenvalue; by default {DAMPING:g}."
    )
    memory_gib: Annotated[float, Option(group=MEMORY)] = Field(
        2.0, ge=0, title="Memory", description="GiB that may be held: factors, norms, gradients."
    )
    prepare: Annotated[bool, Option(group=MEMORY)] = Field(
        False, title="Prepare", description="Write the factors and norms that the index lacks for questions, once."
    )


class ServeCommandConfig(FlowConfig):
    """A page and an API over finished indexes."""

    host: Annotated[str, Option(metavar="HOST", group=SERVER)] = Field(
        "127.0.0.1", title="Host", description="Address to listen on; one that others reach needs a token."
    )
    port: Annotated[int, Option(group=SERVER)] = Field(
        8765, ge=0, le=65535, title="Port", description="0 takes a free one."
    )
    token: Annotated[str | None, Option(metavar="TEXT", group=SERVER)] = Field(
        None,
        title="Token",
        description="What requests must bring; better given as TRACKSTAR_TOKEN, which no list of processes shows.",
    )
    server: ServingConfig = ServingConfig()
    dense_encoder: Directory | None = Field(
        None, title="Sentence encoder", description="Directory of a local sentence encoder, for the method dense."
    )
    damping: Annotated[float | None, Option(group="Scores")] = Field(
        None, ge=0, title="Damping", description=f"Relative to R_train's mean eigenvalue; by default {DAMPING:g}."
    )
    memory_gib: Annotated[float, Option(group=MEMORY)] = Field(
        2.0, ge=0, title="Memory", description="GiB that may be held, of all indexes together."
    )


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
        self.score.require_plain()
        if self.further_indexes:
            raise InputError(
                f"a comparison is of one index, and {self.further_indexes[0]} is a further one; give --index once, or "
                "--also-checkpoints for TracIn"
            )
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
    """Documents to be left out of an index, or of every index of a directory."""

    index: Url = Field(
        title="Index", description="A finished index, or a directory of them: every one that is or will be there."
    )
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
        directory = location(self.index)
        for index in [directory] if self.is_of_one else [directory / name for name in index_names(directory)]:
            read_index(str(index))
        self.asked()

    @property
    def is_of_one(self) -> bool:
        """Whether this is an index, or nothing: else it is a directory of indexes."""
        directory = location(self.index)
        return (directory / INDEX).exists() or not index_names(directory)

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
    promotion: Annotated[Literal["auto", "manual"], Option(group=WHAT)] = Field(
        "auto",
        title="Promotion",
        description="Whether an index that holds to its gates serves by itself, or by `trackstar promote` alone.",
    )
    gates: GateConfig = GateConfig()
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
