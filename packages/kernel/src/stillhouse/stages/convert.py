"""Convert: roles (and data) in, one model out: load, quantize, extract, merge, export."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Generator

from stillhouse.artifact import OPEN_MODEL, SPEC, WEIGHTS, Artifact
from stillhouse.digest import path_digest
from stillhouse.errors import BadRecipe
from stillhouse.recipe import Context, Event
from stillhouse.training import mix


@runtime_checkable
class Converter(Protocol):
    """Fills the folder `out` with a model that `load_model` opens; a frozen dataclass or
    module-level function.
    """

    def __call__(
        self, inputs: Mapping[str, Any], out: Path, *, rng: Generator
    ) -> None: ...  # Any: what each input's opener returns


@runtime_checkable
class LongConverter(Protocol):
    """A converter that takes long: as it goes it tells `tell` how many of how many parts are done,
    and what they are called.
    """

    def run_telling(
        self,
        inputs: Mapping[str, Any],  # Any: as of `Converter`
        out: Path,
        *,
        rng: Generator,
        tell: Callable[[int, int, str], None],
    ) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Runs `convert`; its folder is the output "model" (model.json, model.safetensors and whatever
    it adds).
    """

    name: str
    convert: Converter
    inputs: Mapping[str, str]
    seed: int = 0

    @property
    def distributed(self) -> bool:
        return False

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("model",)

    def run(self, inputs: Mapping[str, Artifact], ctx: Context) -> Mapping[str, Artifact]:
        out = ctx.out / "model"
        rng = Generator().manual_seed(mix(self.seed))
        opened = {port: artifact.open() for port, artifact in inputs.items()}

        def tell(done: int, total: int, text: str) -> None:
            ctx.observe(Event(stage=ctx.stage, text=text, done=done, total=total))

        if isinstance(self.convert, LongConverter):
            self.convert.run_telling(opened, out, rng=rng, tell=tell)
        else:
            self.convert(opened, out, rng=rng)
        for name in (SPEC, WEIGHTS):
            if not (out / name).is_file():
                raise BadRecipe(f"stage '{self.name}': convert left no {name} in its folder")
        return {
            "model": Artifact(kind="model", path=out, digest=path_digest(out), opener=OPEN_MODEL)
        }
