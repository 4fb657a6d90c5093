import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from stillhouse.data.data import TensorData
from stillhouse.errors import BadData, BadSetting, MissingData, UnknownName
from stillhouse.work import Work
from stillhouse_clip.bilingual import ReadPairs, bilingual_scenes, sentences
from stillhouse_clip.pairing import PairUp, PickText, Tokens, covered
from stillhouse_clip.scenes import TRAIN, classes


def png(grey: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (10, 8), (grey, grey, grey)).save(stream, "PNG")
    return stream.getvalue()


def folder(root: Path, **columns: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        rows = len(next(iter(columns.values())))
        images = [{"bytes": png(40 * i), "path": f"{i}.png"} for i in range(rows)]
        pq.write_table(pa.table({"image": images, **columns}), root / f"{part}.parquet")
    return root


def read(*sources: Any, languages: tuple[str, ...] = ("en", "zh"), size: int = 8) -> dict[str, Any]:
    ports: dict[str, Any] = dict(zip(("source", "more"), sources, strict=False))
    return dict(ReadPairs(size=size, languages=languages)(ports, work=Work()))


def test_two_sources_keep_their_labels_apart(tmp_path: Path) -> None:
    photos = folder(
        tmp_path / "photos",
        captions_en=[["a dog", "one dog"], ["a cat", "one cat"]],
        captions_zh=[["狗", "一只狗"], ["猫", "一只猫"]],
    )
    named = folder(tmp_path / "named", name_en=["sun", "moon", "star"], name_de=["a", "b", "c"])
    found = read(photos, named)
    images, texts = found["images"], found["texts"]
    assert images["images"].shape == (5, 3, 8, 8)
    assert images["labels"].tolist() == [0, 1, 2, 3, 4]
    assert images["source"].tolist() == [0, 0, 1, 1, 1]
    assert texts["text"][:4] == ["a dog", "one dog", "狗", "一只狗"]
    assert texts["labels"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 3, 4]
    assert texts["language"].tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0]
    assert texts["source"].tolist() == [0] * 8 + [1] * 3
    assert len(found["test_images"]["labels"]) == 5


def test_scenes_have_a_sentence_of_each_class_and_language() -> None:
    arrays = bilingual_scenes()
    found = read(arrays, size=32)
    assert len(found["images"]["labels"]) == TRAIN * 120
    assert len(found["texts"]["text"]) == 2 * 120
    for language in ("en", "zh", "fr", "ru"):
        assert len(set(sentences(language))) == len(classes())
    at = [i for i, scene in enumerate(classes()) if (scene.shape, scene.colour) == ("ring", "blue")]
    assert all("圆环" in sentences("zh")[i] and "蓝色" in sentences("zh")[i] for i in at)
    with pytest.raises(UnknownName, match="unknown language 'it'"):
        sentences("it")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"name_en": ["a", "b"]}, "no text in zh in the data"),
        ({"name_de": ["a", "b"]}, "needs image and captions_<language> or name_<language>"),
        ({"name_en": ["a", " "], "name_zh": ["a", "b"]}, "row 1: name_en: an empty text"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(BadData, match=message):
        read(folder(tmp_path, **columns))


def test_a_file_that_is_missing_or_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="train.parquet not found"):
        read(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(BadData, match="cannot be read as parquet"):
        read(tmp_path)
    with pytest.raises(BadSetting, match="name each once"):
        ReadPairs(size=8, languages=("en", "en"))


def rows(labels: list[int]) -> TensorData:
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None]
    return TensorData(
        {"images": images.expand(-1, 3, 2, 2).clone(), "labels": torch.tensor(labels)}
    )


def texts(labels: list[int], languages: list[int]) -> TensorData:
    tokens = torch.arange(len(labels))[:, None].expand(-1, 4).clone()
    return TensorData(
        {"tokens": tokens, "labels": torch.tensor(labels), "language": torch.tensor(languages)}
    )


def paired(make: PairUp, images: TensorData, tokens: TensorData, seed: int = 0) -> dict[str, Any]:
    found = make({"images": images, "tokens": tokens}, work=Work.seeded(seed))
    return dict(found["train"])


def test_an_image_gets_texts_of_its_label_and_of_all_languages_in_turn() -> None:
    labels, languages = [0, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 1]
    found = paired(PairUp(copies=4), rows([0, 1, 1]), texts(labels, languages))
    assert found["tokens"].shape == (3, 4, 4)
    for label, chosen in zip([0, 1, 1], found["tokens"][:, :, 0].tolist(), strict=True):
        assert {labels[row] for row in chosen} == {label}
        turns = [languages[row] for row in chosen]
        assert turns in ([0, 1, 0, 1], [1, 0, 1, 0])
    assert torch.equal(
        found["tokens"],
        paired(PairUp(copies=4), rows([0, 1, 1]), texts(labels, languages))["tokens"],
    )


def test_half_of_the_labels_are_lacked_and_all_data_agree_on_which() -> None:
    labels = list(range(100))
    every = covered(torch.tensor(labels), 0.5)
    assert 35 <= int(every.sum()) <= 65
    assert torch.equal(covered(torch.tensor(labels[::-1]), 0.5), every.flip(0))
    tokens = texts(labels, [0] * 100)
    part = paired(PairUp(copies=1, part="covered"), rows(labels), tokens)
    rest = paired(PairUp(copies=1, part="lacking"), rows(labels), tokens)
    assert part["labels"].tolist() == [label for label in labels if every[label]]
    assert sorted([*part["labels"].tolist(), *rest["labels"].tolist()]) == labels


def test_an_image_without_a_text_is_named() -> None:
    with pytest.raises(BadData, match="image 1 has no text"):
        paired(PairUp(copies=2), rows([0, 7]), texts([0], [0]))


def test_views_show_each_text_once_and_a_batch_mixes_them() -> None:
    tokens = torch.arange(4)[None, :, None].expand(50, -1, 3).clone()
    batch = {"images": torch.rand(50, 3, 4, 4), "tokens": tokens, "id": torch.arange(50)}
    seen = []
    for view in range(4):
        found = PickText()({**batch, "view": torch.full((50,), view)})
        assert found["tokens"].shape == (50, 3)
        seen.append(found["tokens"][:, 0])
        mirrored = (found["images"] != batch["images"]).flatten(1).any(1)
        assert 10 <= int(mirrored.sum()) <= 40
        assert torch.equal(found["images"][mirrored], batch["images"][mirrored].flip(-1))
    assert torch.equal(torch.stack(seen).sort(0).values, torch.arange(4)[:, None].expand(-1, 50))
    assert len(set(seen[0].tolist())) == 4


def test_a_text_over_the_context_is_named(tmp_path: Path) -> None:
    from stillhouse.artifact import Built, Model
    from stillhouse_clip.dual import text_tower
    from stillhouse_clip.vocabulary import counted_unigram, write_tokenizer

    file = write_tokenizer(tmp_path / "tokenizer.json", counted_unigram(["a dog", "a dog runs"]))
    tower = Built(
        spec=Model(build=text_tower), module=torch.nn.Identity(), assets={"tokenizer": file}
    )
    data = TensorData(
        {
            "text": ["a dog", "a dog runs a dog runs a dog runs"],
            **{name: torch.zeros(2).long() for name in ("labels", "language", "source")},
        }
    )
    with pytest.raises(BadData, match="'a dog runs a dog runs a dog runs' has .* more than the 6"):
        Tokens(length=6)({"texts": data, "tower": tower}, work=Work())
    found = Tokens(length=60)({"texts": data, "tower": tower}, work=Work())["train"]
    tokens = found["tokens"]
    assert isinstance(tokens, torch.Tensor)
    assert len(tokens) == 2
