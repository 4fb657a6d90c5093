"""COCO's run lengths, against pycocotools and by hand."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from stillhouse.errors import BadData
from stillhouse_sam.formats import decoded, encoded, run_lengths


def test_run_lengths_are_those_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width = rng.integers(1, 60, 2)
        mask = rng.random((height, width)) < rng.random()
        mask = np.kron(mask, np.ones((rng.integers(1, 9), rng.integers(1, 9)), dtype=bool))
        rle = encoded(mask)
        theirs: Any = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        assert rle["counts"] == theirs["counts"].decode()
        assert (decoded(rle) == mask).all()
        assert (decoded({**rle, "counts": rle["counts"].encode()}) == mask).all()
        assert (decoded({**rle, "counts": run_lengths(rle["counts"]).tolist()}) == mask).all()
        assert run_lengths(rle["counts"])[1::2].sum() == int(coco_mask.area(theirs))


def test_run_lengths_by_hand() -> None:
    # columns of [[0, 1], [1, 1]]: one outside, then three inside; '1' and '3' are 1 and 3
    assert encoded(np.array([[0, 1], [1, 1]], dtype=np.uint8)) == {"size": [2, 2], "counts": "13"}
    # 37 is 100101: the low five bits and "more", 5 | 32 -> 'U', then 1 -> '1'
    assert run_lengths("U1").tolist() == [37]


@pytest.mark.parametrize("counts", ["1", "14", "~~", "o", [4, -1, 1], "o" * 30 + "1"], ids=str)
def test_what_is_no_run_length_is_refused(counts: Any) -> None:
    with pytest.raises(BadData, match="run lengths"):
        decoded({"size": [2, 2], "counts": counts})
