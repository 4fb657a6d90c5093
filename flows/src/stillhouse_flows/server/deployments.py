"""The deployments of prefect.yaml: read, checked before anything is registered, and handed to
Prefect.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from stillhouse.errors import BadSetting, MissingData, StillhouseError, UnknownName
from stillhouse.settings import find_settings, make_recipe, make_settings
from stillhouse_flows.processes.local import QUIET

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.deployments.runner import RunnerDeployment

FILE = "prefect.yaml"
POOL = "local"
KEYS = {
    "name",
    "entrypoint",
    "description",
    "tags",
    "parameters",
    "schedules",
    "concurrency_limit",
    "work_pool",
}
KINDS = ("cron", "interval", "rrule")


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One entry of prefect.yaml."""

    name: str
    entrypoint: str  # "stillhouse_flows.flow.distill": found wherever a worker was started
    description: str = ""
    tags: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])  # Any: JSON values
    schedules: tuple[Mapping[str, Any], ...] = ()  # Any: YAML
    limit: int | None = None
    strategy: str = "ENQUEUE"
    pool: str = POOL
    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])  # Any: YAML


def read(root: Path, names: Sequence[str] = ()) -> list[Deployment]:
    """The deployments of `root`/prefect.yaml, or those of them called `names`; each checked.

    Raises MissingData, BadSetting or UnknownName.
    """
    file = root / FILE
    found = {each.name: each for each in _parsed(file)}
    for name in names:
        if name not in found:
            raise UnknownName("deployment", name, found, where=str(file))
    chosen = [each for each in found.values() if not names or each.name in names]
    for each in chosen:
        try:
            _check(root, each)
        except StillhouseError as error:
            raise BadSetting(f"{file}: deployment '{each.name}': {error}") from error
    return chosen


def _parsed(file: Path) -> list[Deployment]:
    if not file.is_file():
        raise MissingData(f"{file} not found; it lists the deployments (docs/scheduling.md)")
    try:
        tree = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise BadSetting(f"{file}: not YAML: {' '.join(str(error).split())}") from error
    entries = tree.get("deployments") if isinstance(tree, dict) else None
    if not isinstance(entries, list) or not entries:
        raise BadSetting(f"{file}: expected a list of deployments under 'deployments:'")
    made = [_deployment(file, i, entry) for i, entry in enumerate(entries)]
    names = [each.name for each in made]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadSetting(f"{file}: two deployments are called '{twice[0]}'; rename one")
    return made


def _deployment(file: Path, index: int, entry: Any) -> Deployment:  # Any: YAML
    where = f"{file}: deployment {index + 1}"
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise BadSetting(f"{where}: expected a mapping with a 'name'")
    where = f"{file}: deployment '{entry['name']}'"
    for key in entry:
        if key not in KEYS:
            raise UnknownName("key", str(key), KEYS, where=where)
    if not isinstance(entry.get("entrypoint"), str):
        raise BadSetting(
            f"{where}: no 'entrypoint'; give the flow as module.function, "
            "for example stillhouse_flows.flow.distill"
        )
    pool = _typed(where, entry, "work_pool", dict, {})
    limit, strategy = _limit(where, entry.get("concurrency_limit"))
    return Deployment(
        name=entry["name"],
        entrypoint=entry["entrypoint"],
        description=_typed(where, entry, "description", str, ""),
        tags=tuple(_typed(where, entry, "tags", list, [])),
        parameters=_typed(where, entry, "parameters", dict, {}),
        schedules=tuple(_typed(where, entry, "schedules", list, [])),
        limit=limit,
        strategy=strategy,
        pool=_typed(where, pool, "name", str, POOL),
        variables=_typed(where, pool, "job_variables", dict, {}),
    )


# Any: YAML
def _typed(where: str, entry: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = entry.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        words = {dict: "a mapping", list: "a list", str: "text"}
        raise BadSetting(f"{where}: '{key}' must be {words[kind]} (got {value!r})")
    return value


def _limit(where: str, value: Any) -> tuple[int | None, str]:  # Any: YAML
    limit, strategy = value, "ENQUEUE"
    if isinstance(value, dict):
        limit, strategy = value.get("limit"), value.get("collision_strategy", strategy)
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise BadSetting(f"{where}: 'concurrency_limit' must be a number >= 1 (got {limit!r})")
    if strategy not in ("ENQUEUE", "CANCEL_NEW"):
        raise UnknownName("collision_strategy", strategy, ("ENQUEUE", "CANCEL_NEW"), where=where)
    return limit, strategy


def _check(root: Path, each: Deployment) -> None:
    """What would fail in the night: the flow, its parameters, the recipe, the schedules."""
    flow = load(each.entrypoint)
    names = flow.parameters.properties
    for key in each.parameters:
        if key not in names:
            raise UnknownName("parameter", key, names)
    _check_types(flow, each.parameters)
    if isinstance(recipe := each.parameters.get("recipe"), str):
        _check_recipe(root, recipe, each.parameters)
    for schedule in each.schedules:
        _schedule(schedule)


def _check_types(flow: "Flow[..., Any]", parameters: Mapping[str, Any]) -> None:
    from prefect.exceptions import ParameterTypeError

    if missing := [name for name in flow.parameters.required if name not in parameters]:
        raise BadSetting(f"parameter '{missing[0]}' is missing")
    try:
        flow.validate_parameters(dict(parameters))
    except ParameterTypeError as error:
        raise BadSetting(f"parameters: {' '.join(str(error).split())}") from error


def _check_recipe(root: Path, recipe: str, parameters: Mapping[str, Any]) -> None:
    if "@" in recipe:
        find_settings(recipe, root, root / "runs")
        return
    scale, changed = parameters.get("scale") or "tiny", parameters.get("settings") or {}
    make_recipe(recipe, make_settings(recipe, scale, changed))


def load(entrypoint: str) -> "Flow[..., Any]":
    """The flow at module.function, or at file.py:function as Prefect's own deployments have it."""
    from prefect import Flow
    from prefect.flows import load_flow_from_entrypoint

    if ":" in entrypoint:
        try:
            return load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
        except Exception as error:
            raise BadSetting(f"entrypoint '{entrypoint}': {_line(error)}") from error
    module, _, name = entrypoint.rpartition(".")
    try:
        found: Any = getattr(importlib.import_module(module), name, None)  # Any: user's code
    except (ImportError, ValueError) as error:
        raise BadSetting(f"entrypoint '{entrypoint}': {_line(error)}") from error
    if not isinstance(found, Flow):
        raise BadSetting(f"entrypoint '{entrypoint}': no Prefect flow '{name}' in {module}")
    return found


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _schedule(entry: Any) -> "DeploymentScheduleCreate":  # Any: YAML
    from prefect.client.schemas.actions import DeploymentScheduleCreate

    kinds = [kind for kind in KINDS if isinstance(entry, dict) and entry.get(kind)]
    if len(kinds) != 1:
        raise BadSetting(f"schedule {entry!r}: give one of cron, interval (seconds), rrule")
    values = dict(entry)
    outer = {key: values.pop(key) for key in ("active", "slug", "parameters") if key in values}
    try:
        return DeploymentScheduleCreate(schedule=_timetable(kinds[0], values), **outer)
    except (ValueError, TypeError) as error:
        raise BadSetting(f"schedule {entry!r}: {_line(error)}") from error


def _timetable(kind: str, values: Mapping[str, Any]) -> Any:  # Any: one of Prefect's schedules
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule

    made: Any = {"cron": CronSchedule, "interval": IntervalSchedule, "rrule": RRuleSchedule}[kind]
    for key in values:
        if key not in made.model_fields:
            raise UnknownName("key", key, made.model_fields)
    return made(**values)


def prepared(each: Deployment, *, variables: Mapping[str, Any]) -> "RunnerDeployment":  # Any: JSON
    """The deployment as Prefect wants it."""
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.deployments.runner import RunnerDeployment
    from prefect.types.entrypoint import EntrypointType

    limit = each.limit and ConcurrencyLimitConfig(
        limit=each.limit, collision_strategy=ConcurrencyLimitStrategy(each.strategy)
    )
    made = RunnerDeployment.from_flow(
        load(each.entrypoint),
        name=each.name,
        schedules=[_schedule(schedule) for schedule in each.schedules],
        concurrency_limit=limit or None,
        parameters=dict(each.parameters),
        description=each.description or None,
        tags=list(each.tags),
        paused=False,  # else `serve`, which pauses at its end, would leave it so for ever
        job_variables=dict(variables),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    if ":" in each.entrypoint:
        made.entrypoint = each.entrypoint
    return made


def register(root: Path, chosen: Sequence[Deployment]) -> list[str]:
    """Register deployments with the server, on process work pools that are made where missing.

    Returns their full names. A run of one works on `root`, wherever its worker was started.
    """
    made: list[str] = []
    for each in chosen:
        ensure_pool(each.pool)
        env = {**QUIET, "STILLHOUSE_ROOT": str(root), **each.variables.get("env", {})}
        whole = prepared(each, variables={**each.variables, "env": env})
        whole.apply(work_pool_name=each.pool)
        made.append(whole.full_name)
    return made


def register_stages(pool: str) -> str:
    """Offer single stages in a work pool: each worker of it runs them on its own clone."""
    from prefect.deployments.runner import RunnerDeployment
    from prefect.types.entrypoint import EntrypointType

    from stillhouse_flows.runs.remote import stage

    ensure_pool(pool)
    made = RunnerDeployment.from_flow(
        stage,
        name=pool,
        description="Single stages of runs that another machine started",
        paused=False,
        job_variables={"env": dict(QUIET)},
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    made.apply(work_pool_name=pool)
    return made.full_name


def ensure_pool(name: str) -> None:
    """Have a process work pool of this name."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            kind = client.read_work_pool(name).type
        except ObjectNotFound:
            try:
                kind = client.create_work_pool(WorkPoolCreate(name=name, type="process")).type
            except ObjectAlreadyExists:  # another worker was faster
                kind = client.read_work_pool(name).type
    if kind != "process":
        raise BadSetting(f"work pool '{name}' is of type {kind}; give one of type process")
