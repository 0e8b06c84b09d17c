"""Passes over a seeded random sample of the corpus, that a correction is estimated from."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from trackstar.storage.corpus import CorpusShard, read_documents
from trackstar.storage.errors import InputError
from trackstar.storage.reading import Reading
from trackstar.tasks.models.checkpoint import Checkpoint, ModelConfig, context_tokens, device, load_tokenizer
from trackstar.tasks.models.document_tokens import read_tokens
from trackstar.tasks.numerics.batching import Window, batches, has_target, pad, windows
from trackstar.tasks.numerics.labels import sampled_labels
from trackstar.tasks.numerics.taps import Tap, TappedModel
from trackstar.tasks.runtime.progress import progress
from trackstar.tasks.runtime.stage import StageRequest


class SampleRequest(StageRequest):
    """A stage that reads a sample of the corpus. ``sample`` names the corpus shards that it may draw from."""

    checkpoint: Checkpoint
    model: ModelConfig
    sample: tuple[CorpusShard, ...] = ()
    sample_size: int = 0
    seed: int = 0
    reading: Reading = Reading()

    def sample_inputs(self) -> dict[str, Any]:
        """What determines the sample's tokens and what the model makes of them."""
        return {
            "dtype": self.model.dtype,
            "context_tokens": self.model.context_tokens,
            "sample": [shard.identity for shard in self.sample],
            "sample_size": self.sample_size,
            "seed": self.seed,
            "text_column": self.reading.text_column,
            **({"reading": reading} if (reading := self.reading.identity()) else {}),
        }


class SamplePass:
    """The sample as windows, which count as examples: splitting documents bounds memory, and a common scale cancels.

    Raises:
        InputError: No document of the sample has anything to predict.
    """

    def __init__(self, request: SampleRequest, model: nn.Module) -> None:
        self._request, self._model = request, model
        tokenizer = load_tokenizer(request.checkpoint, request.model)
        found = read_tokens(
            tokenizer,
            sample_documents(request),
            special_tokens=request.reading.special_tokens,
            vocabulary_size=model.get_input_embeddings().num_embeddings,
        )
        found = [row for row in found if row.num_targets]
        self._sequences, self._targets = [row.ids for row in found], [row.targets for row in found]
        if not self._sequences:
            raise InputError("no document of the sample has two tokens or more, so nothing can be estimated from it")
        lengths = [len(ids) for ids in self._sequences]
        cut = windows(lengths, context=context_tokens(model, request.model))
        self.windows = [window for window in cut if has_target(window, self._targets[window.document])]

    @property
    def num_documents(self) -> int:
        return len(self._sequences)

    @property
    def num_predictions(self) -> int:
        return sum(int(pad([w], self._sequences, self._targets)[1].sum()) for w in self.windows)

    def halves(self) -> tuple[list[Window], list[Window]]:
        """The windows of every other document, and those of the rest."""
        first = [window for window in self.windows if window.document % 2 == 0]
        return first, [window for window in self.windows if window.document % 2]

    def run(
        self,
        taps: Sequence[Tap],
        *parts: Sequence[Window],
        with_sampled_labels: bool = False,
        before_batch: Callable[[Tensor], None] = lambda chosen: None,
        after_part: Callable[[], None] = lambda: None,
    ) -> None:
        """Back-propagate the loss of the windows, a batch at a time.

        Args:
            taps: What sees activations and output gradients.
            parts: Windows, one part after another; all of them where none is given.
            with_sampled_labels: Whether the model's own draws take the place of the tokens that are there.
            before_batch: Told which tokens' losses count.
            after_part: Called after each part.
        """
        request = self._request
        with (
            TappedModel(self._model, taps) as tapped,
            progress(request.label, total=len(self.windows), unit="windows") as advance,
        ):
            for part in parts or (self.windows,):
                for batch in batches(part, token_budget=request.model.token_budget):
                    labels = sampled_labels(batch, self._sequences, seed=request.seed) if with_sampled_labels else None
                    tokens, chosen = self._tensors(batch)
                    before_batch(chosen)
                    tapped.backward(tokens, chosen, labels=labels)
                    advance(len(batch))
                after_part()

    def _tensors(self, batch: Sequence[Window]) -> Iterator[Tensor]:
        arrays = pad(batch, self._sequences, self._targets)
        return (torch.from_numpy(array).to(device(self._request.model)) for array in arrays)


def sample_documents(request: SampleRequest) -> pl.DataFrame:
    """The documents of a uniform sample of the corpus's rows, read shard by shard."""
    sizes = np.array([shard.num_rows for shard in request.sample])
    num_rows = int(sizes.sum())
    rng = np.random.default_rng(request.seed)
    chosen = np.sort(rng.choice(num_rows, size=min(request.sample_size, num_rows), replace=False))
    ends = np.cumsum(sizes)
    parts = [pl.DataFrame(schema={"text": pl.String})]
    for shard, end, size in zip(request.sample, ends, sizes, strict=True):
        rows = {int(row - (end - size)) + shard.first_row for row in chosen[(chosen >= end - size) & (chosen < end)]}
        if rows:
            for batch in read_documents(shard, batch_size=1024, reading=request.reading):
                is_chosen = batch.documents["row"].is_in(list(rows))
                parts.append(batch.documents.filter(is_chosen).select(pl.col("text", "^content_json$")))
    return pl.concat(parts, how="diagonal")
