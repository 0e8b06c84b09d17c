"""Models from their files by transformers, whole or refused, and their outline from the headers of the files alone.

The outline goes the same way as the model, through the library's renamings, conversions and ties, with tensors of the
meta device in place of values: what loading would report is known in a second, before any work is done.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from trackstar.storage.errors import InputError
from trackstar.storage.layout import location
from trackstar.tasks.models.loading_report import ONE_MODEL, require_whole
from trackstar.tasks.models.weight_files import stored_tensors

REFUSALS = (OSError, ValueError, KeyError, RuntimeError, ImportError)


class Loader:
    """One checkpoint by one of transformers' Auto classes.

    Args:
        auto: AutoModelForCausalLM, say.
        path: Directory of the checkpoint.
        what: What it should be, for the sentence that refuses it.
        trust_remote_code: Whether to run code that comes with the checkpoint.
        unneeded: Beginnings of names of weights that nothing is computed from.
        cure: What to do about weights that are missing.
        options: Further ones of ``from_pretrained``.
    """

    def __init__(
        self,
        auto: Any,
        path: str,
        *,
        what: str,
        trust_remote_code: bool = False,
        unneeded: Collection[str] = (),
        cure: str = ONE_MODEL,
        **options: Any,
    ) -> None:
        self._auto, self._path, self._what = auto, path, what
        self._judgement = {"path": path, "unneeded": tuple(unneeded), "cure": cure}
        self._directory = Path(str(location(path)))
        self._code = {"trust_remote_code": trust_remote_code}
        self._options = {**options, "output_loading_info": True, "ignore_mismatched_sizes": True}

    def config(self) -> PreTrainedConfig:
        """The checkpoint's configuration.

        Raises:
            InputError: It cannot be read.
        """
        with self._refusing():
            return AutoConfig.from_pretrained(str(self._directory), local_files_only=True, **self._code)

    def model(self) -> PreTrainedModel:
        """The model with its weights.

        Raises:
            InputError: It cannot be loaded, or not wholly.
        """
        config = self.config()
        with self._refusing():
            options = {"config": config, "local_files_only": True, **self._code, **self._options}
            model, report = self._auto.from_pretrained(str(self._directory), **options)
        if any(report.values()):
            require_whole(model, report, stored_tensors(self._directory), **self._judgement)
        return model

    def outline(self) -> PreTrainedModel:
        """The model on the meta device. A quantised one is not held against its files: their shapes are others.

        Raises:
            InputError: It could not be loaded, or not wholly.
        """
        config = self.config()
        with self._refusing(), torch.device("meta"):
            empty = self._auto.from_config(config, **self._code)
        if getattr(config, "quantization_config", None) is not None:
            return empty
        tensors = stored_tensors(self._directory, safetensors_only=bool(self._options.get("use_safetensors")))
        self._require_numbers(tensors)
        with self._refusing():
            options = {"config": config, "state_dict": tensors, "device_map": {"": "meta"}, **self._options}
            model, report = type(empty).from_pretrained(None, **options)
        require_whole(model, report, tensors, **self._judgement)
        return model

    def _require_numbers(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.endswith(".weight") and not tensor.is_floating_point():
                dtype = str(tensor.dtype).removeprefix("torch.")
                raise InputError(
                    f"{self._path} keeps {name} as {dtype} and its config.json names no quantisation; save the model "
                    "in floating point"
                )

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn what the library raises into a sentence, and keep its own reports off the terminal."""
        verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity(transformers_logging.CRITICAL)
        transformers_logging.disable_progress_bar()
        try:
            yield
        except InputError:
            raise
        except REFUSALS as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"{self._path} cannot be loaded as {self._what}: {reason}") from error
        finally:
            transformers_logging.set_verbosity(verbosity)
