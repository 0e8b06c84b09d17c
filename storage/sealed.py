"""JSON files that hold the digest of their own bytes: one flipped bit anywhere in one is found when it is read.

The last member, ``self_digest``, is the SHA-256 of the file without that digest's 64 digits.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

SELF_DIGEST = "self_digest"
_SEALED = re.compile(rb'(.*\n "self_digest": ")([0-9a-f]{64})("\n\}\n)', re.DOTALL)


def sealed(value: Mapping[str, Any]) -> bytes:
    """The bytes of a JSON object, its own digest in it."""
    text = json.dumps({**value, SELF_DIGEST: ""}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    content = text.encode(errors="backslashreplace")  # half a character has no bytes in UTF-8, and a JSON escape
    end = len(b'"\n}\n')
    return content[:-end] + hashlib.sha256(content).hexdigest().encode() + content[-end:]


def unsealed(content: bytes) -> dict[str, Any]:
    """The JSON object in such bytes, less its digest.

    Raises:
        ValueError: The bytes hold no digest of their own, or another one's.
    """
    found = _SEALED.fullmatch(content)
    if found is None:
        raise ValueError("holds no digest of its own")
    if hashlib.sha256(found[1] + found[3]).hexdigest().encode() != found[2]:
        raise ValueError("differs from what was written: its own digest is of other bytes")
    value = json.loads(content)
    del value[SELF_DIGEST]
    return value
