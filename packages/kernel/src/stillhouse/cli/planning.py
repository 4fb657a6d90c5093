"""What a run would do and how long it may take, by what its stages took here before."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stillhouse.cli.target import Target

UP_TO_DATE, WOULD_RUN = "up to date", "would run"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A stage of a run that has not begun; `seconds` it took here before, None where it is new."""

    stage: str
    state: str  # UP_TO_DATE or WOULD_RUN
    after: tuple[str, ...]  # stages it reads that would run
    seconds: float | None


def planned(target: "Target") -> list[Planned]:
    """The stages in order. Raises as a run does for inputs that cannot be read."""
    from stillhouse.records import StageRecord
    from stillhouse.runs import already

    runs, found, before = target.runs(), dict[str, Planned](), dict[str, StageRecord]()
    for stage in target.recipe.stages:
        reads = dict.fromkeys(ref.partition(".")[0] for ref in stage.inputs.values())
        after = tuple(name for name in reads if name in found and found[name].state == WOULD_RUN)
        record = None if after else already(target.recipe, stage, runs, before)
        if record is not None:
            before[stage.name] = record
        found[stage.name] = Planned(
            stage=stage.name,
            state=WOULD_RUN if record is None else UP_TO_DATE,
            after=after,
            seconds=seconds_of(target, stage.name),
        )
    return list(found.values())


def seconds_of(target: "Target", stage: str) -> float | None:
    """What a stage took here: in this variant, else in the newest of the same scale."""
    own = target.seconds(stage)
    if own is not None:
        return own
    from stillhouse.cli.target import recorded_seconds

    folder = target.runs().folder
    files = [
        file
        for file in folder.parent.glob(f"{target.settings.scale}*/{stage}.run.json")
        if file.parent.name.partition("-")[0] == target.settings.scale
    ]
    newest = max(files, key=_written, default=None)
    return None if newest is None else recorded_seconds(newest)


def _written(file: Path) -> float:
    return file.stat().st_mtime


def expectation(target: "Target") -> str:
    """ ", about 12 min by earlier runs", of all stages that have not run; "" where one is new."""
    from stillhouse.cli.tables import duration

    folder = target.runs().folder
    waiting = [s.name for s in target.recipe.stages if not (folder / s.name).is_dir()]
    known = [seconds_of(target, name) for name in waiting]
    times = [seconds for seconds in known if seconds is not None]
    if not waiting or len(times) < len(waiting):
        return ""
    return f", about {duration(sum(times))} by earlier runs here"


def show_plan(target: "Target", *, json: bool = False) -> None:
    """Print the plan of a run as a table, or as JSON."""
    from stillhouse.cli.tables import duration, print_json, print_table

    stages = planned(target)
    if json:
        print_json(
            {"recipe": target.name, "variant": target.variant, "stages": [vars(s) for s in stages]}
        )
        return
    rows = [
        (
            each.stage,
            each.state if not each.after else f"{each.state}, after {', '.join(each.after)}",
            "" if each.seconds is None else duration(each.seconds),
        )
        for each in stages
    ]
    print_table(target.ref, ("stage", "state", "took here before"), rows)
    waiting = [each for each in stages if each.state == WOULD_RUN]
    known = [each.seconds for each in waiting if each.seconds is not None]
    text = f"{len(waiting)} of {len(stages)} stages would run"
    if any(each.after for each in waiting):
        text += " (fewer where what they read comes out the same)"
    if known:
        text += f"; {len(known)} of them took {duration(sum(known))} here before"
    print(f"{text}.")
