"""On the real data of data/language, where they have been pulled."""

from pathlib import Path

import pytest

from stillhouse.runs import project_root
from stillhouse.work import Work
from stillhouse_language.arte.published import PUBLISHED
from stillhouse_language.arte.reading import PARTS, ReadTasks
from stillhouse_language.readers import read_texts

DATA = project_root(Path(__file__).parent) / "data" / "language"
COUNTS = {"seeds": 3, "validation": 40, "test": 60, "pool": 72}

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(
        not DATA.is_dir(), reason=f"{DATA} not found. Run: uv run dvc pull data.dvc"
    ),
]


def test_every_published_task_is_read_whole() -> None:
    parts = ReadTasks(tasks=tuple(PUBLISHED), counts=COUNTS)({"source": DATA}, work=Work.seeded(0))
    for part in PARTS:
        assert len(parts[part]["question"]) == COUNTS[part] * len(PUBLISHED)  # pyright: ignore
        assert all(parts[part]["question"])  # pyright: ignore
        assert all(parts[part]["answer"])  # pyright: ignore


def test_the_corpus_of_autodistil_has_texts() -> None:
    lines = list(read_texts(DATA / "lm" / "wikitext2-valid.txt"))
    sentences = list(read_texts(DATA / "glue" / "SST-2" / "train.tsv", column="sentence"))
    assert len(lines) > 1000
    assert len(sentences) > 5000
