"""What the server has done, for Prometheus."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from trackstar.tasks.serving.desk import Desk
from trackstar.tasks.serving.served_indexes import ServedIndexes

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Counters of one server; several in a process know nothing of each other."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.answers = Counter(
            "trackstar_answers", "Requests for data by how they ended.", ["what", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "trackstar_answer_seconds",
            "From a request to its answer.",
            ["what"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._at_desk = Gauge("trackstar_at_desk", "Requests that wait or are answered.", registry=self._registry)
        of_index = {"labelnames": ["index"], "registry": self._registry}
        self._documents = Gauge("trackstar_index_documents", "Documents that may be found.", **of_index)
        self._memory = Gauge("trackstar_index_memory_bytes", "What is kept of an index.", **of_index)
        self._reopened = Gauge("trackstar_index_reopened", "How often an index was replaced.", **of_index)

    def text(self, indexes: ServedIndexes, desks: Iterable[Desk]) -> bytes:
        """Everything as it is now, in Prometheus' text format."""
        self._at_desk.set(sum(desk.num_tickets for desk in desks))
        for name, served in indexes:
            self._documents.labels(name).set(served.opened.num_documents)
            self._memory.labels(name).set(served.opened.memory.used_bytes)
            self._reopened.labels(name).set(served.num_reopened)
        return generate_latest(self._registry)
