"""``trackstar serve``: finished indexes on a page, until a signal comes."""

import logging
import os
from collections.abc import Sequence

import click

from trackstar.flows.config import ServeCommandConfig
from trackstar.tasks.asking.settings import AskConfig

GIB = 1 << 30


def serve(config: ServeCommandConfig, indexes: Sequence[str], *, quiet: bool) -> None:
    """Open the indexes and answer."""
    from trackstar.tasks.serving import server
    from trackstar.tasks.serving.served_indexes import ServedIndexes

    config.check()
    token = config.token or os.environ.get("TRACKSTAR_TOKEN")
    server.require_token(config.host, token)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    asked = AskConfig(
        damping=config.damping, dense_encoder=config.dense_encoder, memory_bytes=int(config.memory_gib * GIB)
    )
    served = ServedIndexes(indexes, asked)
    server.serve(
        served,
        config.server,
        host=config.host,
        port=config.port,
        token=token,
        ready=lambda address, _: None if quiet else click.echo(f"Page: {address}\nStop: Ctrl-C"),
    )
