"""Which index serves, said by a person: no gate is asked, what it found is kept beside the decision."""

from trackstar.storage.current import Serving, promote, require_index_name, roll_back
from trackstar.storage.errors import InputError
from trackstar.storage.layout import RESULTS, location
from trackstar.storage.standing import read_standing
from trackstar.tasks.index.index_file import read_index
from trackstar.tasks.index.withdrawals import Withdrawal, documents_left, pending
from trackstar.tasks.reindex.gates import decision_of


def promote_by_hand(indexes: str, name: str) -> Serving:
    """Let an index serve that can be read, whatever its gates said."""
    directory = location(indexes)
    index = read_index(str(directory / require_index_name(name)))
    left = documents_left(index=str(index.path), shards=index.shards, tombstones=index.tombstones)
    if missing := pending([Withdrawal.model_validate(one) for one in read_standing(directory)], left):
        raise InputError(
            f"{name} still has {missing[0].ids[0]!r}, which was withdrawn from every index; run `trackstar withdraw "
            f"--index {directory} --ids` with it again, which takes it out of this one too"
        )
    decision = decision_of(directory / RESULTS / name)
    gates = tuple(gate.model_dump() for gate in decision.gates) if decision else ()
    return promote(directory, name, by="promote", gates=gates)


def rollback(indexes: str) -> Serving:
    """Let the index serve that did before."""
    return roll_back(location(indexes))
