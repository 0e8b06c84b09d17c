"""Who may ask, and what every answer carries: nothing behind this sees a request that is not meant for it.

A page of another site can make a browser send requests to this machine. On loopback a request is served only if its
Host is a name of loopback, which a name that was pointed here later is not, and if its Origin, where it has one, is the
page's own. With a token, requests for data must bring it, which no other site's page can.
"""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from trackstar.storage.errors import InputError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_TIMEOUT_S = 20
SHORTEST_TOKEN = 16
GUARDED = ("/api/", "/metrics")  # what tells something of a model or a corpus
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class Refusal(NamedTuple):
    status: int
    sentence: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, seen from itself."""
    try:
        return host.lower() == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_token(host: str, token: str | None) -> None:
    """Raise InputError where others could ask and nothing would tell them apart."""
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise InputError(
            f"the token has {len(token)} characters; give at least {SHORTEST_TOKEN}, all of them printable ASCII"
        )
    if token is None and not is_loopback(host):
        raise InputError(
            f"--host is {host}, where others can ask too; give a token (--token or TRACKSTAR_TOKEN), or serve on "
            "127.0.0.1"
        )


class Gate:
    """Lets requests through that may ask, small enough and whole."""

    def __init__(self, app: Asgi, *, token: str | None, request_bytes: int) -> None:
        self._app, self._token, self._request_bytes = app, token, request_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, _with_headers(send, is_api=_is_guarded(scope)))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        refusal = self._refusal(scope, headers)
        body = b""
        if refusal is None and scope["method"] not in ("GET", "HEAD"):
            body, refusal = await self._read(headers, receive)
        if refusal is not None:
            await refuse(refusal, send)
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}] if body else []

        async def replay() -> MutableMapping[str, Any]:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay, send)

    def _refusal(self, scope: Scope, headers: dict[bytes, list[bytes]]) -> Refusal | None:
        hosts, origins = headers.get(b"host", []), headers.get(b"origin", [])
        host = hosts[0].decode("latin-1") if len(hosts) == 1 else ""
        if self._token is None and not is_loopback(_name(host)):
            return Refusal(403, f"the host is {host!r}, and without a token only names of this machine are answered")
        own = {f"{scheme}://{host}".lower() for scheme in ("http", "https")}
        if any(origin.decode("latin-1").lower() not in own for origin in origins):
            return Refusal(403, "the request comes from another site's page; open the page of this server")
        if not _is_guarded(scope):
            return None
        if headers.get(b"sec-fetch-site", [b"none"])[0] not in (b"same-origin", b"none"):
            return Refusal(403, "the request comes from another site's page; open the page of this server")
        if self._token is not None and not self._brings_token(headers.get(b"authorization", [])):
            sentence = "the token is missing or wrong; send it as `Authorization: Bearer TOKEN`"
            return Refusal(401, sentence, ((b"www-authenticate", b"Bearer"),))
        return None

    def _brings_token(self, given: list[bytes]) -> bool:
        kind, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
        is_same = secrets.compare_digest(token.strip(), (self._token or "").encode())
        return kind.lower() == b"bearer" and is_same

    async def _read(self, headers: dict[bytes, list[bytes]], receive: Receive) -> tuple[bytes, Refusal | None]:
        """The body of a request, read before anything else is done with it."""
        too_large = Refusal(413, f"the request is larger than {self._request_bytes:,} bytes; send less")
        announced = headers.get(b"content-length", [b"0"])[0]
        if announced.isdigit() and int(announced) > self._request_bytes:
            return b"", too_large
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while True:
                    message = await receive()
                    body += message.get("body", b"")
                    if len(body) > self._request_bytes:
                        return b"", too_large
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return bytes(body), None
        except TimeoutError:
            return b"", Refusal(408, f"the request was not complete after {BODY_TIMEOUT_S} seconds; send it again")


async def refuse(refusal: Refusal, send: Send) -> None:
    body = json.dumps({"error": refusal.sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *refusal.headers]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _is_guarded(scope: Scope) -> bool:
    return scope["path"].startswith(GUARDED)


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        parts = urlsplit(f"//{host}")
        return "" if "@" in host or "/" in host else parts.hostname or ""
    except ValueError:
        return ""


def _with_headers(send: Send, *, is_api: bool) -> Send:
    common = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    caching = (b"cache-control", b"no-store" if is_api else b"no-cache")

    async def wrapped(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *common, caching]}
        await send(message)

    return wrapped
