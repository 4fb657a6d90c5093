"""Scheduled runs that waited while another went do not pile up.

Prefect either queues every run that comes due meanwhile, or drops it at once. Here one waits: when
it starts, it drops the others that came due, for it finds everything that they would.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import FlowRun, State


# Any: Prefect's hooks
def drop_overdue(flow: "Flow[..., Any]", flow_run: "FlowRun", state: "State[Any]") -> None:  # noqa: ARG001
    """Cancel what the same schedule would start next although it is due already."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterDeploymentId,
        FlowRunFilterExpectedStartTime,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.states import Cancelled

    if flow_run.deployment_id is None or not flow_run.auto_scheduled:
        return
    now: Any = datetime.now(UTC)  # Any: Prefect's own kind of datetime
    waiting = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[flow_run.deployment_id]),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=now),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
    )
    with get_client(sync_client=True) as client:
        for other in client.read_flow_runs(flow_run_filter=waiting):
            if (
                other.auto_scheduled
                and other.parameters == flow_run.parameters
                and other.id != flow_run.id
            ):
                reason = (
                    f"Came due while another run went; {flow_run.name} started later and covers it"
                )
                client.set_flow_run_state(other.id, Cancelled(message=reason))
