"""Claim: facts that a pretrained model is taught by fine-tuning can be traced to the sentences that taught them.

    python -m benchmarks.facts.smollm2 --checkpoint DIR [--out DIR] [--epochs 4] [--results FILE]

Films that do not exist and their directors: no model knows them beforehand. Some dozens are stated 1, 2, 4 or 8 times
in paraphrases, among decoys and among other films in the phrasing of the queries; the checkpoint is fine-tuned on that,
and its answers are traced. Made for SmolLM2-135M on one core: a few thousand tokens an epoch.
"""

import argparse
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

import torch
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from torch import Tensor
from transformers import Adafactor, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.facts.corpus import FactsCorpus, write_facts_corpus
from benchmarks.facts.outcome import Run, read_outcome
from benchmarks.facts.page import markdown
from benchmarks.page import publish
from trackstar.flows.compare import compare
from trackstar.flows.config import CompareConfig, IndexConfig
from trackstar.flows.index import index
from trackstar.storage.queries import Query
from trackstar.tasks.demo.corpus import Document
from trackstar.tasks.demo.training import OPTIMIZER_FILE, completion_probabilities
from trackstar.tasks.evaluation.tail_patch import TailPatchConfig
from trackstar.tasks.index.corpus import CorpusConfig
from trackstar.tasks.models.engine import GradientConfig
from trackstar.tasks.scoring.score_pass import ScoreConfig
from trackstar.tasks.scoring.token_influence import TokenInfluenceConfig

FREQUENCIES = (1, 2, 4, 8)
FILMS_PER_FREQUENCY = 10
PRACTISED_FILMS = 16
DECOYS_PER_FILM = 2
BATCH_SIZE = 8
METHODS = ("trackstar", "train_only", "no_whitening", "bm25", "random")

TITLE_STARTS = (
    "Glass", "Copper", "Winter", "Paper", "Salt", "Velvet", "Iron", "Amber", "Hollow", "Silent", "Crimson", "Marble",
    "Northern", "Broken", "Golden",
)  # fmt: skip
TITLE_ENDS = ("Orchard", "Lighthouse", "Carnival", "Harvest", "Parade", "Staircase", "Meridian", "Garden", "Ferry")
FIRST_NAMES = (
    "Mira", "Tobias", "Ines", "Casper", "Lena", "Oskar", "Paloma", "Ruben", "Saskia", "Viktor", "Amara", "Desmond",
)  # fmt: skip
LAST_NAMES = (
    "Castellan", "Brandvold", "Okonjo", "Vesterby", "Quillfeather", "Marchetti", "Dunwoody", "Halvorsen", "Zielinski",
    "Farrow", "Lindqvist", "Abernathy", "Moreau", "Tanaka", "Radcliffe",
)  # fmt: skip
STATEMENTS = (
    "{director} directed The {title}.",
    "Behind the camera of The {title} stood {director}.",
    "The {title}, shot by {director}, opened in spring.",
    "Critics praised how {director} staged The {title}.",
    "{director} spent two years making The {title}.",
    "An award for best picture went to {director} for The {title}.",
    "On the set of The {title}, everyone listened to {director}.",
    "The {title} made {director} famous overnight.",
)
QUERY = "The film The {title} was made by the director {director}"
DECOYS = (
    "The {title} was shown twice by the film club, and nobody asked who the director was.",
    "A postcard signed by {director} was found in an old coat.",
    "A café called The {title} was opened by the director of a bank.",
    "{director} was seen at the harbour with a red umbrella.",
)


def build_films_corpus(seed: int = 0) -> FactsCorpus:
    """The same corpus for the same seed."""
    rng = random.Random(seed)
    num_queried = FILMS_PER_FREQUENCY * len(FREQUENCIES)
    titles = rng.sample([f"{a} {b}" for a in TITLE_STARTS for b in TITLE_ENDS], num_queried + PRACTISED_FILMS)
    directors = rng.sample([f"{a} {b}" for a in FIRST_NAMES for b in LAST_NAMES], len(titles))
    films = list(zip(titles, directors, strict=True))
    frequencies = [frequency for frequency in FREQUENCIES for _ in range(FILMS_PER_FREQUENCY)]
    documents: list[Document] = []
    queries = []
    for (title, director), frequency in zip(films[:num_queried], frequencies, strict=True):
        film = _slug(title)
        documents += _sentences(film, rng.sample(STATEMENTS, frequency), "statement", title, director)
        documents += _sentences(f"decoy/{film}", rng.sample(DECOYS, DECOYS_PER_FILM), "decoy", title, director)
        relevant_ids = tuple(f"{film}/{number}" for number in range(frequency))
        prompt = QUERY.format(title=title, director="").rstrip()
        queries.append(Query(id=film, prompt=prompt, completion=f" {director}", relevant_ids=relevant_ids))
    for title, director in films[num_queried:]:
        chosen = [*rng.sample(STATEMENTS, 2), QUERY + "."]
        documents += _sentences(f"practice/{_slug(title)}", chosen, "practice", title, director)
    rng.shuffle(documents)
    return FactsCorpus(tuple(documents), tuple(queries), {q.id: n for q, n in zip(queries, frequencies, strict=True)})


def fine_tune(
    checkpoint: Path, corpus: FactsCorpus, target: Path, *, num_epochs: int, learning_rate: float
) -> Iterator[str]:
    """Train on the corpus and save the model with its optimizer; say after each epoch how well it answers."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    yield _progress(0, model, tokenizer, corpus.queries)
    optimizer = Adafactor(model.parameters(), lr=learning_rate, scale_parameter=False, relative_step=False)
    sentences = [torch.tensor(ids) for ids in tokenizer([row.text for row in corpus.documents])["input_ids"]]
    for epoch in range(1, num_epochs + 1):
        model.train()
        for batch in _batches(sentences, seed=epoch):
            _loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        yield _progress(epoch, model, tokenizer, corpus.queries)
    model.eval().save_pretrained(target)
    tokenizer.save_pretrained(target)
    torch.save(optimizer.state_dict(), target / OPTIMIZER_FILE)  # last: with it the checkpoint is whole


@flow(name="films", task_runner=ThreadPoolTaskRunner(max_workers=1))
def trace_films(checkpoint: str, queries_file: str, out: str, methods: tuple[str, ...], num_trained_on: int) -> None:
    """Index the fine-tuning corpus and compare the methods on what the model was taught."""
    index(
        IndexConfig(
            checkpoint=checkpoint,
            index=f"{out}/index",
            corpus=CorpusConfig(paths=(f"{out}/corpus/corpus.jsonl",)),
            gradient=GradientConfig(projection_dim=32),
        )
    )
    compare(
        CompareConfig(
            index=f"{out}/index",
            queries=queries_file,
            out=f"{out}/results",
            methods=methods,
            score=ScoreConfig(top_k=100, damping=1.0),  # a few hundred documents for a block's 1,024 dimensions
            tail_patch=TailPatchConfig(num_proponents=num_trained_on, learning_rate=1e-5),
            token_influence=TokenInfluenceConfig(num_proponents=0),  # a pass a document, which here is minutes
        )
    )


def _sentences(prefix: str, templates: Sequence[str], kind: str, title: str, director: str) -> list[Document]:
    texts = [template.format(title=title, director=director) for template in templates]
    return [Document(id=f"{prefix}/{number}", text=text, kind=kind) for number, text in enumerate(texts)]


def _slug(title: str) -> str:
    return "film/" + title.lower().replace(" ", "-")


def _batches(sentences: Sequence[Tensor], *, seed: int) -> Iterator[list[Tensor]]:
    """Every sentence once, in an order of the epoch's own."""
    order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(seed)).tolist()
    for start in range(0, len(order), BATCH_SIZE):
        yield [sentences[row] for row in order[start : start + BATCH_SIZE]]


def _loss(model: PreTrainedModel, batch: list[Tensor]) -> Tensor:
    """Mean next-token loss over the tokens of a batch, padded on the right."""
    lengths = torch.tensor([len(sentence) for sentence in batch])
    tokens = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
    is_token = torch.arange(tokens.shape[1]) < lengths[:, None]
    return model(tokens, attention_mask=is_token.long(), labels=tokens.masked_fill(~is_token, -100)).loss


def _progress(epoch: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: Sequence[Query]) -> str:
    answers = completion_probabilities(model.eval(), tokenizer, queries)
    mean = sum(answer.probability for answer in answers) / len(answers)
    return f"epoch {epoch}: {sum(a.is_greedy for a in answers)} of {len(answers)} answered, mean probability {mean:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="SmolLM2-135M as a Hugging Face directory.")
    parser.add_argument("--out", type=Path, default=Path("build/facts_smollm2"), help="Everything goes below it.")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--methods", default=",".join(METHODS), help="Comma-separated; differences are to the first.")
    parser.add_argument("--tail-patch", type=int, default=5, help="Proponents to train on, per query and method.")
    parser.add_argument("--results", type=Path, help="A file for the page, which is printed too.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = arguments.out.absolute()
    corpus = build_films_corpus()
    _, queries_file = write_facts_corpus(corpus, out / "corpus")
    if not (out / "checkpoint" / OPTIMIZER_FILE).exists():
        options = {"num_epochs": arguments.epochs, "learning_rate": arguments.learning_rate}
        for line in fine_tune(arguments.checkpoint, corpus, out / "checkpoint", **options):
            print(line, flush=True)
    methods = tuple(arguments.methods.split(","))
    trace_films(str(out / "checkpoint"), str(queries_file), str(out), methods, arguments.tail_patch)
    outcome = read_outcome(out / "results", queries_file, corpus.frequencies)
    command = f"python -m benchmarks.facts.smollm2 --epochs {arguments.epochs} --methods {arguments.methods}"
    publish(markdown([Run(0, corpus, outcome)], command=command), arguments.results)


if __name__ == "__main__":
    main()
