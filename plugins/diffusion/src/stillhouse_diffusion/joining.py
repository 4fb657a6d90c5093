"""Models made of trained denoisers: the teacher as a sampler, K students behind a router."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from stillhouse.artifact import Built, Model, recorded, save_model
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_diffusion.making import Shape
from stillhouse_diffusion.phases import Noise
from stillhouse_diffusion.sampling import (
    HeunSampler,
    OneStepStudent,
    RoutedStudents,
    heun_sampler,
    routed_students,
)


def in_fp32(spec: Model) -> Model:
    """The denoiser without its training's autocast: samples are those of the exported file."""
    if "bf16" not in spec.kwargs:
        return spec
    return Model(build=spec.build, kwargs={**spec.kwargs, "bf16": False})


def _placed(built: Built) -> tuple[Model, Any]:  # Any: the module
    spec = in_fp32(built.spec)
    module = spec.new()
    module.load_state_dict(built.module.state_dict())
    return spec, module.eval()


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A `convert`: the denoiser at the port "teacher" as a `HeunSampler` of images of `shape`."""

    noise: Noise
    steps: int
    shape: Shape

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        spec, denoiser = _placed(inputs["teacher"])
        noise = self.noise
        numbers: dict[str, Any] = {  # Any: JSON values
            "steps": self.steps,
            "low": noise.low,
            "high": noise.high,
            "rho": noise.rho,
        }
        kwargs = {**numbers, "denoiser": recorded(spec), "shape": list(self.shape)}
        module = HeunSampler(denoiser, **numbers)
        save_model(out, Built(spec=Model(build=heun_sampler, kwargs=kwargs), module=module))


@dataclass(frozen=True, kw_only=True)
class JoinStudents:
    """A `convert`: the denoisers of the ports "student0", "student1", ... as one-step students
    behind a router, the column "owner" of the port "owner". `training_steps` are of all of them.
    """

    noise: Noise
    shape: Shape
    training_steps: int

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        owner = inputs["owner"].columns["owner"]
        assert isinstance(owner, Tensor)
        ports = sorted((p for p in inputs if p != "owner"), key=lambda p: int(p[len("student") :]))
        if set(owner.tolist()) != set(range(len(ports))):
            raise BadData(f"the router names {int(owner.max()) + 1} students, {len(ports)} came")
        placed = [_placed(inputs[port]) for port in ports]
        kwargs = {
            "students": [recorded(spec) for spec, _ in placed],
            "sigma": self.noise.high,
            "owner": owner.tolist(),
            "training_steps": self.training_steps,
            "shape": list(self.shape),
        }
        students = [OneStepStudent(module, sigma=self.noise.high) for _, module in placed]
        module = RoutedStudents(students, owner=owner.tolist(), training_steps=self.training_steps)
        save_model(out, Built(spec=Model(build=routed_students, kwargs=kwargs), module=module))
