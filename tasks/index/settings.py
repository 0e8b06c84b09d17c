"""Settings of a corpus and of what an index keeps of it."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field, field_validator

from trackstar.storage.errors import InputError
from trackstar.storage.layout import require_named
from trackstar.storage.reading import Format, Reading, SpecialTokens
from trackstar.tasks.runtime.settings import Option, Settings

if TYPE_CHECKING:
    from trackstar.storage.corpus import CorpusFile

DOCUMENT_COLUMNS = frozenset(
    {"row", "id", "text", "content_json", "input_ids", "is_target", "num_tokens", "num_windows", "loss"}
)  # of every document table


class CorpusConfig(Settings):
    """Where the corpus is and how it is cut."""

    model_config = ConfigDict(title="Corpus")

    paths: Annotated[tuple[str, ...], Option("--corpus", words=True, metavar="PATH...", group="Input and output")] = (
        Field(
            description="Files, directories or quoted patterns: JSON Lines, CSV, TSV, text (each also .gz, .zst), "
            "Parquet, datasets on disk."
        )
    )
    text_column: str = Field(
        "text", min_length=1, description="Column with the document's text; several, by commas, are joined."
    )
    text_separator: str = Field("\n\n", description="What joins the columns of a text; by default a blank line.")
    text_unit: Literal["file", "paragraph"] = Field("file", description="What a document is in a .txt file.")
    format: Format = Field(
        "auto",
        description="text; pairs: prompt and completion, loss on the completion; chat: messages, loss on the "
        "assistant's turns; tokens: input_ids with labels or loss_mask. auto: as the columns say, text first.",
    )
    special_tokens: SpecialTokens = Field(
        "tokenizer", description="What text and pairs begin and end with; chats and tokens have their own."
    )
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

    def require_documents(self) -> None:
        """Raise InputError for paths that lead to no document, as far as the first rows show."""
        from trackstar.storage.corpus import require_documents

        require_documents(self.files(), reading=self.reading, id_column=self.id_column)

    @property
    def reading(self) -> Reading:
        return Reading(**self.model_dump(include=set(Reading.model_fields)))

    def files(self) -> "list[CorpusFile]":
        from trackstar.storage.corpus import corpus_files  # which loads polars

        return corpus_files(self.paths)


class CurvatureConfig(Settings):
    """How R_train is reduced."""

    model_config = ConfigDict(title="Curvature")
    option_prefix = "curvature"

    autocorrelation: Annotated[Literal["auto", "on", "off"], Option("--autocorrelation")] = Field(
        "auto",
        description="Whether there is an R_train; off: the identity times each block's mean square takes its place. "
        "auto: on, but for kfac and ekfac, whose gradients are nearly white.",
    )
    sample: int | None = Field(
        None, ge=1, description="Documents of a random sample that R_train is taken from; by default all."
    )
    seed: Annotated[int, Option("--seed")] = Field(0, ge=0, description="Seed of the sample.")
    group_shards: int = Field(
        64, ge=1, description="Shards, on average, whose sum is kept, so that a grown corpus is not summed again."
    )

    def resolve(self, *, is_white: bool) -> "CurvatureConfig":
        """The same without ``auto``.

        Raises:
            InputError: R_train is to be taken from a sample, and there is to be none.
        """
        chosen = self.autocorrelation if self.autocorrelation != "auto" else ("off" if is_white else "on")
        if chosen == "off" and self.sample is not None:
            raise InputError(
                f"R_train is to come from a sample of {self.sample} documents, and there is to be none: add "
                "--autocorrelation on, or leave out --curvature-sample"
            )
        return self.model_copy(update={"autocorrelation": chosen})


class FactorConfig(Settings):
    """What the Kronecker factors of K-FAC and EK-FAC are estimated from."""

    model_config = ConfigDict(title="Kronecker factors")
    option_prefix = "factor"

    labels: Literal["sampled", "empirical"] = Field(
        "sampled",
        description="sampled: labels drawn from the model, as the Fisher matrix has them; empirical: the text's.",
    )
    sample_size: Annotated[int, Option("--factor-sample")] = Field(
        1024, ge=1, description="Documents of the corpus that the factors are estimated from."
    )
    seed: Annotated[int, Option("--seed")] = Field(0, ge=0, description="Seed of that sample and of its labels.")
