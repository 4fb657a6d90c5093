"""SAM's parts, whole SAMs by name, checkpoints."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from torch import Generator, Tensor, nn

from stillhouse.artifact import Built, load_model, save_model
from stillhouse.errors import BadData, BadSetting, UnknownName
from stillhouse.work import Work
from stillhouse_sam.models import (
    DecoderRole,
    Encoder,
    Join,
    LoadSam,
    PromptEncoderRole,
    SamNetwork,
    Shape,
    Split,
    encoder_named,
    load_sam,
    named,
    vit_encoder,
)
from stillhouse_sam.models.checkpoints import described

SHAPE = Shape(size=64, grid=8, channels=32, heads=2, mlp=64)
RNG = Generator().manual_seed(0)


def network(name: str = "sam-32x1") -> Built:
    torch.manual_seed(0)
    spec = named(name, shape=SHAPE)
    return Built(spec=spec, module=spec.new().eval())


def whole(built: Built) -> SamNetwork:
    assert isinstance(built.module, SamNetwork)
    return built.module


def batch() -> dict[str, Tensor]:
    rng = Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=rng, dtype=torch.uint8)
    sizes = torch.tensor([[64, 40], [30, 64]])
    points = torch.tensor(
        [
            [[[3.0, 4.0], [30.0, 40.0]], [[9.0, 12.0], [0.0, 0.0]], [[1.0, 2.0], [8.0, 7.0]]],
            [[[0.0, 0.0], [20.0, 20.0]], [[30.0, 2.0], [0.0, 0.0]], [[5.0, 6.0], [50.0, 29.0]]],
        ]
    )
    labels = torch.tensor([[[2, 3], [1, -1], [2, 3]]] * 2)  # a box, a click, a box
    return {"images": images, "sizes": sizes, "point_coords": points, "point_labels": labels}


def test_frames_are_normalised_and_padded_as_sam_does() -> None:
    sam, given = whole(network()).sam, batch()

    class Same(nn.Module):
        img_size = 64

        def forward(self, x: Tensor) -> Tensor:
            return x

    found = Encoder(Same())(given)["embedding"]
    for row, (height, width) in enumerate(given["sizes"].tolist()):
        expected = sam.preprocess(given["images"][row, :, :height, :width].float())
        assert torch.equal(found[row], expected)
    floats = {**given, "images": given["images"].float()}
    assert torch.equal(Encoder(Same())(floats)["embedding"], found)


@pytest.mark.parametrize("boxes", [False, True])
def test_the_decoder_gives_what_sams_own_gives(boxes: bool) -> None:
    sam = whole(network()).sam
    points = torch.tensor([[[10.0, 20.0]], [[40.0, 8.0]], [[33.0, 50.0]]])
    labels = torch.tensor([[1], [0], [-1]])
    prompt = {"points": points, "labels": labels}
    corners = torch.tensor([[1.0, 2, 30, 40], [5, 5, 60, 60], [0, 0, 9, 9]]) if boxes else None
    given = {**prompt, **({"boxes_prompt": corners} if corners is not None else {})}
    found = PromptEncoderRole(sam.prompt_encoder)(given)
    sparse, dense = sam.prompt_encoder((points, labels), corners, None)
    assert torch.equal(found["sparse"], sparse)
    assert torch.equal(found["dense"], dense)
    embedding = torch.randn(1, 32, 8, 8, generator=Generator().manual_seed(2))
    out = DecoderRole(sam.mask_decoder)({"embedding": embedding.repeat(3, 1, 1, 1), **found})
    logits, iou = sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    assert torch.equal(out["logits"], logits)
    assert torch.equal(out["iou"], iou)
    assert out["tokens"].shape == (3, 5 + sparse.shape[1], 32)
    assert torch.equal(sam.mask_decoder.iou_prediction_head(out["tokens"][:, 0])[:, 1:], iou)


def test_a_network_gives_what_its_sam_gives_for_all_boxes_and_clicks() -> None:
    model, given = whole(network()), batch()
    found = model(given)
    assert found["logits"].shape == (2, 3, 3, 32, 32)
    for row, (height, width) in enumerate(given["sizes"].tolist()):
        points = given["point_coords"][row]
        image = given["images"][row, :, :height, :width].float()
        asked = {"image": image, "original_size": (height, width)}
        boxes = {**asked, "boxes": points[[0, 2]].flatten(1)}
        click = {**asked, "point_coords": points[1:2, :1], "point_labels": torch.ones(1, 1)}
        by_box, by_click = model.sam([boxes, click], multimask_output=True)
        for expected, place in ((by_box, [0, 2]), (by_click, [1])):
            torch.testing.assert_close(found["logits"][row, place], expected["low_res_logits"])
            torch.testing.assert_close(found["iou"][row, place], expected["iou_predictions"])


def test_a_box_with_clicks_is_one_prompt() -> None:
    model, given = whole(network()), batch()
    points = torch.tensor([[[[20.0, 20], [25, 30], [3, 4], [40, 50]]]])
    labels = torch.tensor([[[1, 0, 2, 3]]])
    found = model({**given, "images": given["images"][:1], "sizes": torch.tensor([[64, 64]]),
                   "point_coords": points, "point_labels": labels})  # fmt: skip
    predictor = SamPredictor(model.sam)
    predictor.set_image(given["images"][0].permute(1, 2, 0).numpy())
    _, iou, logits = predictor.predict_torch(
        points[0, :, :2], labels[0, :, :2], boxes=points[0, 0, 2:].reshape(1, 4)
    )
    torch.testing.assert_close(found["logits"][0], logits)
    torch.testing.assert_close(found["iou"][0], iou)


def test_a_prompt_is_needed() -> None:
    with pytest.raises(BadData, match="points with labels, or boxes_prompt"):
        PromptEncoderRole(whole(network()).sam.prompt_encoder)({})


@pytest.mark.parametrize(
    "name", ["sam-32x2", "cnn8", "tiny_vit_5m_224", "timm:mobilenetv3_small_050"]
)
def test_stock_tools_run_on_a_saved_network(name: str, tmp_path: Path) -> None:
    built = network(name)
    save_model(tmp_path / "model", built)
    sam = load_sam(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    masks, scores, logits = predictor.predict(box=np.array([3, 3, 40, 40]))
    assert masks.shape == (3, 48, 60)
    assert scores.shape == (3,)
    assert logits.shape == (3, 32, 32)
    generator = SamAutomaticMaskGenerator(
        sam, points_per_side=2, pred_iou_thresh=-1e9, stability_score_thresh=0.0
    )
    assert isinstance(generator.generate(image), list)
    for mine, theirs in zip(
        sam.state_dict().values(), whole(built).sam.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_parts_come_apart_and_together_again(tmp_path: Path) -> None:
    built, given = network("cnn8"), batch()
    parts: dict[str, Built] = {}
    for part in ("encoder", "prompts", "decoder"):
        Split(part=part)({"sam": built}, tmp_path / part, work=Work(rng=RNG))
        parts[part] = load_model(tmp_path / part)
    Join()(parts, tmp_path / "whole", work=Work(rng=RNG))
    again = load_model(tmp_path / "whole")
    assert again.spec == built.spec
    for name, value in again.module(given).items():
        assert torch.equal(value, built.module(given)[name])
    embedding = parts["encoder"].module(given)["embedding"]
    assert torch.equal(embedding, built.module(given)["embedding"])


def test_a_part_in_the_wrong_place_is_named(tmp_path: Path) -> None:
    built = network()
    with pytest.raises(BadData, match="encoder: a SamNetwork, not a Encoder"):
        Join()(
            dict.fromkeys(("encoder", "prompts", "decoder"), built),
            tmp_path / "x",
            work=Work(rng=RNG),
        )
    Split(part="encoder")({"sam": built}, tmp_path / "encoder", work=Work(rng=RNG))
    with pytest.raises(BadData, match="sam: not a whole SAM"):
        Split(part="decoder")(
            {"sam": load_model(tmp_path / "encoder")}, tmp_path / "decoder", work=Work(rng=RNG)
        )
    with pytest.raises(BadData, match="a Encoder, not a whole SAM"):
        load_sam(tmp_path / "encoder")
    with pytest.raises(BadData, match=r"there is no model\.json"):
        load_sam(tmp_path / "nowhere")


def test_a_checkpoint_of_segment_anything_is_read(tmp_path: Path) -> None:
    source = whole(network()).sam
    file = tmp_path / "sam_small.pth"
    torch.save(source.state_dict(), file)  # as Meta publishes them: the state of a Sam
    LoadSam(name="sam-32x1", shape=SHAPE)(
        {"checkpoint": file}, tmp_path / "model", work=Work(rng=RNG)
    )
    loaded = load_sam(tmp_path / "model")
    for name, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_metas_checkpoints_have_the_tensors_of_the_names() -> None:
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        for name in ("vit_b", "vit_l", "vit_h"):
            ours = named(name).new().get_submodule("sam").state_dict()
            stock = sam_model_registry[name]().state_dict()
            assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in stock.items()}


def test_a_wrong_checkpoint_is_one_clear_line(tmp_path: Path) -> None:
    load, out = LoadSam(name="sam-32x2", shape=SHAPE), tmp_path / "model"
    file = tmp_path / "sam.pth"
    torch.save(whole(network()).sam.state_dict(), file)
    with pytest.raises(BadData, match=r"sam\.pth \(sam-32x2\): does not fit .*blocks\.1") as caught:
        load({"checkpoint": file}, out, work=Work(rng=RNG))
    assert "\n" not in str(caught.value)
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(BadData, match=r"sam\.pth: not a checkpoint"):
        load({"checkpoint": file}, out, work=Work(rng=RNG))
    other = LoadSam(name="sam-32x1", shape=Shape(size=32, grid=4, channels=32, heads=2, mlp=64))
    with pytest.raises(BadData, match=r"\(64, 8, 32\), the recipe \(32, 4, 32\)"):
        other({"checkpoint": network()}, out, work=Work(rng=RNG))
    assert not out.exists()


def test_the_lines_that_read_a_checkpoint_are_printed(tmp_path: Path) -> None:
    file = tmp_path / "sam.pth"
    torch.save(whole(network("sam-32x2")).sam.state_dict(), file)
    lines = (
        "it is a SAM as sam-32x2; run with --set teacher_model=sam-32x2 --set size=64 --set grid=8 "
        "--set channels=32 --set heads=2 --set mlp=64"
    )
    with pytest.raises(BadData, match=re.escape(lines)):
        LoadSam(name="sam-32x1", shape=SHAPE)(
            {"checkpoint": file}, tmp_path / "x", work=Work(rng=RNG)
        )
    with torch.device("meta"):
        state = named("vit_b").new().get_submodule("sam").state_dict()
    assert described(state, SHAPE) == (
        "it is SAM's vit_b; run with --set teacher_model=vit_b --set size=1024 --set grid=64 "
        "--set channels=256 --set heads=8 --set mlp=2048"
    )
    assert "it holds no whole SAM with segment_anything's ViT" in described({}, SHAPE)
    windows = vit_encoder(
        size=64, patch=8, width=32, depth=2, heads=1, channels=32, window=4, everywhere=(1,)
    )
    small = dict(whole(network("sam-32x2")).sam.state_dict())
    small |= {
        f"image_encoder.{name}": value
        for name, value in windows.get_submodule("net").state_dict().items()
    }
    assert "(width 32, depth 2, 8 x 8 patches) has windows" in described(small, SHAPE)
    with pytest.raises(BadSetting, match=r"of 1024 pixels .* --set size=1024 --set grid=64 "):
        encoder_named("vit_b", shape=SHAPE)


def test_tiny_vit_has_its_last_stage_at_stride_sixteen() -> None:
    encoder = encoder_named("tiny_vit_5m_224", shape=Shape(size=64, grid=4)).new().eval()
    assert isinstance(encoder, Encoder)
    body = encoder.net.get_submodule("body")
    assert [tuple(m.shape[1:]) for m in body(torch.zeros(1, 3, 64, 64))][-1] == (320, 4, 4)
    assert sum(p.numel() for p in body.parameters()) == pytest.approx(5.07e6, rel=0.01)


def test_a_timm_body_ends_at_the_nearest_stride() -> None:
    encoder = encoder_named("timm:tiny_vit_5m_224", shape=Shape(size=64, grid=8)).new().eval()
    (found,) = encoder.get_submodule("net.body")(torch.zeros(1, 3, 64, 64))
    assert found.shape == (1, 128, 8, 8)


def test_wrong_names_and_shapes_are_refused() -> None:
    with pytest.raises(UnknownName, match="sam-"):
        named("sam-32", shape=SHAPE)
    with pytest.raises(UnknownName, match="timm model"):
        encoder_named("timm:tiny_vit_5n", shape=SHAPE).new()
    with pytest.raises(BadSetting, match="vit_b is Meta's"):
        named("vit_b", shape=SHAPE)
    with pytest.raises(BadSetting, match="multiple of grid"):
        Shape(size=100, grid=64)
    with pytest.raises(BadSetting, match="times grid"):
        encoder_named("cnn8", shape=Shape(size=96, grid=32)).new()
    with pytest.raises(BadSetting, match="twice heads"):
        named("cnn8", shape=Shape(size=64, grid=8, channels=24, heads=8)).new()
