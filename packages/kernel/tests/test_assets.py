"""A vocabulary that goes with a model: through training, export and predict."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.artifact import Artifact, Built, Model, load_model, save_model
from stillhouse.cli.predicting import predictions
from stillhouse.data.data import Data
from stillhouse.data.shards import load_data, save_data
from stillhouse.errors import BadData, BadRecipe, CorruptArtifact, UnknownName
from stillhouse.export import Export
from stillhouse.inputs import outside
from stillhouse.metrics import Metric, Score
from stillhouse.objectives.objective import Composed, Models, Optimizer, Phase, Weighted
from stillhouse.stages import Convert, Evaluate, Make, Train
from stillhouse.work import Work

from .toys import SITE, Tokenized, Words, by_labels, toy_context

VOCABULARY = {"good": 2, "fine": 3, "bad": 4, "awful": 5}
TEXTS = ["good fine", "bad", "awful bad day", "fine"]


@pytest.fixture(autouse=True)
def _site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SITE))


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    file = tmp_path / "words.json"
    file.write_text(json.dumps(VOCABULARY))
    return file


def train(role: str, inputs: Mapping[str, str], assets: Mapping[str, tuple[str, ...]]) -> Train:
    phase = Phase(trains=(role,), optimizer=Optimizer(lr=1.0))
    losses = {"ce": Weighted(term=by_labels(role))}
    return Train(
        name=role,
        objective=Composed(phases={"main": phase}, losses=losses),
        inputs=inputs,
        fresh={role: Model(build=Words, kwargs={"size": 6})},
        steps=60,
        batch=4,
        assets=assets,
    )


def texts(folder: Path) -> Artifact:
    return save_data(folder, {"text": TEXTS, "labels": torch.tensor([1, 0, 0, 1])})


def trained(tmp_path: Path, vocabulary: Path) -> dict[str, Artifact]:
    """A teacher with the vocabulary, texts that it tokenises, a student of its vocabulary."""
    tokens = {"tokens": torch.tensor([[2, 3], [4, 0]]), "labels": torch.tensor([1, 0])}
    inputs = {
        "data": save_data(tmp_path / "first", tokens),
        "vocabulary": outside(f"file:{vocabulary}", tmp_path),
    }
    stage = train("teacher", dict.fromkeys(inputs, "file:x"), {"teacher": ("vocabulary",)})
    teacher = stage.run(inputs, toy_context(tmp_path / "t")).outputs["teacher"]
    made = (
        Make(
            name="made",
            make=Tokenized(),
            inputs={"source": "file:x", "words": "teacher.teacher"},
            ports=("tokens",),
        )
        .run({"source": texts(tmp_path / "texts"), "words": teacher}, toy_context(tmp_path / "m"))
        .outputs
    )
    inputs = {"data": made["tokens"], "teacher": teacher}
    stage = train("student", dict.fromkeys(inputs, "file:x"), {"student": ("teacher",)})
    student = stage.run(inputs, toy_context(tmp_path / "s")).outputs["student"]
    return {"teacher": teacher, "student": student, "data": made["tokens"]}


def test_a_vocabulary_goes_through_training_export_and_predict(
    tmp_path: Path, vocabulary: Path
) -> None:
    made = trained(tmp_path, vocabulary)
    data = load_data(made["data"].path)
    assert data.columns["tokens"].tolist() == [
        [2, 3, 0, 0],
        [4, 0, 0, 0],
        [5, 4, 1, 0],
        [3, 0, 0, 0],
    ]
    convert = Export(inputs=("tokens",))
    stage = Convert(name="e", convert=convert, inputs={"student": "a.b", "data": "c.d"})
    folder = (
        stage.run({"student": made["student"], "data": made["data"]}, toy_context(tmp_path / "e"))
        .outputs["model"]
        .path
    )
    vocabulary.unlink()  # nobody goes back to where it came from
    for name, word in {"one": "fine", "two": "awful awful"}.items():
        (tmp_path / name).write_text(word)
    given = [str(tmp_path / "one"), str(tmp_path / "two")]
    expected = [{"file": "one", "class": 1}, {"file": "two", "class": 0}]
    for student in (made["student"].path, folder, folder / "model.onnx"):
        assert predictions(str(student), given) == expected
    assert json.loads((folder / "assets" / "vocabulary.json").read_text()) == VOCABULARY
    # the digest of the model covers them
    assert json.loads((folder / "model.json").read_text())["assets"]["vocabulary"]["file"] == (
        "vocabulary.json"
    )


@dataclass(frozen=True, kw_only=True)
class Known(Metric):
    """How many words the student's vocabulary has."""

    def scores(self) -> tuple[Score, ...]:
        return (Score(name="words", better="higher"),)

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        return {"words": len(json.loads(work.assets["student"]["vocabulary"].read_text()))}


def test_a_metric_reads_the_assets_of_a_role(tmp_path: Path, vocabulary: Path) -> None:
    spec = Model(build=Words, kwargs={"size": 6})
    built = Built(spec=spec, module=spec.new(), assets={"vocabulary": vocabulary})
    inputs = {"student": save_model(tmp_path / "m", built), "data": texts(tmp_path / "texts")}
    stage = Evaluate(name="e", metrics=(Known(),), inputs=dict.fromkeys(inputs, "a.b"))
    assert stage.run(inputs, toy_context(tmp_path / "e")).scores == {"words": 4.0}


def test_other_assets_are_another_model(tmp_path: Path, vocabulary: Path) -> None:
    def saved(name: str) -> Artifact:
        torch.manual_seed(0)
        spec = Model(build=Words, kwargs={"size": 6})
        built = Built(spec=spec, module=spec.new(), assets={"vocabulary": vocabulary})
        return save_model(tmp_path / name, built)

    first = saved("first")
    vocabulary.write_text(json.dumps({**VOCABULARY, "fine": 5}))
    assert saved("second").digest != first.digest
    # what is not changed, a model without assets, has no word of them
    spec = Model(build=Words, kwargs={"size": 6})
    save_model(tmp_path / "none", Built(spec=spec, module=spec.new()))
    assert set(json.loads((tmp_path / "none" / "model.json").read_text())) == {"build", "kwargs"}


def test_a_folder_is_an_asset(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    (folder / "more").mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "more" / "merges.txt").write_text("a b")
    spec = Model(build=Words, kwargs={"size": 6})
    built = Built(spec=spec, module=spec.new(), assets={"tokenizer": folder})
    save_model(tmp_path / "model", built)
    found = load_model(tmp_path / "model").assets["tokenizer"]
    assert (found / "more" / "merges.txt").read_text() == "a b"
    # and goes on with whoever saves what was loaded
    again = save_model(tmp_path / "again", load_model(tmp_path / "model"))
    assert again.open().assets["tokenizer"] == tmp_path / "again" / "assets" / "tokenizer"


@pytest.mark.parametrize(("name", "file", "message"), [
    ("vocabulary", "run.py", r"asset 'vocabulary' \(.*run.py\): run.py is not known to be data alone, as files that end in .json"),
    ("vocabulary", "weights.pth", "weights.pth is not known to be data alone"),
    ("vocabulary", "none.json", r"asset 'vocabulary' \(.*none.json\): not found"),
    ("../vocabulary", "words.json", r"asset '../vocabulary' .*: a name has only letters, digits"),
    ("vocabulary", "empty", r"holds no file"),
])  # fmt: skip
def test_what_is_no_data_is_no_asset(
    tmp_path: Path, vocabulary: Path, name: str, file: str, message: str
) -> None:
    (tmp_path / "run.py").touch()
    (tmp_path / "weights.pth").touch()
    (tmp_path / "empty").mkdir()
    spec = Model(build=Words, kwargs={"size": 6})
    built = Built(spec=spec, module=spec.new(), assets={name: tmp_path / file})
    with pytest.raises(BadData, match=message) as caught:
        save_model(tmp_path / "model", built)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("entry", "message"), [
    ({"file": "../../words.json"}, r"asset 'vocabulary': '../../words.json' is no file of an asset"),
    ({"file": "/etc/passwd"}, "'/etc/passwd' is no file of an asset"),
    ({"file": "run.py"}, "'run.py' is no file of an asset"),
    ({"file": "vocabulary.txt"}, "assets/vocabulary.txt not found; run the stage that made it again"),
    ({"digest": "0" * 64}, "its bytes differ from the digest in model.json; run the stage that"),
    ({"file": 3}, "is no file of an asset"),
    (None, "assets: None is no mapping"),
])  # fmt: skip
def test_a_model_folder_leads_to_no_other_files(
    tmp_path: Path, vocabulary: Path, entry: Any, message: str
) -> None:
    spec = Model(build=Words, kwargs={"size": 6})
    built = Built(spec=spec, module=spec.new(), assets={"vocabulary": vocabulary})
    save_model(tmp_path / "model", built)
    file = tmp_path / "model" / "model.json"
    record = json.loads(file.read_text())
    whole = record["assets"]["vocabulary"]
    record["assets"] = None if entry is None else {"vocabulary": whole | entry}
    file.write_text(json.dumps(record))
    with pytest.raises(CorruptArtifact, match=message) as caught:
        load_model(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_a_file_of_code_in_a_folder_of_assets_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    spec = Model(build=Words, kwargs={"size": 6})
    built = Built(spec=spec, module=spec.new(), assets={"tokenizer": folder})
    save_model(tmp_path / "model", built)
    (tmp_path / "model" / "assets" / "tokenizer" / "tokenizer.py").touch()
    with pytest.raises(CorruptArtifact, match="asset 'tokenizer': tokenizer.py is not known to"):
        load_model(tmp_path / "model")


def test_assets_of_an_unknown_role_or_port_are_one_line() -> None:
    stage = train("student", {"data": "a.b"}, {})
    with pytest.raises(UnknownName, match="stage 'student': assets: unknown trained role 'studnt'"):
        replace(stage, assets={"studnt": ("data",)})
    with pytest.raises(UnknownName, match="stage 'student': assets: unknown port 'teacher'"):
        replace(stage, assets={"student": ("teacher",)})


def test_a_base_gives_its_assets_without_being_a_role(tmp_path: Path, vocabulary: Path) -> None:
    spec = Model(build=Words, kwargs={"size": 6})
    built = Built(spec=spec, module=spec.new(), assets={"vocabulary": vocabulary})
    tokens = {"tokens": torch.tensor([[2, 3], [4, 0]]), "labels": torch.tensor([1, 0])}
    inputs = {"data": save_data(tmp_path / "d", tokens), "base": save_model(tmp_path / "m", built)}
    stage = train("student", dict.fromkeys(inputs, "a.b"), {"student": ("base",)})
    stage = replace(stage, bases={"student": "base"})
    made = stage.run(inputs, toy_context(tmp_path / "s")).outputs["student"]
    assert json.loads((made.path / "assets" / "vocabulary.json").read_text()) == VOCABULARY


def test_two_assets_of_one_name_are_one_line(tmp_path: Path, vocabulary: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    spec = Model(build=Words, kwargs={"size": 6})
    tokens = {"tokens": torch.tensor([[2, 3], [4, 0]]), "labels": torch.tensor([1, 0])}
    inputs = {"data": save_data(tmp_path / "d", tokens)}
    for port, file in {"one": vocabulary, "two": other, "same": vocabulary}.items():
        built = Built(spec=spec, module=spec.new(), assets={"vocabulary": file})
        inputs[port] = save_model(tmp_path / port, built)

    def run(*ports: str) -> Artifact:
        stage = train("student", dict.fromkeys(inputs, "a.b"), {"student": ports})
        return stage.run(inputs, toy_context(tmp_path / "-".join(ports))).outputs["student"]

    assert (run("one", "same").path / "assets" / "vocabulary.json").is_file()
    with pytest.raises(BadRecipe, match="gets two assets 'vocabulary' of different bytes, .* from"):
        run("one", "two")
    stage = train("student", {"data": "a.b", "notes": "c.d"}, {"student": ("notes",)})
    given = {"data": inputs["data"], "notes": inputs["data"]}
    with pytest.raises(BadRecipe, match="assets of 'student': port 'notes' holds data: neither a"):
        stage.run(given, toy_context(tmp_path / "n"))
