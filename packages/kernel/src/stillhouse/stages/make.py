"""Make: data (and roles) in, data out: read, label, select, draft, split, fuse."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from stillhouse.artifact import Artifact
from stillhouse.data.data import Columns
from stillhouse.data.notes import noted
from stillhouse.data.shards import save_data
from stillhouse.errors import BadRecipe
from stillhouse.recipe import NOTE, BaseStage, Context, Event, Resource, Result, resource_of
from stillhouse.work import Work


@runtime_checkable
class Maker(Protocol):
    """Opened inputs by port to columns (or a stream of them) by port; a frozen dataclass or
    module-level function.
    """

    def __call__(
        self, inputs: Mapping[str, Any], *, work: Work
    ) -> Mapping[str, Columns | Iterator[Columns]]: ...  # Any: what each input's opener returns


@dataclass(frozen=True, kw_only=True)
class Make(BaseStage):
    """Runs `make` and stores each of its `ports` as a data artifact."""

    name: str
    make: Maker
    inputs: Mapping[str, str]
    ports: tuple[str, ...]
    seed: int = 0

    @property
    def resource(self) -> Resource:
        return resource_of((self.make,))

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.ports

    def run(self, inputs: Mapping[str, Artifact], ctx: Context) -> Result:
        notes: list[str] = []

        def record_line(text: str) -> None:
            notes.append(text)
            ctx.observe(Event(stage=ctx.stage, text=f"{NOTE}{text}"))

        with noted(record_line):
            outputs = self._made(inputs, ctx)
        return Result(outputs=outputs, measured={"notes": notes} if notes else {})

    def _made(self, inputs: Mapping[str, Artifact], ctx: Context) -> Mapping[str, Artifact]:
        opened = {port: artifact.open() for port, artifact in inputs.items()}
        made = self.make(opened, work=Work.of(ctx, self.seed))
        if set(made) != set(self.ports):
            raise BadRecipe(
                f"stage '{self.name}': make returned {sorted(made)}, "
                f"its ports are {sorted(self.ports)}"
            )
        return {port: save_data(ctx.out / port, made[port]) for port in self.ports}
