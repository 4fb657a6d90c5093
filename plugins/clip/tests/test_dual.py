import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.artifact import Built, Model, load_model, save_model
from stillhouse.data.data import TensorData
from stillhouse.errors import BadData, BadSetting, UnknownName
from stillhouse.work import Work
from stillhouse_clip.altclip import ReadAltClip
from stillhouse_clip.bert_tower import BertTower, TextSpec
from stillhouse_clip.dual import (
    Anchors,
    FreshDual,
    JoinHeads,
    MapProjector,
    ReadMapNet,
    TakeAnchors,
    begin_with,
    dual_towers,
    heads,
    image_width,
    resized,
    text_tower,
)
from stillhouse_clip.images import ImageSpec
from stillhouse_clip.objectives import symmetric_contrastive_loss
from stillhouse_clip.vocabulary import counted_unigram, read_tokenizer, size_of, write_tokenizer

TEXTS = ["a red dog", "a blue cat", "红色的狗", "蓝色的猫"]
IMAGES = ImageSpec(size=32)


def texts() -> TensorData:
    return TensorData({"text": TEXTS})


def spec(**changed: Any) -> TextSpec:
    sizes = {"vocabulary": 40, "width": 16, "layers": 4, "heads": 4, "inner": 64, "context": 9}
    return TextSpec.of({**sizes, "pad": 1, **changed})


def fresh(out: Path, *, seed: int = 0, **changed: Any) -> Built:
    sizes: dict[str, Any] = {"dim": 6, "width": 16, "layers": 2, "heads": 2, "context": 12}
    convert = FreshDual(image="conv8", images=IMAGES, **{**sizes, **changed})
    convert({"texts": texts()}, out, work=Work.seeded(seed))
    return load_model(out)


def test_fresh_towers_have_a_tokenizer_trimmed_to_the_texts(tmp_path: Path) -> None:
    built = fresh(tmp_path / "a")
    small, whole = (read_tokenizer(built.assets[name]) for name in ("tokenizer", "whole-tokenizer"))
    assert size_of(small) < size_of(whole)
    tower = built.module.get_submodule("text")
    assert isinstance(tower, BertTower)
    assert tower.spec.vocabulary == size_of(small)
    batch = {"images": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "tokens": torch.zeros(2, 5)}
    found = built.module({**batch, "tokens": batch["tokens"].long()})
    assert found["embedding"].shape == found["text"].shape == (2, 6)
    assert found["map"].shape == (2, 4, image_width("conv8"))
    same, other = fresh(tmp_path / "b"), fresh(tmp_path / "c", seed=1)
    name = "text.head.weight"
    assert torch.equal(built.module.get_parameter(name), same.module.get_parameter(name))
    assert not torch.equal(built.module.get_parameter(name), other.module.get_parameter(name))


def test_a_text_tower_begins_with_every_kth_layer() -> None:
    torch.manual_seed(0)
    teacher, student = BertTower(spec(positions=20)), BertTower(spec(layers=2), dim=3)
    begin_with(student, teacher)
    ours, theirs = student.bert.state_dict(), teacher.bert.state_dict()
    for place, layer in ((0, 1), (1, 3)):
        for part in ("attention.self.query.weight", "output.LayerNorm.bias"):
            mine = ours[f"encoder.layer.{place}.{part}"]
            assert torch.equal(mine, theirs[f"encoder.layer.{layer}.{part}"])
    table = "embeddings.word_embeddings.weight"
    assert torch.equal(ours[table], theirs[table])
    with pytest.raises(BadData, match="has width 32, the teacher's 16"):
        begin_with(BertTower(spec(width=32)), teacher)


def test_the_projector_brings_maps_to_the_teachers_width_and_grid() -> None:
    projector = MapProjector("student.map", 3, 5, places=16)
    found = projector({"student.map": torch.randn(2, 4, 3)})
    assert found["map"].shape == (2, 16, 5)
    same = torch.randn(2, 16, 3)
    torch.testing.assert_close(projector({"student.map": same})["map"], projector.linear(same))
    # a grid of two columns, 0 and 1, at twice the side: 0, 1/4, 3/4, 1 along each row
    wide = resized(torch.tensor([[[0.0], [1.0], [0.0], [1.0]]]), 16)
    torch.testing.assert_close(wide[0, :4, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))
    with pytest.raises(BadData, match="maps of 5 and 16 places are not both square grids"):
        resized(torch.zeros(1, 5, 2), 16)


def test_joined_heads_compute_what_they_did_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    name = "resnet18"
    kwargs = {"name": name, "images": IMAGES.json()}
    import timm

    weights = timm.create_model(name, num_classes=10).state_dict()
    torch.save({f"x{i}": value for i, value in enumerate(weights.values())}, tmp_path / "w.pth")
    convert = ReadMapNet(name=name, images=IMAGES)
    convert({"weights": tmp_path / "w.pth"}, tmp_path / "image", work=Work())
    image = load_model(tmp_path / "image")
    assert dict(image.spec.kwargs) == kwargs
    net = image.module.get_submodule("net").get_submodule("net")
    assert torch.equal(net.state_dict()["conv1.weight"], weights["conv1.weight"])
    file = write_tokenizer(tmp_path / "tokenizer.json", counted_unigram(TEXTS))
    words = spec(vocabulary=60)
    text = Built(
        spec=Model(build=text_tower, kwargs={"text": words.json()}),
        module=BertTower(words).eval(),
        assets={"tokenizer": file},
    )
    maps = Model(build=heads, kwargs={"features": 512, "words": 16})
    made = maps.new().train()
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    tokens = torch.tensor([[0, 5, 6, 2]] * 4)
    fed = {
        "image.embedding": image.module({"images": pixels})["embedding"],
        "text.text": text.module({"tokens": tokens})["text"],
    }
    with torch.no_grad():
        made(fed)  # which counts into its means
        expected = made.eval()(fed)
    torch.testing.assert_close(expected["text"], fed["text.text"])  # the identity, as yet
    join = {"image": image, "text": text, "heads": Built(spec=maps, module=made)}
    JoinHeads()(join, tmp_path / "teacher", work=Work())
    teacher = load_model(tmp_path / "teacher")
    found = teacher.module({"images": pixels, "tokens": tokens})
    for output in ("embedding", "text", "scale"):
        torch.testing.assert_close(found[output], expected[output])
    assert teacher.assets["tokenizer"].read_bytes() == file.read_bytes()


def test_anchors_are_the_teachers_texts(tmp_path: Path) -> None:
    words = spec()
    teacher = Built(
        spec=Model(build=text_tower, kwargs={"text": words.json()}), module=BertTower(words).eval()
    )
    tokens = torch.randint(2, 40, (20, 6))
    ports = {"teacher": teacher, "tokens": TensorData({"tokens": tokens})}
    TakeAnchors(count=7)(ports, tmp_path / "a", work=Work.seeded(3))
    anchors = load_model(tmp_path / "a").module
    assert isinstance(anchors, Anchors)
    every = teacher.module({"tokens": tokens})["text"]
    rows = anchors({})["rows"]
    assert rows.shape == (7, 16)
    assert all(any(torch.allclose(row, each, atol=1e-5) for each in every) for row in rows)


def test_unknown_networks_are_named() -> None:
    with pytest.raises(BadSetting, match=r"expected conv<width> or timm:<name>"):
        image_width("resnet18")
    with pytest.raises(UnknownName, match="unknown timm model 'resnet81'"):
        dual_towers(image="timm:resnet81", images=IMAGES.json(), text=spec().json(), dim=3)
    assert image_width("timm:resnet18") == 512


def test_an_altclip_in_the_real_format_is_read_and_trimmed(tmp_path: Path) -> None:
    from transformers import AltCLIPConfig, AltCLIPModel

    whole = counted_unigram([*TEXTS, *TEXTS, "собака бежит", "собака бежит"])
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    text = {"vocab_size": size_of(whole), "hidden_size": 16, "project_dim": 12, **layers}
    text |= {"max_position_embeddings": 30, "pad_token_id": 1}
    vision = {"hidden_size": 16, "image_size": 32, "patch_size": 8, **layers}
    torch.manual_seed(0)
    config = AltCLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    theirs = AltCLIPModel(config).eval()
    theirs.save_pretrained(tmp_path / "alt")
    write_tokenizer(tmp_path / "alt" / "tokenizer.json", whole)
    ReadAltClip(keep="alphabet")(
        {"teacher": tmp_path / "alt", "texts": texts()}, tmp_path / "teacher", work=Work()
    )
    built = load_model(tmp_path / "teacher")
    small = read_tokenizer(built.assets["tokenizer"])
    assert size_of(small) < size_of(whole)
    from stillhouse_clip.tokens import tokenized

    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    rows = {
        name: tokenized(file, TEXTS[1:3], length=20)
        for name, file in (
            ("old", tmp_path / "alt" / "tokenizer.json"),
            ("new", built.assets["tokenizer"]),
        )
    }
    with torch.no_grad():
        found = built.module({"images": pixels, "tokens": rows["new"]["tokens"]})
        seen = built.module.get_submodule("normalized")(pixels)
        expected = theirs(
            input_ids=rows["old"]["tokens"],
            attention_mask=rows["old"]["mask"],
            pixel_values=seen,
        )
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(unit(found["embedding"], dim=1), expected.image_embeds)
    torch.testing.assert_close(unit(found["text"], dim=1), expected.text_embeds)
    assert found["map"].shape == (2, 16, 16)
    assert found["text_map"].shape == (*rows["new"]["tokens"].shape, 12)
    loss = symmetric_contrastive_loss(found["embedding"], found["text"], scale=found["scale"])
    assert bool(loss.isfinite())
    (tmp_path / "alt" / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(BadData, match="a model of type 'clip', expected 'altclip'"):
        ReadAltClip(keep="alphabet")(
            {"teacher": tmp_path / "alt", "texts": texts()}, tmp_path / "x", work=Work()
        )


def test_a_model_is_saved_with_its_assets_and_opens_again(tmp_path: Path) -> None:
    built = fresh(tmp_path / "a", context=10)
    save_model(tmp_path / "b", built)
    again = load_model(tmp_path / "b")
    tokens = torch.tensor([[0, 4, 5, 2]])
    torch.testing.assert_close(
        again.module({"tokens": tokens})["text"], built.module({"tokens": tokens})["text"]
    )
