"""Saying that a checkpoint has been saved, so that Prefect indexes it: an event, and the second moments beside it.

    Trainer(..., callbacks=[AnnounceCheckpoints()])     transformers
    announce_checkpoint("runs/7b/step-1000")            any other loop, after its own save

Training comes first: whatever goes wrong here is a warning in the log, after bounded time.
"""

import base64
import logging
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import httpx
from prefect.settings import get_current_settings
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from upath import UPath

from trackstar.storage.errors import InputError
from trackstar.storage.layout import SECOND_MOMENT, location
from trackstar.tasks.models.optimizer_formats import match_parameters, read_state
from trackstar.tasks.models.optimizer_state import write_second_moments
from trackstar.tasks.numerics.architecture import find_weight_matrices
from trackstar.tasks.numerics.second_moment import SecondMoment
from trackstar.tasks.reindex.checkpoints import step_of

EVENT = "checkpoint.saved"
RESOURCE_PREFIX = "trackstar.checkpoint."
TIMEOUT_S = 5.0
# Not below `tasks`: Prefect sends that logger's records to a flow run, and training is none.
logger = logging.getLogger("trackstar.announce")


def announce_checkpoint(path: UPath | str) -> bool:
    """Emit ``checkpoint.saved`` for a checkpoint directory; whether the server took it."""
    settings = get_current_settings().api
    if not settings.url:
        logger.warning("%s is not announced: PREFECT_API_URL is not set; `trackstar reindex` finds it anyway", path)
        return False
    try:
        response = httpx.post(
            f"{settings.url}/events",
            json=[_event(location(path))],
            headers=_authorization(settings.key, settings.auth_string),
            timeout=TIMEOUT_S,
        )
        response.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        logger.warning("%s is not announced: %s; `trackstar reindex` finds it anyway", path, error or type(error))
        return False
    return True


class AnnounceCheckpoints(TrainerCallback):
    """After each save of a Trainer: the second moments in the project's own format, then the event."""

    def __init__(self, *, with_second_moments: bool = True) -> None:
        self.with_second_moments = with_second_moments

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        path = location(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.with_second_moments:
            save_second_moments(path, model=kwargs["model"], optimizer=kwargs["optimizer"])
        announce_checkpoint(path)


def save_second_moments(path: UPath, *, model: nn.Module, optimizer: Optimizer) -> bool:
    """Write the optimizer's V beside a checkpoint; it appears whole or not at all. Whether it was written."""
    draft = path / f".{SECOND_MOMENT}.partial-{uuid.uuid4().hex[:8]}"
    try:
        second_moments = second_moments_of(model, optimizer)
        write_second_moments(draft, second_moments, matrices=find_weight_matrices(model))
        draft.rename(path / SECOND_MOMENT)
    except (OSError, InputError, ValueError, RuntimeError) as error:  # a full disk, a sharded or unknown optimizer
        logger.warning("%s keeps no second moments: %s", path, error)
        draft.unlink(missing_ok=True)
        return False
    return True


def second_moments_of(model: nn.Module, optimizer: Optimizer) -> Mapping[str, SecondMoment]:
    """V of every matrix by parameter name, oriented (out, in).

    Raises:
        InputError: The optimizer is another model's, or one whose state is not known.
    """
    states = match_parameters(optimizer.state_dict(), model)
    return {matrix.name: read_state(states.get(matrix.parameter, {}), matrix) for matrix in find_weight_matrices(model)}


def _event(path: UPath) -> dict[str, Any]:
    """Resource ids hold no slash: the checkpoint is named by its directory and its parent's."""
    return {
        "event": EVENT,
        "occurred": datetime.now(UTC).isoformat(),
        "id": str(uuid.uuid4()),
        "resource": {
            "prefect.resource.id": f"{RESOURCE_PREFIX}{path.parent.name}.{path.name}",
            "prefect.resource.name": path.name,
        },
        "payload": {"path": str(path), "checkpoints": str(path.parent), "step": step_of(path)},
    }


def _authorization(key: Any, auth_string: Any) -> dict[str, str]:
    if key:
        return {"Authorization": f"Bearer {key.get_secret_value()}"}
    if auth_string:
        return {"Authorization": f"Basic {base64.b64encode(auth_string.get_secret_value().encode()).decode()}"}
    return {}
