import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from stillhouse.artifact import load_model
from stillhouse.data.data import TensorData
from stillhouse.errors import BadData, BadSetting
from stillhouse.work import Work
from stillhouse_clip.bilingual import sentences
from stillhouse_clip.dual import FreshDual
from stillhouse_clip.dual_export import (
    BANK,
    ENCODER,
    TEXT_ONNX,
    DualExport,
    class_bank,
    padded,
    write_bank,
)
from stillhouse_clip.images import ImageSpec
from stillhouse_clip.languages import TEMPLATES
from stillhouse_clip.objectives.distillation import unit
from stillhouse_clip.predict import predict

TEXTS = [*sentences("en")[:6], *sentences("zh")[:6]]


def data() -> dict[str, TensorData]:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8, generator=rng)
    texts = {
        "text": TEXTS,
        "labels": torch.arange(12) % 6,
        "language": torch.arange(12) // 6,
        "source": torch.zeros(12).long(),
    }
    return {"data": TensorData({"images": images}), "texts": TensorData(texts)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dual")
    fresh = FreshDual(
        image="conv8", images=ImageSpec(size=32), dim=6, width=16, layers=2, heads=2, context=24
    )
    fresh(data(), root / "student", work=Work())
    export = DualExport(context=24, language="en")
    export({"student": load_model(root / "student"), **data()}, root / "out", work=Work())
    return root / "out"


def test_onnx_runtime_alone_gives_the_zero_shot_classes(folder: Path) -> None:
    import onnxruntime
    from tokenizers import Tokenizer

    images = data()["data"].rows(torch.arange(9))["images"].numpy()
    tokenizer = Tokenizer.from_file(str(folder / "assets" / "tokenizer.json"))
    tokenizer.enable_padding(length=24, pad_id=1, pad_token="<pad>")
    prompts = [t.replace("{}", name) for name in TEXTS[:6] for t in TEMPLATES["en"]]
    tokens = np.array([encoded.ids for encoded in tokenizer.encode_batch(prompts)])
    sides = [
        onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        for name in ("model.onnx", TEXT_ONNX)
    ]
    (embedding,) = sides[0].run(["embedding"], {"images": images})
    (text,) = sides[1].run(["text"], {"tokens": tokens})
    rows = (text / np.linalg.norm(text, axis=1, keepdims=True)).reshape(6, -1, 6).mean(1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with safe_open(str(folder / BANK), "numpy") as file:  # pyright: ignore[reportUnknownVariableType, reportCallIssue]
        bank, about = file.get_tensor("rows"), file.metadata()
    assert json.loads(about["classes"]) == TEXTS[:6]
    assert about["language"] == "en"
    np.testing.assert_allclose(rows, bank, atol=1e-4)
    student = load_model(folder).module
    expected = student({"images": torch.from_numpy(images)})["embedding"].detach().numpy()
    np.testing.assert_allclose(embedding, expected, atol=1e-4)


def test_transformers_opens_the_text_encoder(folder: Path) -> None:
    from transformers import AutoModel

    bert = AutoModel.from_pretrained(str(folder / ENCODER), add_pooling_layer=False).eval()
    built = load_model(folder)
    tokens = padded(built, TEXTS[:2], 24)
    mask = tokens != 1
    with torch.no_grad():
        theirs = bert(tokens, attention_mask=mask.long()).last_hidden_state
        found = built.module({"tokens": tokens})
    torch.testing.assert_close(theirs[mask], found["text_map"][mask], atol=1e-5, rtol=1e-4)


def test_a_bank_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    rows, files = torch.eye(2, 3), [tmp_path / f"{number}.safetensors" for number in range(20)]
    for file in files:
        write_bank(file, ["red", "红"], rows, language="en")
    assert len({file.read_bytes() for file in files}) == 1
    with safe_open(str(files[0]), "pt") as opened:  # pyright: ignore[reportUnknownVariableType, reportCallIssue]
        assert torch.equal(opened.get_tensor("rows"), rows)
        assert json.loads(opened.metadata()["classes"]) == ["red", "红"]


def test_new_labels_make_a_new_bank_without_training(folder: Path) -> None:
    built = load_model(folder)
    rows = class_bank(built, TEXTS[:3], ("{}",), context=24)
    more = class_bank(built, [*TEXTS[6:9], *TEXTS[:3]], ("{}",), context=24)
    assert more.shape == (6, 6)
    torch.testing.assert_close(more[3:], rows)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))


def test_an_export_without_class_names_says_so(tmp_path: Path, folder: Path) -> None:
    export = DualExport(context=24, language="de", place=2)
    with pytest.raises(BadData, match="no text in de names a class"):
        export({"student": load_model(folder), **data()}, tmp_path / "x", work=Work())


def test_images_are_named_among_any_labels(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    image = data()["data"].rows(torch.arange(1))["images"][0]
    file = tmp_path / "a.png"
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    built = load_model(folder)
    labels = (TEXTS[0], TEXTS[7], TEXTS[2])
    (row,) = predict(built, [file], labels=labels, top=2)
    with torch.no_grad():
        found = built.module({"images": image[None]})
    bank = class_bank(built, labels, ("{}",), context=24)
    expected = (found["scale"] * unit(found["embedding"]) @ bank.mT)[0].softmax(0)
    best = expected.argsort(descending=True)
    assert row["class"] == labels[int(best[0])]
    assert row["probability"] == pytest.approx(float(expected.max()), abs=1e-4)
    assert row["class 2"] == labels[int(best[1])]
    assert "class 3" not in row
    with pytest.raises(BadSetting, match="name two classes or more, each once"):
        predict(built, [file], labels=("a", "a"))
    with pytest.raises(BadData, match="more than the 24"):
        predict(built, [file], labels=("a", "b " * 40))
