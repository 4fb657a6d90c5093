"""Convert: roles (and data) in, one model out: load, quantize, extract, merge, export."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from stillhouse.artifact import OPEN_MODEL, SPEC, WEIGHTS, Artifact
from stillhouse.digest import path_digest
from stillhouse.errors import BadRecipe
from stillhouse.recipe import BaseStage, Context, Resource, Result, resource_of
from stillhouse.work import Work


@runtime_checkable
class Converter(Protocol):
    """Fills the folder `out` with a model that `load_model` opens; a frozen dataclass or
    module-level function.
    """

    def __call__(
        self, inputs: Mapping[str, Any], out: Path, *, work: Work
    ) -> None: ...  # Any: what each input's opener returns


@dataclass(frozen=True, kw_only=True)
class Convert(BaseStage):
    """Runs `convert`; its folder is the output "model" (model.json, model.safetensors and whatever
    it adds).
    """

    name: str
    convert: Converter
    inputs: Mapping[str, str]
    seed: int = 0

    @property
    def resource(self) -> Resource:
        return resource_of((self.convert,))

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("model",)

    def run(self, inputs: Mapping[str, Artifact], ctx: Context) -> Result:
        out = ctx.out / "model"
        opened = {port: artifact.open() for port, artifact in inputs.items()}
        self.convert(opened, out, work=Work.of(ctx, self.seed))
        for name in (SPEC, WEIGHTS):
            if not (out / name).is_file():
                raise BadRecipe(f"stage '{self.name}': convert left no {name} in its folder")
        model = Artifact(kind="model", path=out, digest=path_digest(out), opener=OPEN_MODEL)
        return Result(outputs={"model": model})
