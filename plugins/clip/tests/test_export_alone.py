"""Exports opened in a process that has onnxruntime and tokenizers, and nothing of Stillhouse."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stillhouse.artifact import Built, load_model, save_model
from stillhouse.cli import main
from stillhouse.data.data import TensorData
from stillhouse.export import Export
from stillhouse.work import Work
from stillhouse_clip.banks import ClassBank, WithBank
from stillhouse_clip.exporting import ExportTowers
from stillhouse_clip.images import ImageSpec
from stillhouse_clip.labels import prompts_of
from stillhouse_clip.predict import relabelled
from stillhouse_clip.recipes.own_teacher import FreshTowers
from stillhouse_clip.towers import image_model

NAMES = ["disc", "ring", "cross"]
OTHERS = ["square", "red ring"]
# also what a user does who has nothing but the folder
ALONE = """
import json, sys
from pathlib import Path
import numpy as np, onnxruntime
from tokenizers import Tokenizer

folder, prompts = Path(sys.argv[1]), json.loads(sys.argv[2])
about = json.loads((folder / "export.json").read_text())["text"]
opened = {
    name: onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
    for name in ("model.onnx", about["file"])
}
images = np.load(folder / "images.npy")
embedding, logits = opened["model.onnx"].run(["embedding", "logits"], {"images": images})
tokenizer = Tokenizer.from_file(str(folder / about["tokenizer"]))
tokenizer.enable_padding(length=about["context"])
read = tokenizer.encode_batch(prompts)
tokens = np.array([each.ids for each in read])
mask = np.array([each.attention_mask for each in read])
(rows,) = opened[about["file"]].run(["text"], {"tokens": tokens, "mask": mask})
unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
cosines = unit(embedding) @ unit(rows).T
foreign = [name for name in sys.modules if name.partition(".")[0] in ("torch", "stillhouse")]
print(json.dumps({"logits": logits.tolist(), "cosines": cosines.tolist(), "foreign": foreign}))
"""


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A student with a bank of three classes and its teacher's text tower, as an export has it."""
    torch.manual_seed(0)
    described = {"plain": prompts_of(NAMES), "described": prompts_of(NAMES, NAMES)}
    classes = TensorData(
        {"name": NAMES, "description": NAMES, "known": torch.tensor([1, 1, 0]), **described}
    )
    spec = ImageSpec(size=32)
    fresh = FreshTowers(
        image="conv2", images=spec, texts=("plain", "described"), dim=8, vocabulary=300
    )
    fresh({"classes": classes}, tmp_path / "teacher", work=Work())
    teacher = load_model(tmp_path / "teacher")
    ClassBank(enriched=False)(
        {"classes": classes, "teacher": teacher}, tmp_path / "bank", work=Work()
    )
    model = image_model("conv2", dim=8, images=spec)
    save_model(tmp_path / "tower", Built(spec=model, module=model.new().eval()))
    parts = {"student": load_model(tmp_path / "tower"), "bank": load_model(tmp_path / "bank")}
    WithBank()(parts, tmp_path / "student", work=Work())
    rng = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=rng)
    ExportTowers(image=Export(outputs=("embedding", "logits")))(
        {
            "student": load_model(tmp_path / "student"),
            "teacher": teacher,
            "data": TensorData({"images": images}),
        },
        tmp_path / "out",
        work=Work(),
    )
    np.save(tmp_path / "out" / "images.npy", images.numpy())
    return tmp_path / "out"


@pytest.mark.slow
def test_onnxruntime_alone_gives_the_same_answers(exported: Path) -> None:
    command = [sys.executable, "-c", ALONE, str(exported), json.dumps(prompts_of(OTHERS))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["foreign"] == []
    images = {"images": torch.from_numpy(np.load(exported / "images.npy"))}
    built = load_model(exported)
    with torch.no_grad():
        logits = built.module(images)["logits"].numpy()
        other = relabelled(built, OTHERS).module(images)["logits"].numpy()
    np.testing.assert_allclose(found["logits"], logits, atol=1e-3)
    np.testing.assert_allclose(np.array(found["cosines"]) / 0.07, other, atol=1e-3)
    assert logits.std() > 1e-2


@pytest.mark.slow
def test_labels_in_a_line_name_an_image_and_nothing_is_trained(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`stillhouse predict STUDENT image --labels "a, b, c"`, and its answer worked out apart."""
    (image,) = torch.from_numpy(np.load(exported / "images.npy"))[:1]
    file = tmp_path / "one.png"
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    before = {f: f.read_bytes() for f in exported.rglob("*") if f.is_file()}

    def told(*words: str) -> tuple[int, str, str]:
        code = main(["predict", str(exported), str(file), "--format", "json", *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    code, out, _ = told("--labels", "square, red ring, a wheel")
    assert code == 0
    (row,) = json.loads(out)
    built = load_model(exported)
    with torch.no_grad():
        bank = relabelled(built, ["square", "red ring", "a wheel"]).module
        expected = bank({"images": image[None]})["logits"][0].softmax(0)
    names = ["square", "red ring", "a wheel"]
    best = int(expected.argmax())
    assert row["class"] == names[best]
    assert row["probability"] == pytest.approx(float(expected[best]), abs=1e-3)
    assert {row["class"], row["class 2"], row["class 3"]} == set(names)
    (own,) = json.loads(told()[1])
    assert {own["class"], own["class 2"], own["class 3"]} == set(NAMES)
    code, _, err = told("--labels", "square, square")
    assert (code, err.count("\n")) == (2, 1)
    assert "name each class once" in err
    assert before == {f: f.read_bytes() for f in exported.rglob("*") if f.is_file()}
