"""Claim: indexing costs less than a training step, and little more than the floor that the arithmetic allows.

    step    forward and backward of a training step on the same batch, with the library's own loss
    floor   forward, and a backward pass of activation gradients alone: nothing is projected or stored

    python benchmarks/cost/index_cost.py [--rounds 7] [--tokens 256 64] [--models llama gpt_neox smollm2]

Every variant takes its turn in each round, on the same batch, and CPU time is counted, not the clock: a shared machine
then disturbs all of them alike. Reported are medians of the ratios within a round.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

from trackstar.tasks.numerics.architecture import assign_blocks, find_weight_matrices
from trackstar.tasks.numerics.gradients import BlockProjection, GradientEngine, MatrixProjection

VOCABULARY = 8192
CONFIGS = {
    "llama": LlamaConfig(
        hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=2,
        vocab_size=VOCABULARY, max_position_embeddings=512, tie_word_embeddings=True,
    ),
    "gpt_neox": GPTNeoXConfig(
        hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=6,
        vocab_size=VOCABULARY, max_position_embeddings=512,
    ),
    "smollm2": LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, max_position_embeddings=512, tie_word_embeddings=True,
    ),
}  # fmt: skip

Step = Callable[[Tensor], object]


def projections(model: nn.Module, *, dim: int, is_factored: bool) -> dict[str, BlockProjection]:
    """Random projections of every block; values do not matter for time, shapes do."""
    blocks = assign_blocks(find_weight_matrices(model), num_layer_groups=8)
    return {
        name: BlockProjection([_projection(matrix, dim, is_factored) for matrix in matrices], is_pooled=True)
        for name, matrices in blocks.items()
    }


def _projection(matrix, dim: int, is_factored: bool) -> MatrixProjection:
    m, n = matrix.shape
    scale = None if is_factored else torch.rand(m, n) + 0.1
    return MatrixProjection(matrix.module, matrix.shape, torch.randn(dim, m), torch.randn(dim, n), scale)


def training_step(model: nn.Module) -> Step:
    def step(tokens: Tensor) -> None:
        model.train().requires_grad_(True)
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def floor(model: nn.Module) -> Step:
    def step(tokens: Tensor) -> None:
        model.eval().requires_grad_(False)
        embedded = model.get_input_embeddings()(tokens).requires_grad_()
        model(inputs_embeds=embedded, labels=tokens, use_cache=False).loss.backward()

    return step


def indexing(model: nn.Module, *, dim: int, is_factored: bool) -> Step:
    engine = GradientEngine(model, projections(model, dim=dim, is_factored=is_factored))

    def step(tokens: Tensor) -> None:
        model.requires_grad_(False).eval()
        chosen = torch.ones_like(tokens, dtype=torch.bool)
        with engine:
            engine(tokens, chosen)

    return step


def measure(steps: dict[str, Step], tokens: Tensor, *, num_rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every step in every round; a first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(num_rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            step(tokens)
            if number > 0:
                seconds[name].append(time.process_time() - start)
    return seconds


def table(family: str, *, num_tokens: int, batch_tokens: int, num_rounds: int) -> list[str]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]).float()
    tokens = torch.randint(0, model.config.vocab_size, (batch_tokens // num_tokens, num_tokens))
    steps = {
        "step": training_step(model),
        "floor": floor(model),
        "factored, k=16": indexing(model, dim=16, is_factored=True),
        "factored, k=64": indexing(model, dim=64, is_factored=True),
        "full Adam V, k=64": indexing(model, dim=64, is_factored=False),
    }
    seconds = measure(steps, tokens, num_rounds=num_rounds)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    return [
        f"| {family} {size:.0f}M | {num_tokens} | {name} | {_ratio(seconds, name, 'step'):.3f} "
        f"| {_ratio(seconds, name, 'floor'):.3f} | {batch_tokens / statistics.median(seconds[name]):.0f} |"
        for name in steps
    ]


def _ratio(seconds: dict[str, list[float]], name: str, reference: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[reference], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 64], help="Length of a document.")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="Tokens of a batch.")
    parser.add_argument("--models", nargs="+", choices=list(CONFIGS), default=["llama", "gpt_neox"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | tokens a document | cost of | / step | / floor | tokens per CPU second |")
    print("|---|---|---|---|---|---|")
    options = {"batch_tokens": arguments.batch_tokens, "num_rounds": arguments.rounds}
    for family in arguments.models:
        for num_tokens in arguments.tokens:
            print("\n".join(table(family, num_tokens=num_tokens, **options)), flush=True)


if __name__ == "__main__":
    main()
