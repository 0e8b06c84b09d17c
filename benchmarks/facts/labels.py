"""Claim: what an entailment model judges to be evidence puts the methods in the order that known evidence does.

    python -m benchmarks.facts.labels --facts build/facts/seed-0 --encoder DIR [--out DIR]

No entailment model comes with the project, so a sentence encoder is fine-tuned to be one, on the corpus of another
seed: statements of a fact entail it; its decoys, and statements of other facts, do not. Facts that the judged queries
ask about are left out. The model then judges the pool of a finished fact-tracing run, whose known evidence was taken
away.
"""

import argparse
import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
os.environ.setdefault("DO_NOT_TRACK", "1")

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.facts.corpus import FactsConfig, FactsCorpus, build_facts_corpus
from trackstar.flows.compare import compare
from trackstar.flows.config import CompareConfig
from trackstar.storage.layout import METRICS, location
from trackstar.storage.queries import Query, read_queries
from trackstar.storage.results import read_json
from trackstar.tasks.evaluation.entailment_model import LABEL
from trackstar.tasks.evaluation.metrics import Metrics
from trackstar.tasks.evaluation.tail_patch import TailPatchConfig
from trackstar.tasks.scoring.token_influence import TokenInfluenceConfig

METHODS = ("trackstar", "no_whitening", "grad_cosine", "bm25", "dense", "hybrid", "random")
TRAINING_SEED = 100  # of the corpus that the model learns from
LABELS = {0: "not_entailment", 1: LABEL}
EACH = 4  # passages of each kind, per fact
NUM_EPOCHS, BATCH_SIZE, LEARNING_RATE = 3, 16, 1e-4

Example = tuple[str, str, int]  # premise, hypothesis, label


def examples(corpus: FactsCorpus, asked: set[str], rng: random.Random) -> Iterator[Example]:
    """Pairs about the queries of a corpus that are not among those asked elsewhere."""
    texts = {row.id: row.text for row in corpus.documents}
    decoys: dict[str, list[str]] = {}
    for row in corpus.documents:
        if row.kind == "decoy":
            decoys.setdefault(row.id.removeprefix("decoy/").rpartition("/")[0], []).append(row.text)
    statements = {query.id: [texts[name] for name in query.relevant_ids or ()] for query in corpus.queries}
    for query in corpus.queries:
        if query.id in asked:
            continue
        said = f"{query.prompt}{query.completion}"
        others = [rng.choice(statements[other.id]) for other in rng.sample(corpus.queries, EACH) if other != query]
        yield from ((text, said, 1) for text in statements[query.id][:EACH])
        yield from ((text, said, 0) for text in (*decoys[query.id][:EACH], *others))


def fine_tune(encoder: str, pairs: Sequence[Example], target: Path) -> None:
    """Train the encoder with a classifier on top, and save both."""
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    labels = {"id2label": LABELS, "label2id": {name: number for number, name in LABELS.items()}}
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=len(LABELS), **labels).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for epoch in range(NUM_EPOCHS):
        order = random.Random(epoch).sample(range(len(pairs)), len(pairs))
        total = 0.0
        for start in range(0, len(order), BATCH_SIZE):
            premises, hypotheses, targets = zip(*(pairs[row] for row in order[start : start + BATCH_SIZE]), strict=True)
            batch = tokenizer(list(premises), list(hypotheses), padding=True, return_tensors="pt")
            loss = model(**batch, labels=torch.tensor(targets)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item() * len(targets)
        print(f"epoch {epoch + 1}: mean loss {total / len(order):.4f} over {len(pairs)} pairs", flush=True)
    model.eval().save_pretrained(target)
    tokenizer.save_pretrained(target)


def judge(facts: Path, out: Path, encoder: str) -> Metrics:
    """The comparison of a finished run over again, without the evidence it knew and with the model's."""
    known = read_queries(facts / "corpus" / "queries.jsonl")
    asked = out / "queries.jsonl"
    lines = (json.dumps(query.model_dump(include={"id", "prompt", "completion"})) + "\n" for query in known)
    asked.write_text("".join(lines), encoding="utf-8")
    return compare(
        CompareConfig(
            index=str(facts / "index"),
            queries=str(asked),
            out=str(out / "results"),
            methods=METHODS,
            dense_encoder=encoder,
            entailment_model=str(out / "model"),
            tail_patch=TailPatchConfig(num_proponents=0),
            token_influence=TokenInfluenceConfig(num_proponents=0),
        )
    )


def judged_pairs(out: Path) -> dict[tuple[str, str], bool]:
    """Query and candidate to whether it was judged to be evidence, for the proponents that were shown."""
    pairs: dict[tuple[str, str], bool] = {}
    for line in map(json.loads, (out / "results" / "proponents.jsonl").read_text("utf-8").splitlines()):
        shown = zip(line["proponent_ids"][:10], line.get("proponent_correct", [False] * 10)[:10], strict=True)
        pairs |= {(line["example_id"], name): is_evidence for name, is_evidence in shown}
    return pairs


def markdown(known: Metrics, judged: Metrics, pairs: dict[tuple[str, str], bool], queries: Sequence[Query]) -> str:
    """How the labels agree, and what either kind says of each method."""
    relevant = {(query.id, name) for query in queries for name in query.relevant_ids or ()}
    positive = {pair for pair, is_evidence in pairs.items() if is_evidence}
    in_pool = relevant & pairs.keys()
    lines = [
        f"{len(pairs):,} pairs of {len(queries)} queries judged. Of {len(relevant):,} known pieces of evidence "
        f"{len(in_pool):,} are in the pool; the model finds {len(positive & in_pool):,} of those, and calls "
        f"{len(positive - relevant):,} other pairs evidence: precision {len(positive & relevant) / len(positive):.3f}, "
        f"recall in the pool {len(positive & in_pool) / len(in_pool):.3f}.",
        "",
        "| method | mrr, known | judged | recall_at_10, known | judged | precision_at_10, known | judged |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        cells = [
            f"{metrics.methods[method][metric].value:.3f}"
            for metric in ("mrr", "recall_at_10", "precision_at_10")
            for metrics in (known, judged)
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--facts", type=Path, required=True, help="A seed's directory of a finished benchmarks.facts.run."
    )
    parser.add_argument("--encoder", required=True, help="The sentence encoder to fine-tune, and the method dense.")
    parser.add_argument("--out", type=Path, default=Path("build/entailment"), help="Everything is written below it.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts, out = arguments.facts.absolute(), arguments.out.absolute()
    queries = read_queries(facts / "corpus" / "queries.jsonl")
    learnt_from = build_facts_corpus(FactsConfig(seed=TRAINING_SEED))
    pairs = list(examples(learnt_from, {query.id for query in queries}, random.Random(0)))
    if not (out / "model" / "config.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        fine_tune(arguments.encoder, pairs, out / "model")
    judged = judge(facts, out, arguments.encoder)
    known = Metrics.model_validate(read_json(location(facts / "results") / METRICS))
    print(markdown(known, judged, judged_pairs(out), queries))


if __name__ == "__main__":
    main()
