"""Claim: our MRR, hit@10 and tail-patch are those of quanda 0.5.0, an implementation of the paper's metrics by others.

    python benchmarks/against/referee.py --checkpoint DIR --corpus FILE... --queries FILE --quanda PYTHON --out DIR

The rankings are ours; quanda is handed ranks instead of scores, because it leaves the order of ties open. It calls
hit@10 Recall@10, as the paper does. Its tail-patch takes an optimizer class; the one step that both can take is plain
gradient descent on the attributed matrices, which is ours where the index has no second moment.
"""

import argparse
import json
import os
import subprocess
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import polars as pl

from trackstar.flows.compare import compare
from trackstar.flows.config import CompareConfig, IndexConfig
from trackstar.flows.index import index
from trackstar.storage.queries import Query, read_queries
from trackstar.storage.results import PROPONENT
from trackstar.tasks.evaluation.metrics import Metrics
from trackstar.tasks.index.contents import Index, each_text
from trackstar.tasks.models.checkpoint import load_model, load_tokenizer
from trackstar.tasks.models.engine import model_blocks
from trackstar.tasks.models.tokens import tokenize_documents, tokenize_queries

METHODS = ("trackstar", "grad_cosine", "bm25", "random")
METRICS = ("mrr", "hit_at_10", "tail_patch")
TOP_K = 10
LEARNING_RATE = 0.1  # of gradient descent: a gradient is some thousand times smaller than an Adafactor step


def ours(arguments: argparse.Namespace) -> tuple[Index, Metrics, pl.DataFrame]:
    """The index, the metrics, and the proponents of every query and method, all of them."""
    out = arguments.out / "results"
    built = index(
        IndexConfig.model_validate(
            {
                "checkpoint": str(arguments.checkpoint),
                "index": str(arguments.out / "index"),
                "corpus": {"paths": [str(path) for path in arguments.corpus]},
                "gradient": {"projection_dim": arguments.projection_dim},
                "second_moment": {"mode": "none"},
            }
        )
    )
    metrics = compare(
        CompareConfig.model_validate(
            {
                "index": str(arguments.out / "index"),
                "queries": str(arguments.queries),
                "out": str(out),
                "methods": METHODS,
                "score": {"top_k": 0},
                "tail_patch": {"num_proponents": TOP_K, "learning_rate": LEARNING_RATE},
            }
        )
    )
    return built, metrics, pl.read_parquet(out / "proponents.parquet").filter(pl.col("kind") == PROPONENT)


def quandas(arguments: argparse.Namespace, built: Index, frame: pl.DataFrame) -> dict[str, dict[str, float]]:
    """The same metrics by quanda, in its own environment."""
    texts, queries = dict(each_text(built.shard_paths)), read_queries(arguments.queries)
    ranks, relevant = _ranks(frame, queries, list(texts)), _relevant(queries, texts)
    np.savez(arguments.out / "arrays.npz", ranks=ranks, relevant=relevant)
    engine = built.engine
    tokenizer, model = load_tokenizer(engine.checkpoint, engine.model), load_model(engine.checkpoint, engine.model)
    blocks = model_blocks(model, engine.gradient).values()
    settings = {
        "checkpoint": str(arguments.checkpoint.absolute()),
        "traced": [matrix.name for matrices in blocks for matrix in matrices],
        "arrays": str((arguments.out / "arrays.npz").absolute()),
        "methods": METHODS,
        "documents": tokenize_documents(tokenizer, list(texts.values())),
        "queries": [tokens[:2] for tokens in tokenize_queries(tokenizer, queries)],
        "k": TOP_K,
        "learning_rate": LEARNING_RATE,
        "out": str((arguments.out / "quanda.json").absolute()),
    }
    path = (arguments.out / "settings.json").absolute()
    path.write_text(json.dumps(settings))
    script = Path(__file__).with_name("quanda_metrics.py").absolute()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([arguments.quanda, str(script), str(path)], check=True, cwd=arguments.out, env=environment)
    return json.loads((arguments.out / "quanda.json").read_text())


def _ranks(frame: pl.DataFrame, queries: list[Query], ids: list[str]) -> np.ndarray:
    """[m q n]"""
    places = [{name: place for place, name in enumerate(names)} for names in (METHODS, [q.id for q in queries], ids)]
    ranks = np.zeros([len(place) for place in places], dtype=np.int64)
    for method, query_id, candidate_id, rank in frame.select("method", "query_id", "candidate_id", "rank").iter_rows():
        ranks[places[0][method], places[1][query_id], places[2][candidate_id]] = rank
    assert ranks.all(), "every method ranks every document for every query"
    return ranks


def _relevant(queries: list[Query], texts: dict[str, str]) -> np.ndarray:
    """[q n]"""
    return np.array([[candidate in (query.relevant_ids or ()) for candidate in texts] for query in queries])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, nargs="+", required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--quanda", required=True, help="The Python of an environment with quanda 0.5.0.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--projection-dim", type=int, default=16)
    arguments = parser.parse_args()
    built, metrics, frame = ours(arguments)
    referee = quandas(arguments, built, frame)
    print("| method | metric | ours | quanda | difference |\n|---|---|---|---|---|")
    for method in METHODS:
        for metric in METRICS:
            value, other = metrics.methods[method][metric].value, referee[method][metric]
            print(f"| {method} | {metric} | {value:.7f} | {other:.7f} | {value - other:+.1e} |")


if __name__ == "__main__":
    main()
