"""How rows are stored, one file a code. A new one is a file here and a line in ``CODES``."""

from trackstar.storage.codes.code import Code
from trackstar.storage.codes.float16 import FLOAT16
from trackstar.storage.codes.float32 import FLOAT32
from trackstar.storage.codes.int8 import INT8
from trackstar.storage.codes.sign import SIGN
from trackstar.storage.layout import StoreAs

CODES: dict[str, Code] = {code.name: code for code in (FLOAT32, FLOAT16, INT8, SIGN)}

__all__ = ["CODES", "Code", "StoreAs"]
