"""``trackstar serve``: finished indexes on a page, until a signal comes."""

import json
import logging
import os
from collections.abc import Sequence

import click

from trackstar.flows.config import ServeCommandConfig
from trackstar.tasks.asking.settings import AskConfig
from trackstar.tasks.serving.gate import require_token

GIB = 1 << 30


def serve(config: ServeCommandConfig, indexes: Sequence[str], *, quiet: bool, as_json: bool) -> None:
    """Open the indexes and answer."""
    config.check()
    token = config.token or os.environ.get("TRACKSTAR_TOKEN")
    require_token(config.host, token)
    from trackstar.tasks.serving import server
    from trackstar.tasks.serving.served_indexes import ServedIndexes

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    asked = AskConfig(
        damping=config.damping, dense_encoder=config.dense_encoder, memory_bytes=int(config.memory_gib * GIB)
    )

    def tell(address: str, _: object) -> None:
        if as_json:
            click.echo(json.dumps({"page": address, "indexes": [name for name, _ in served]}))
        elif not quiet:
            click.echo(f"Page: {address}\nStop: Ctrl-C")

    served = ServedIndexes(indexes, asked)
    server.serve(
        served,
        config.server,
        host=config.host,
        port=config.port,
        token=token,
        ready=tell,
    )
