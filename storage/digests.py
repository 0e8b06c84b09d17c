"""SHA-256 of JSON values and of files."""

import hashlib
import json
from typing import Any

from upath import UPath

HASH_BLOCK_BYTES = 1 << 20


def canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: UPath) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()
