"""float32: rows as they were computed."""

from numpy import ndarray

from trackstar.storage.codes.code import Code


def encode(rows: ndarray) -> tuple[ndarray, None]:
    """Return the rows themselves."""
    return rows, None


def decode(stored: ndarray, scales: ndarray | None, out: ndarray) -> None:
    """Copy the rows."""
    out[:] = stored


FLOAT32 = Code(
    "float32", "float32", has_scales=False, width=lambda d: d, encode=encode, decode=decode, item_bytes=4, is_plain=True
)
