import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler

from stillhouse.artifact import load_model
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_diffusion.denoisers import Edm, Vp
from stillhouse_diffusion.folders import LoadDiffusers

LOAD = LoadDiffusers(shape=(1, 8, 8), classes=4, widths=(8, 16))


def unet(**kwargs: Any) -> Any:
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16),
        "layers_per_block": 1, "norm_num_groups": 2, "num_class_embeds": 4,
        "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2,
    }  # fmt: skip
    return UNet2DModel(**{**given, **kwargs}).eval()


def inputs() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(3, 1, 8, 8, generator=rng)
    return {"images": images, "sigma": torch.tensor([0.1, 1, 5]), "labels": torch.tensor([0, 1, 3])}


def loaded(folder: Path, out: Path, load: LoadDiffusers = LOAD) -> Any:
    load({"folder": folder}, out, work=Work())
    return load_model(out).module


def test_a_models_own_folder_is_under_edms_preconditioning(tmp_path: Path) -> None:
    network = unet()
    network.save_pretrained(tmp_path / "unet")
    found = loaded(tmp_path / "unet", tmp_path / "out")
    assert isinstance(found, Edm)
    given = inputs()
    s = given["sigma"][:, None, None, None]
    scale = (s**2 + 0.25).sqrt()
    with torch.no_grad():
        raw = network(
            given["images"] / scale, 250 * given["sigma"].log(), class_labels=given["labels"]
        ).sample
        expected = 0.25 / scale**2 * given["images"] + s * 0.5 / scale * raw
        torch.testing.assert_close(found(given)["denoised"], expected)


def test_a_pipeline_that_predicts_noise_becomes_a_denoiser(tmp_path: Path) -> None:
    network = unet(num_class_embeds=None)
    cast("Any", DDPMPipeline)(unet=network, scheduler=cast("Any", DDPMScheduler)()).save_pretrained(
        tmp_path / "ddpm"
    )
    found = loaded(tmp_path / "ddpm", tmp_path / "out")
    assert isinstance(found, Vp)
    assert len(found.steps) == 1000
    assert bool(torch.isfinite(found(inputs())["denoised"]).all())


def test_a_pipeline_with_an_edm_scheduler_is_under_edms_preconditioning(tmp_path: Path) -> None:
    unet().save_pretrained(tmp_path / "edm" / "unet")
    cast("Any", EDMEulerScheduler)().save_pretrained(tmp_path / "edm" / "scheduler")
    assert isinstance(loaded(tmp_path / "edm", tmp_path / "out"), Edm)


def edited(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, "AutoencoderKL; expected a UNet2DModel of diffusers"),
        ({"in_channels": 3}, "in_channels is 3, the settings say 1"),
        ({"sample_size": 32}, "sample_size is 32, the settings say 8"),
        ({"block_out_channels": [8, 8]}, "block_out_channels is .8, 8., the settings say .8, 16."),
        ({"num_class_embeds": 10}, "num_class_embeds is 10, the settings say 4"),
    ],
)
def test_models_that_do_not_fit_are_one_line(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    unet().save_pretrained(tmp_path / "unet")
    edited(tmp_path / "unet", **changes)
    with pytest.raises(BadData, match=message) as error:
        loaded(tmp_path / "unet", tmp_path / "out")
    assert "\n" not in str(error.value)


def test_folders_that_hold_no_diffusers_model_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"no config\.json, so no folder of a diffusers model"):
        loaded(tmp_path, tmp_path / "out")
    file = tmp_path / "weights.pt"
    file.write_bytes(b"x")
    with pytest.raises(BadData, match="no folder of a diffusers model"):
        loaded(file, tmp_path / "out")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadData, match="no JSON"):
        loaded(tmp_path, tmp_path / "out")
    unet().save_pretrained(tmp_path / "unet")
    next((tmp_path / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(BadData, match="its weights cannot be read"):
        loaded(tmp_path / "unet", tmp_path / "out")


def test_a_scheduler_that_predicts_another_thing_is_refused(tmp_path: Path) -> None:
    unet().save_pretrained(tmp_path / "v" / "unet")
    cast("Any", DDPMScheduler)(prediction_type="v_prediction").save_pretrained(
        tmp_path / "v" / "scheduler"
    )
    with pytest.raises(BadData, match="DDPMScheduler, v_prediction; expected an EDM scheduler"):
        loaded(tmp_path / "v", tmp_path / "out")
