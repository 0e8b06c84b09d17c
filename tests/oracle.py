"""Scores from the definition: autograd in float64, V straight from the optimizer file, dense R.

It shares with the pipeline the tokens, the names of the matrices and the entries of P, and nothing else.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.reference import example_gradients
from trackstar.storage.queries import Query
from trackstar.tasks.models.tokens import tokenize_documents, tokenize_queries
from trackstar.tasks.numerics.architecture import assign_blocks, find_weight_matrices
from trackstar.tasks.numerics.projection import gaussian_projection

Gradients = dict[str, torch.Tensor]


class Oracle:
    """The gradients of some documents and queries, whole, one matrix at a time."""

    def __init__(self, checkpoint: Path, texts: Sequence[str], queries: Sequence[Mapping]) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64)
        self.blocks = assign_blocks(find_weight_matrices(self.model), num_layer_groups=8)
        self.matrices = [matrix for block in self.blocks.values() for matrix in block]
        self.context = self.model.config.max_position_embeddings
        self._state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.token_ids = tokenize_documents(tokenizer, texts)
        windows = [list(self._windows(ids, 1)) for ids in self.token_ids]
        self.windows = [window for document in windows for window in document]
        self.documents = [_total(document) for document in windows]
        asked = tokenize_queries(tokenizer, [Query.model_validate(query) for query in queries])
        self.queries = [_total(self._windows(item.ids, item.completion_start)) for item in asked]

    def second_moments(self, mode: str) -> dict[str, torch.Tensor]:
        """V [m n] of every matrix."""
        return {matrix.name: self._second_moment(matrix, mode) for matrix in self.matrices}

    def vectors(self, mode: str, *, projection_dim: int | None = None, pooled: bool = False):
        """Per block, [n d] of the documents and [q d] of the queries."""
        V = self.second_moments(mode)
        return [
            [
                np.stack([self._block(example, V, block, projection_dim, pooled) for example in examples])
                for block in self.blocks.values()
            ]
            for examples in (self.documents, self.queries)
        ]

    def gauss_newton(self) -> np.ndarray:
        """(1/n) Σ_t J_tᵀ (diag(p) − p pᵀ) J_t [D D] over all matrices, one document, token and logit at a time."""
        parameters = [dict(self.model.named_parameters())[matrix.name] for matrix in self.matrices]
        total = 0.0
        for ids in self.token_ids:
            logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
            for z in logits:
                rows = torch.autograd.grad(z, parameters, torch.eye(len(z)), retain_graph=True, is_grads_batched=True)
                J, p = torch.cat([part.flatten(1) for part in rows], dim=1), torch.softmax(z.detach(), 0)
                root = (J - p @ J) * p.sqrt()[:, None]
                total = total + root.T @ root
        return (total / len(self.token_ids)).numpy()

    def _windows(self, ids: Sequence[int], first_target: int) -> Iterator[Gradients]:
        """The gradients of each window; windows overlap by one token, which is no target in the later one."""
        for start in range(0, len(ids) - 1, self.context - 1):
            tokens = torch.tensor(ids[start : start + self.context])
            chosen = torch.arange(start, start + len(tokens)) >= first_target
            yield example_gradients(self.model, self.matrices, tokens, chosen)

    def _second_moment(self, matrix, mode: str) -> torch.Tensor:
        if mode == "none":
            return torch.ones(matrix.shape, dtype=torch.float64)
        if mode == "estimated":
            V = torch.stack([gradients[matrix.name] ** 2 for gradients in self.windows]).mean(0)
        else:
            names = [name for name, _ in self.model.named_parameters()]
            state = self._state[names.index(matrix.parameter)]
            if "exp_avg_sq_row" in state:
                row, column = state["exp_avg_sq_row"].double(), state["exp_avg_sq_col"].double()
                return torch.outer(row, column) / row.mean()
            V = matrix.part_of(state["exp_avg_sq"].double())
        return V if mode == "full" else torch.outer(V.mean(1), V.mean(0)) / V.mean()

    def _block(self, gradients, V, block, projection_dim, pooled):
        parts = [(gradients[matrix.name] / V[matrix.name].sqrt()).detach() for matrix in block]
        if projection_dim is not None:
            parts = [_project(part, matrix, projection_dim) for part, matrix in zip(parts, block, strict=True)]
        flat = [part.flatten().numpy() for part in parts]
        return np.sum(flat, axis=0) if pooled else np.concatenate(flat)


def _total(windows: Iterable[Gradients]) -> Gradients:
    windows = list(windows)
    return {name: sum(window[name] for window in windows) for name in windows[0]}


def _project(G, matrix, projection_dim):
    (m, n), draw = matrix.shape, {"seed": 0, "matrix_name": matrix.name, "projection_dim": projection_dim}
    L = gaussian_projection(side="left", input_dim=m, **draw).double()
    R = gaussian_projection(side="right", input_dim=n, **draw).double()
    return L @ G @ R.T
