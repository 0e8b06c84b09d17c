"""Claim: projected gradients are computed faster than bergson computes them, and both are what autograd says they are.

    python benchmarks/against/beside_bergson.py --peer PYTHON_OF_AN_ENVIRONMENT_WITH_BERGSON [--rounds 3]

Same model, same batches of documents of one length, same second moment, same k, one thread, float32. Each library runs
in a process and an environment of its own, in turns; CPU time is counted, from the first measured batch to the last,
of computing alone: neither writes to disk, since they store different things (bergson k² numbers a matrix, ours k² a
block of matrices). Exactness: one batch against autograd's gradients in float64, divided and projected by the
library's own matrices, as the largest relative error of a document.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

VOCABULARY = 8192
BATCH_TOKENS = 2048
SIZES = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "max_position_embeddings": 512}
CONFIGS = {
    "llama": LlamaConfig(intermediate_size=1024, num_key_value_heads=2, vocab_size=VOCABULARY, **SIZES),
    "gpt_neox": GPTNeoXConfig(intermediate_size=1536, vocab_size=VOCABULARY, **SIZES),
}
EXACT_TOKENS = (4, 33)  # rows and tokens of the batch that is compared with autograd

Batches = list[Tensor]
Run = Callable[[Tensor], dict[str, Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", help="Python of the environment that bergson is installed in.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=4, help="Measured batches a round, after one to warm up.")
    parser.add_argument("--modes", nargs="+", choices=["factored", "full"], default=["factored", "full"])
    parser.add_argument("--dim", type=int, default=64, help="k.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 64], help="Length of a document.")
    parser.add_argument("--model", choices=list(CONFIGS), default="llama")
    parser.add_argument("--worker", nargs=5, metavar=("LIBRARY", "MODEL", "V", "K", "TOKENS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(*arguments.worker, num_batches=arguments.batches)))
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as directory:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(CONFIGS[arguments.model]).save_pretrained(directory)
        print("| model | V | k | tokens a document | ours, tokens/s | bergson, tokens/s | ratio | errors |")
        print("|---|---|---|---|---|---|---|---|")
        for mode in arguments.modes:
            for num_tokens in arguments.tokens:
                print(_row(arguments, directory, mode, num_tokens), flush=True)


def _row(arguments: argparse.Namespace, directory: str, mode: str, num_tokens: int) -> str:
    dim = arguments.dim
    interpreters = {"ours": sys.executable, "bergson": arguments.peer}
    found: dict[str, list[dict[str, float]]] = {library: [] for library in interpreters}
    for _ in range(arguments.rounds):
        for library, interpreter in interpreters.items():
            command = [interpreter, __file__, "--batches", str(arguments.batches), "--worker", library, directory]
            found[library].append(_measured([*command, mode, str(dim), str(num_tokens)], is_peer=library != "ours"))
    rates = {library: [result["tokens_per_s"] for result in results] for library, results in found.items()}
    ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["bergson"], strict=True))
    speeds = " | ".join(f"{statistics.median(values):.0f}" for values in rates.values())
    errors = ", ".join(f"{results[0]['error']:.0e}" for results in found.values())
    return f"| {arguments.model} | {mode} | {dim} | {num_tokens} | {speeds} | {ratio:.2f} | {errors} |"


def _measured(command: list[str], *, is_peer: bool) -> dict[str, float]:
    environment = {name: value for name, value in os.environ.items() if not (is_peer and name == "PYTHONPATH")}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    return json.loads(subprocess.run(command, check=True, env=environment, **streams).stdout.splitlines()[-1])


def work(library: str, directory: str, mode: str, dim: str, num_tokens: str, *, num_batches: int) -> dict[str, float]:
    """Tokens a CPU second, and the largest relative error of a document's gradient."""
    torch.set_num_threads(1)
    build = {"ours": ours, "bergson": bergson}[library]
    rows = BATCH_TOKENS // int(num_tokens)
    with build(directory, mode, int(dim)) as (run, expected):
        batches = [_tokens(seed, rows, int(num_tokens)) for seed in range(num_batches + 1)]
        run(batches[0])
        started = time.process_time()
        for batch in batches[1:]:
            run(batch)
        seconds = time.process_time() - started
        exact = _tokens(99, *EXACT_TOKENS)
        found, truth = run(exact), expected(exact)
    error = max(((found[k].double() - v).norm(dim=1) / v.norm(dim=1)).max().item() for k, v in truth.items())
    return {"tokens_per_s": num_batches * BATCH_TOKENS / seconds, "error": error}


def _tokens(seed: int, rows: int, length: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def second_moment(name: str, shape: tuple[int, int]) -> Tensor:
    """The same V in both environments: uniform over [0.1, 1.1]."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return torch.rand(shape, generator=generator) + 0.1


def corrected(V: Tensor, mode: str) -> Tensor:
    """1/√V in float64."""
    V = V.double()
    return (V if mode == "full" else torch.outer(V.mean(1), V.mean(0)) / V.mean()).rsqrt()


def autograd(model: nn.Module, modules: list[str], tokens: Tensor) -> Iterator[list[Tensor]]:
    """The weight gradients of each document, in float64."""
    weights = [model.get_submodule(name).weight.requires_grad_() for name in modules]
    for row in tokens:
        logits = model(input_ids=row[None], use_cache=False).logits[0, :-1]
        loss = nn.functional.cross_entropy(logits, row[1:], reduction="sum")
        yield list(torch.autograd.grad(loss, weights))


class ours:
    """The engine of this project: the matrices of a block pooled."""

    def __init__(self, directory: str, mode: str, dim: int) -> None:
        from trackstar.tasks.numerics.architecture import assign_blocks, find_weight_matrices

        self._directory, self._mode, self._dim = directory, mode, dim
        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self._blocks = assign_blocks(find_weight_matrices(self._model), num_layer_groups=8)

    def __enter__(self) -> tuple[Run, Run]:
        from trackstar.tasks.numerics.gradients import BlockProjection, GradientEngine

        projections = {
            name: BlockProjection([self._projection(matrix) for matrix in matrices], is_pooled=True)
            for name, matrices in self._blocks.items()
        }
        self._engine = GradientEngine(self._model, projections)
        self._engine.__enter__()
        return lambda tokens: self._engine(tokens, torch.ones_like(tokens, dtype=torch.bool))[1], self._expected

    def __exit__(self, *exception: object) -> None:
        self._engine.__exit__(*exception)

    def _projection(self, matrix):
        from trackstar.tasks.numerics.gradients import MatrixProjection
        from trackstar.tasks.numerics.second_moment import FullSecondMoment, factor, folded_scales, inverse_root

        left, right = self._sides(matrix)
        V = FullSecondMoment(second_moment(matrix.module, matrix.shape))
        if self._mode == "full":
            scale = inverse_root(V, epsilon=1e-8).float()
            return MatrixProjection(matrix.module, matrix.shape, left, right, scale)
        row, column = folded_scales(factor(V), epsilon=1e-8)
        return MatrixProjection(matrix.module, matrix.shape, (left * row).float(), (right * column).float())

    def _sides(self, matrix) -> tuple[Tensor, Tensor]:
        from trackstar.tasks.numerics.projection import gaussian_projection

        draw = {"seed": 0, "matrix_name": matrix.name, "projection_dim": self._dim}
        m, n = matrix.shape
        return (
            gaussian_projection(side="left", input_dim=m, **draw),
            gaussian_projection(side="right", input_dim=n, **draw),
        )

    def _expected(self, tokens: Tensor) -> dict[str, Tensor]:
        model = AutoModelForCausalLM.from_pretrained(self._directory, dtype=torch.float64)
        matrices = [matrix for block in self._blocks.values() for matrix in block]
        rows: dict[str, list[Tensor]] = {name: [] for name in self._blocks}
        for gradients in autograd(model, [matrix.module for matrix in matrices], tokens):
            projected = {}
            for matrix, G in zip(matrices, gradients, strict=True):
                left, right = (side.double() for side in self._sides(matrix))
                scale = corrected(second_moment(matrix.module, matrix.shape), self._mode)
                projected[matrix.name] = left @ (G * scale) @ right.T
            for name, block in self._blocks.items():
                rows[name].append(sum(projected[matrix.name] for matrix in block).flatten())
        return {name: torch.stack(vectors) for name, vectors in rows.items()}


class bergson:
    """bergson's own collector, driven as its ``collect_gradients`` drives it, without an index on disk."""

    def __init__(self, directory: str, mode: str, dim: int) -> None:
        from bergson.config.config import IndexConfig
        from bergson.utils.worker_utils import setup_model_and_peft

        self._directory, self._mode, self._dim = directory, mode, dim
        self._config = IndexConfig(run_path=tempfile.mkdtemp(), projection_dim=dim, precision="fp32", model=directory)
        self._config.projection_type = "normal"
        self._model, _ = setup_model_and_peft(self._config)

    def __enter__(self) -> tuple[Run, Run]:
        from bergson.collector.gradient_collectors import GradientCollector
        from bergson.gradients import AdafactorNormalizer, AdamNormalizer
        from bergson.utils.worker_utils import processor_for

        prefix = self._model.base_model_prefix
        self._shapes = {
            name: tuple(module.weight.shape)
            for name, module in self._model.base_model.named_modules()
            if isinstance(module, nn.Linear)
        }
        normalizers = {}
        for name, shape in self._shapes.items():
            V = second_moment(f"{prefix}.{name}", shape)
            normalizers[name] = AdamNormalizer(V) if self._mode == "full" else AdafactorNormalizer(V.mean(1), V.mean(0))
        self._collector_of = lambda data: GradientCollector(
            model=self._model.base_model, cfg=self._config, data=data, skip_index=True,
            processor=processor, target_modules=set(self._shapes),
        )  # fmt: skip
        processor = processor_for(self._config, normalizers)
        self._collector = self._collector_of([0] * BATCH_TOKENS)
        return self._run, self._expected

    def __exit__(self, *_: object) -> None:
        pass

    def _run(self, tokens: Tensor) -> dict[str, Tensor]:
        from bergson.collector.collector import fwd_bwd_factory
        from bergson.data import pad_and_tensor

        x, y, _, mask = pad_and_tensor(tokens.tolist(), device=torch.device("cpu"), sync_max_len=False)
        with self._collector.with_batch(mask):
            losses = fwd_bwd_factory(self._config)(self._model, x, y, {})
        gradients = dict(self._collector.mod_grads)
        self._collector.process_batch(list(range(len(tokens))), losses=losses)
        return gradients

    def _expected(self, tokens: Tensor) -> dict[str, Tensor]:
        model = AutoModelForCausalLM.from_pretrained(self._directory, dtype=torch.float64)
        prefix = model.base_model_prefix
        rows: dict[str, list[Tensor]] = {name: [] for name in self._shapes}
        for gradients in autograd(model, [f"{prefix}.{name}" for name in self._shapes], tokens):
            for (name, shape), G in zip(self._shapes.items(), gradients, strict=True):
                left, right = (
                    self._collector.projection(name, self._dim, size, side, torch.device("cpu"), torch.float32).double()
                    for size, side in zip(shape, ("left", "right"), strict=True)
                )
                scale = corrected(second_moment(f"{prefix}.{name}", shape), self._mode)
                rows[name].append((left @ (G * scale) @ right.T).flatten())
        return {name: torch.stack(vectors) for name, vectors in rows.items()}


if __name__ == "__main__":
    main()
