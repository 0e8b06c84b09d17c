"""What the server does about runs nobody watches: one that has gone silent has crashed, and one that crashed goes on.

    kill -9 ─▶ no heartbeat ─▶ Crashed ─▶ AwaitingRetry ─▶ any worker of the pool ─▶ finished shards are Cached

``prefect deploy --all`` installs both: prefect.yaml names ``install`` as a step.
"""

from datetime import timedelta

from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType

TAG = "trackstar"  # every deployment in prefect.yaml carries it; other projects' runs are left alone
SILENCE_S = 90  # three heartbeats: prefect.yaml has its workers' runs send one every 30 s
ATTEMPTS = 4  # a run that takes its machine down with it must not do so for ever

HEARTBEAT = "prefect.flow-run.heartbeat"
CRASHED = "prefect.flow-run.Crashed"
ENDED = {CRASHED, *(f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "AwaitingRetry"))}


def silent_runs_have_crashed() -> AutomationCore:
    """A run that has sent a heartbeat sends another one, or ends, within ``SILENCE_S``; else its process is gone."""
    trigger = EventTrigger(
        after={HEARTBEAT},
        expect={HEARTBEAT, *ENDED},
        match_related=_of_this_project(),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=SILENCE_S),
    )
    crash = ChangeFlowRunState(
        state=StateType.CRASHED, message=f"no heartbeat for {SILENCE_S} s: its process or its machine is gone"
    )
    return AutomationCore(name="trackstar: silent runs have crashed", trigger=trigger, actions=[crash])


def crashed_runs_go_on() -> AutomationCore:
    """A crashed run waits for a worker again, unless it has crashed ``ATTEMPTS`` times."""
    trigger = EventTrigger(
        expect={CRASHED},
        match={
            "prefect.resource.id": "prefect.flow-run.*",
            "prefect.run-count": [str(count) for count in range(ATTEMPTS)],
        },
        match_related=_of_this_project(),
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
    )
    retry = ChangeFlowRunState(
        state=StateType.SCHEDULED, name="AwaitingRetry", message="its process was lost; finished shards are kept"
    )
    return AutomationCore(name="trackstar: crashed runs go on", trigger=trigger, actions=[retry])


def install() -> None:
    """Create the automations on the server, or bring the ones of these names up to date."""
    with get_client(sync_client=True) as client:
        for automation in (silent_runs_have_crashed(), crashed_runs_go_on()):
            for outdated in client.read_automations_by_name(automation.name):
                client.delete_automation(outdated.id)
            client.create_automation(automation)


def _of_this_project() -> dict[str, str]:
    return {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
