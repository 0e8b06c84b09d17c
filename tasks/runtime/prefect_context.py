"""Whether this happens in a Prefect flow: outside of one, stages run where they are called and nothing is published."""

import sys


def in_flow() -> bool:
    """Whether a flow runs in this thread; Prefect is not imported to find that out."""
    if "prefect" not in sys.modules:
        return False
    from prefect.context import FlowRunContext, TaskRunContext

    return FlowRunContext.get() is not None or TaskRunContext.get() is not None
