"""MRR, Recall@k and tail-patch by quanda's classes, on rankings it is handed. Runs in quanda's own environment.

    QUANDA_PYTHON benchmarks/against/quanda_metrics.py SETTINGS.json

Settings: checkpoint, traced (parameter names), arrays (.npz: ranks [m q n], 1 the best, and relevant [q n]), methods,
documents and queries (token ids; a query with the index of its first target), k, learning_rate, out (.json).
"""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar
from unittest.mock import MagicMock

import datasets  # noqa: F401  before torchvision is stood in for, whose presence it looks for
import numpy as np
import torch
from transformers import AutoModelForCausalLM


class Absent(ModuleType):
    """A module that is not there, of which any name can be imported: classes to inherit from, all else a mock."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {}) if name[0].isupper() else MagicMock()


def load_quanda() -> SimpleNamespace:
    """quanda's metrics. It imports torchvision for image benchmarks, and one from PyPI breaks transformers beside a CPU
    torch, so that nothing stands there in its place."""
    for name in ("", ".datasets", ".models", ".models.resnet", ".transforms", ".transforms.functional", ".utils"):
        absent = Absent(f"torchvision{name}")
        absent.__spec__ = ModuleSpec(absent.__name__, None)
        sys.modules.setdefault(absent.__name__, absent)
    from quanda.metrics.downstream_eval import MRRMetric, RecallAtKMetric, TailPatchMetric

    return SimpleNamespace(MRR=MRRMetric, RecallAtK=RecallAtKMetric, TailPatch=TailPatchMetric)


class Documents(torch.utils.data.Dataset):
    """One document a row, its own label at every token."""

    def __init__(self, sequences: list[list[int]]) -> None:
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        tokens = torch.tensor(self._sequences[row])
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    quanda = load_quanda()
    model = AutoModelForCausalLM.from_pretrained(settings["checkpoint"], dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in settings["traced"])
    arrays = np.load(settings["arrays"])
    documents = Documents(settings["documents"])
    relevant = torch.from_numpy(arrays["relevant"])
    found = {}
    for method, ranks in zip(settings["methods"], arrays["ranks"], strict=True):
        explanations = -torch.from_numpy(ranks)
        found[method] = {
            "mrr": _computed(quanda.MRR(model, documents), explanations, relevant),
            "hit_at_10": _computed(quanda.RecallAtK(model, documents, k=settings["k"]), explanations, relevant),
            "tail_patch": _tail_patch(quanda.TailPatch, settings, model, explanations, documents),
        }
    Path(settings["out"]).write_text(json.dumps(found))


def _computed(metric, *inputs: torch.Tensor) -> float:
    metric.update(*inputs)
    return metric.compute()["score"]


def _tail_patch(
    tail_patch: type, settings: dict, model: torch.nn.Module, explanations: torch.Tensor, documents: Documents
) -> float:
    metric = tail_patch(
        model,
        documents,
        k=settings["k"],
        learning_rate=settings["learning_rate"],
        optimizer_class=torch.optim.SGD,
        tokenizer_name=settings["checkpoint"],
    )
    for row, (ids, first_target) in enumerate(settings["queries"]):
        tokens = torch.tensor([ids])
        targets = torch.tensor([[-100] * first_target + ids[first_target:]])
        data = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        metric.update(explanations[row : row + 1].double(), data, targets)
    return metric.compute()["score"]


if __name__ == "__main__":
    main()
