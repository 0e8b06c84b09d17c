"""A server on a socket: nothing is listened to before it is known who may ask."""

import logging
import socket
import threading
from collections.abc import Callable

import uvicorn

from trackstar.storage.errors import InputError, StorageError
from trackstar.tasks.asking.gradient_scan import Cancelled
from trackstar.tasks.serving.app import make_app
from trackstar.tasks.serving.gate import require_token
from trackstar.tasks.serving.served_indexes import ServedIndexes
from trackstar.tasks.serving.settings import ServingConfig

LOG = logging.getLogger(__name__)
CONNECTIONS = 512
LEAVING_S = 3


def serve(
    indexes: ServedIndexes,
    config: ServingConfig,
    *,
    host: str,
    port: int,
    token: str | None,
    ready: Callable[[str, uvicorn.Server], None],
    is_warmed: bool = True,
) -> None:
    """Answer until a signal comes.

    Args:
        ready: Told the page's address once it is listened to, and given the server.
        is_warmed: Whether each index is asked something at once, so that nobody waits for its model later.
    """
    require_token(host, token)
    listening = _listen(host, port)
    name = f"[{host}]" if ":" in host else host
    stopping = threading.Event()
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(indexes, config, token=token),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=LEAVING_S,
        )
    )
    with listening:
        ready(f"http://{name}:{listening.getsockname()[1]}/", server)
        if is_warmed:
            threading.Thread(target=warm, args=(indexes, stopping.is_set), name="warming", daemon=True).start()
        try:
            server.run(sockets=[listening])
        finally:
            stopping.set()


def warm(indexes: ServedIndexes, cancelled: Callable[[], bool]) -> None:
    """Ask each index something, so that its model, factors and gradients are there when somebody does."""
    for name, served in indexes:
        try:
            served.current().ask("The", " one", top_k=1, cancelled=cancelled)
        except Cancelled:
            return
        except (InputError, StorageError, OSError) as error:
            LOG.warning("index %s: %s", name, error)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise InputError(
            f"{host}:{port} cannot be listened to: {error.strerror}; choose another --port or --host"
        ) from error
