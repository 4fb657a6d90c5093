"""Students as they leave: transformers and ONNX Runtime alone give their answers, and
`stillhouse predict FOLDER "text"` those that people read.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.artifact import Built, load_model
from stillhouse.card import Card
from stillhouse.cli.app import main
from stillhouse.data.data import TensorData
from stillhouse.export import Export
from stillhouse.work import Work
from stillhouse_language import Architecture
from stillhouse_language.causal.export import ExportLM
from stillhouse_language.causal.ragged import ragged
from stillhouse_language.causal.samples import built as language_model
from stillhouse_language.causal.samples import tokenizer
from stillhouse_language.classifier import AddHead
from stillhouse_language.encoders import NewEncoder
from stillhouse_language.tokenizing import ASSET, encoded, open_tokenizer
from stillhouse_language.transformers_folder import ExportClassifier
from stillhouse_language.usage import classifier_usage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TEXTS = ["good film", "great plot", "bad film", "a poor and sad plot"]
SLICED = Architecture(  # heads times their width are not the width: no class of transformers
    layers=2, width=16, inner=40, heads=3, head_width=8, vocabulary=60, positions=12, full_heads=4
)


def alone(program: str, *words: str, home: Path) -> Any:  # Any: JSON values
    """What a program prints as JSON in a process of its own that imports nothing of Stillhouse."""
    ending = '\nimport sys\nassert not [n for n in sys.modules if n.startswith("stillhouse")]\n'
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", program + ending, *words],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout.strip().splitlines()[-1])


Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Typed:
    """`stillhouse predict FOLDER "text"`: exit code, output and errors."""
    monkeypatch.setenv("STILLHOUSE_ROOT", str(tmp_path))
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))

    def typed(folder: Path, *words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["predict", str(folder), *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return typed


def classifier(folder: Path) -> Built:
    source = {"source": {"text": np.array(TEXTS)}}
    NewEncoder(architecture=SLICED)(source, folder / "encoder", work=Work())
    encoder = load_model(folder / "encoder")
    spec, module = AddHead().made(encoder.module, ["bad", "good"], seed=1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return Built(spec=spec, module=module.eval(), assets=encoder.assets)


@pytest.fixture(scope="module")
def exported_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    model = classifier(folder)
    rows = encoded(open_tokenizer(model.assets[ASSET]), TEXTS, length=8)
    export = Export(
        inputs=("tokens", "mask"),
        outputs=("logits",),
        dynamic={"tokens": ("length",), "mask": ("length",)},
        card=Card(title="x", task="text-classification", paper="x"),
        usage=classifier_usage,
    )
    ExportClassifier(export=export)(
        {"student": model, "data": TensorData({**rows, "labels": torch.zeros(4).long()})},
        folder / "out",
        work=Work(),
    )
    return folder / "out"


@pytest.fixture(scope="module")
def exported_generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generator")
    tokens = ragged([tokenizer().ids("the cat sat on a mat")] * 4)
    export = ExportLM(card=Card(title="x", task="text-generation", paper="x"))
    student = language_model(folder)
    export(
        {"student": student, "data": TensorData({"tokens": tokens})}, folder / "out", work=Work()
    )
    return folder / "out"


CLASSES = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, *texts = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    rows = [model(**{k: v for k, v in tokenizer(text, return_tensors="pt").items()
                     if k != "token_type_ids"}).logits[0].tolist() for text in texts]
print(json.dumps([rows, [model.config.id2label[i] for i in range(2)]]))
"""
RUNTIME = """
import json, sys
import numpy as np, onnxruntime
from tokenizers import Tokenizer
folder, *texts = sys.argv[1:]
tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
session = onnxruntime.InferenceSession(folder + "/model.onnx")
rows = []
for text in texts:
    ids = np.array([tokenizer.encode(text).ids])
    given = {"tokens": ids, "mask": np.ones_like(ids)}
    rows.append(session.run(["logits"], given)[0][0].tolist())
print(json.dumps(rows))
"""


def test_a_classifier_gives_its_answers_in_transformers_and_onnx_alone(
    exported_classifier: Path, tmp_path: Path
) -> None:
    folder = str(exported_classifier)
    built = load_model(exported_classifier)
    reader = open_tokenizer(built.assets[ASSET])
    with torch.no_grad():
        ours = [
            built.module(encoded(reader, [text], length=len(reader.encode(text).ids)))["logits"][0]
            for text in TEXTS
        ]
    expected = torch.stack(ours)
    found, names = alone(CLASSES, folder, *TEXTS, home=tmp_path / "hf")
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-4)
    assert names == ["bad", "good"]
    onnx = alone(RUNTIME, folder, *TEXTS, home=tmp_path / "hf")
    torch.testing.assert_close(torch.tensor(onnx), expected, rtol=1e-3, atol=1e-3)


def test_predict_prints_the_class_of_a_text(exported_classifier: Path, predicted: Typed) -> None:
    built = load_model(exported_classifier)
    reader = open_tokenizer(built.assets[ASSET])
    with torch.no_grad():
        batch = encoded(reader, ["good film"], length=len(reader.encode("good film").ids))
        shares = built.module(batch)["logits"][0].softmax(-1)
    best = ["bad", "good"][int(shares.argmax())]
    code, printed, _ = predicted(exported_classifier, "good film")
    assert code == 0
    assert best in printed
    assert f"{float(shares.max()):.3f}"[:4] in printed
    for text, line in (
        ("good film " * 9, "text 1: 20 tokens, and the model reads 12; cut it"),
        ("reviews.txt", "reviews.txt"),
    ):
        code, _, errors = predicted(exported_classifier, text)
        assert code == 2
        assert line in errors
        assert len(errors.strip().splitlines()) == 1


GENERATION = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, text = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder).eval()
ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False,
                      pad_token_id=0)[0, ids.shape[1]:]
with torch.no_grad():
    logits = model(input_ids=ids).logits[0, -1].tolist()
print(json.dumps([tokenizer.decode(made, skip_special_tokens=True), logits, ids[0].tolist()]))
"""
NEXT = """
import json, sys
import numpy as np, onnxruntime
folder, ids = sys.argv[1:]
session = onnxruntime.InferenceSession(folder + "/model.onnx")
print(json.dumps(session.run(["logits"], {"tokens": np.array([json.loads(ids)])})[0][0, -1].tolist()))
"""


def test_a_generator_gives_its_answers_in_transformers_and_onnx_alone(
    exported_generator: Path, predicted: Typed, tmp_path: Path
) -> None:
    folder, text = str(exported_generator), "the cat sat on"
    made, logits, ids = alone(GENERATION, folder, text, home=tmp_path / "hf")
    assert ids == tokenizer().ids(text)
    with torch.no_grad():
        ours = load_model(exported_generator).module({"tokens": torch.tensor([ids])})["logits"]
    torch.testing.assert_close(torch.tensor(logits), ours[0, -1], rtol=1e-4, atol=1e-4)
    onnx = alone(NEXT, folder, json.dumps(ids), home=tmp_path / "hf")
    torch.testing.assert_close(torch.tensor(onnx), ours[0, -1], rtol=1e-3, atol=1e-3)
    code, printed, errors = predicted(exported_generator, text, "--longest", "6")
    assert code == 0, errors
    assert " ".join(made.split())[:20] in " ".join(printed.split())


def test_a_text_over_the_context_is_one_line(exported_generator: Path, predicted: Typed) -> None:
    code, _, errors = predicted(exported_generator, "the cat " * 80)
    assert code == 2
    assert "text over the context: 225 tokens" in errors
    assert len(errors.strip().splitlines()) == 1
