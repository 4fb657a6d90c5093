"""Denoisers of others: a folder of diffusers with a UNet2DModel."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_diffusion.denoisers import Edm, Vp, diffusers_unet
from stillhouse_diffusion.making import Shape

CONFIG, INDEX, SCHEDULER = "config.json", "model_index.json", "scheduler_config.json"
# schedulers of models that are preconditioned as EDM's; others know alphas and predict the noise
EDM_SCHEDULERS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")


@dataclass(frozen=True, kw_only=True)
class LoadDiffusers:
    """A `convert`: the UNet2DModel of the port "folder" (a pipeline with unet/ and scheduler/, or a
    model's own folder) as a denoiser.

    With an EDM scheduler, or none, it is under EDM's preconditioning at `sigma_data`, and given
    ln(sigma) / 4 times 1000 as its time; with one that has alphas (DDPM, DDIM) it predicts noise.
    Raises BadData for a folder that is none of these, or whose network has another `shape`, number
    of `classes` or `widths` than the settings say.
    """

    shape: Shape
    classes: int
    widths: tuple[int, ...]
    sigma_data: float = 0.5
    bf16: bool = False

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        given: Any = inputs["folder"]  # Any: a Path, or what another kind of file opens as
        if isinstance(given, Built):
            self._same(given, out)
            return
        if not isinstance(given, Path) or not given.is_dir():
            raise BadData(f"{given}: no folder of a diffusers model; it holds {CONFIG} or {INDEX}")
        unet, config = self._network(given)
        alphas = _alphas(given)
        kwargs = {
            "config": config,
            "sigma_data": self.sigma_data,
            "alphas_cumprod": alphas,
            "bf16": self.bf16,
        }
        spec = Model(build=diffusers_unet, kwargs=kwargs)
        module = spec.new()
        assert isinstance(module, Edm | Vp)
        cast("Any", module.network).unet.load_state_dict(unet.state_dict())
        save_model(out, Built(spec=spec, module=module))

    def _same(self, given: Built, out: Path) -> None:
        """A denoiser that this plugin trained, from a run's folder."""
        if not isinstance(given.module, Edm | Vp):
            kind = type(given.module).__name__
            raise BadData(f"teacher: a {kind}, which is no denoiser of this plugin")
        save_model(out, given)

    def _network(self, folder: Path) -> tuple[nn.Module, dict[str, Any]]:  # Any: JSON values
        place = folder / "unet" if (folder / "unet" / CONFIG).is_file() else folder
        config = _json(place / CONFIG)
        if config.get("_class_name") != "UNet2DModel":
            found = config.get("_class_name", "no _class_name")
            raise BadData(f"{place / CONFIG}: {found}; expected a UNet2DModel of diffusers")
        wanted = {
            "in_channels": self.shape[0],
            "out_channels": self.shape[0],
            "sample_size": self.shape[1],
            "block_out_channels": list(self.widths),
        }
        if config.get("num_class_embeds") is not None:
            wanted["num_class_embeds"] = self.classes
        for name, value in wanted.items():
            if config.get(name) != value:
                raise BadData(
                    f"{place / CONFIG}: {name} is {config.get(name)}, the settings say {value}"
                )
        try:
            unet = cast("Any", UNet2DModel).from_pretrained(str(place), local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise BadData(f"{place}: its weights cannot be read ({reason})") from error
        return unet, {key: value for key, value in config.items() if not key.startswith("_")}


def _alphas(folder: Path) -> list[float]:
    """The cumulated alphas of the folder's scheduler; nothing of an EDM one, or where there is
    none.
    """
    file = folder / "scheduler" / SCHEDULER
    if not file.is_file():
        return []
    config = _json(file)
    name = str(config.get("_class_name", ""))
    if name in EDM_SCHEDULERS:
        return []
    kind: Any = getattr(diffusers, name, None)  # Any: diffusers types none of its schedulers
    if kind is None or config.get("prediction_type", "epsilon") != "epsilon":
        found = f"{name}, {config.get('prediction_type', 'epsilon')}"
        raise BadData(f"{file}: {found}; expected an EDM scheduler, or one that predicts epsilon")
    alphas: Any = getattr(kind.from_config(config), "alphas_cumprod", None)
    if not isinstance(alphas, torch.Tensor):
        raise BadData(f"{file}: {name} has no alphas; expected DDPM, DDIM or EDM schedulers")
    return [float(value) for value in alphas]


def _json(file: Path) -> dict[str, Any]:  # Any: JSON values
    if not file.is_file():
        raise BadData(f"{file.parent}: no {file.name}, so no folder of a diffusers model")
    try:
        found: Any = json.loads(file.read_text())
    except ValueError as error:
        raise BadData(f"{file}: no JSON ({error})") from error
    if not isinstance(found, dict):
        raise BadData(f"{file}: no JSON object")
    return cast("dict[str, Any]", found)
