"""``trackstar ask``: one question, answered while one looks, without Prefect and without a trace on disk."""

from typing import Any

import trackstar
from trackstar.flows.config import AskCommandConfig

GIB = 1 << 30


def answered(config: AskCommandConfig, prompt: str, completion: str | None, *, quiet: bool) -> Any:
    """The answer to one question."""
    config.check()
    if quiet:
        return _ask(config, prompt, completion)
    from trackstar.tasks.runtime.terminal_line import showing

    with showing("ask"):
        return _ask(config, prompt, completion)


def _ask(config: AskCommandConfig, prompt: str, completion: str | None) -> Any:
    index = trackstar.open(
        config.index,
        damping=config.damping,
        dense_encoder=config.dense_encoder,
        memory_bytes=int(config.memory_gib * GIB),
        prepare=config.prepare,
    )
    return index.ask(
        prompt,
        completion,
        contrast=config.contrast,
        methods=config.methods,
        top_k=config.top_k,
        background=config.background,
        mixing_weight=config.mixing_weight,
    )
