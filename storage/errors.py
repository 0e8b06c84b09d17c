"""Everything that can be wrong with what a user hands in or with what lies on disk.

Each error is one sentence: the value, what was expected, the cure.
"""


class InputError(ValueError):
    """The input or the arguments are wrong; the command line answers with exit code 2."""


class StorageError(Exception):
    """Something on disk is not what it should be.

    Attributes:
        path: The file or directory at fault.
        cure: What to do about it.
    """

    def __init__(self, path: object, problem: str, cure: str) -> None:
        super().__init__(f"{path} {problem}; {cure}")
        self.path = str(path)
        self.problem = problem
        self.cure = cure

    def __reduce__(self) -> tuple:  # three arguments: without this the error cannot cross a process boundary
        return type(self), (self.path, self.problem, self.cure)


class MissingError(StorageError):
    """An artifact that should have been written before is absent or was never completed."""


class CorruptionError(StorageError):
    """Bytes on disk differ from the bytes that were written."""


class FullError(StorageError):
    """There is no room left for what was being written."""


class ServerLostError(StorageError):
    """The Prefect server went away before a run had ended."""

    def __init__(self, server: str) -> None:
        cure = "what was finished is kept: give the same command again when it is back, or unset PREFECT_API_URL"
        super().__init__(f"the Prefect server {server}", "went away", cure)

    def __reduce__(self) -> tuple:
        return type(self), (self.path.removeprefix("the Prefect server "),)


class LockedError(StorageError):
    """Another process changes an index, and only one may at a time."""


class PartlyDoneError(Exception):
    """Of several things to do some failed; the others are done, and what failed is named. Exit code 1.

    Attributes:
        done: What the run returns where nothing fails.
    """

    def __init__(self, sentence: str, done: object = None) -> None:
        super().__init__(sentence)
        self.done = done

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.done)
