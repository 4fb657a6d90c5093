"""COCO's average precision of a SAM's masks, by pycocotools, at the images' own resolution."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.data.data import Data
from stillhouse.errors import BadData
from stillhouse.metrics import Metric, Score
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models, Tensors
from stillhouse.work import Work
from stillhouse_sam.annotated import Annotation, annotations, segments
from stillhouse_sam.formats import encoded
from stillhouse_sam.prompting import enlarged, on_device, predict_from_boxes, threshold_of

# places among COCOeval's twelve numbers
STATS = {"ap": 0, "ap_small": 3, "ap_medium": 4, "ap_large": 5}
LABELS = {"ap": "AP", "ap_small": "AP, small", "ap_medium": "AP, medium", "ap_large": "AP, large"}


@dataclass(frozen=True, kw_only=True)
class CocoAp(Metric):
    """ap over IoU 0.50:0.95, and ap_small, ap_medium, ap_large of objects by area (below 32^2, up
    to 96^2, above, in pixels of the image): fractions, of COCO's protocol for masks.

    Each object that is no crowd is prompted by its TRUE box and answered by one mask of its true
    category, scored by the predicted IoU; so these numbers are not comparable with published ones,
    which prompt with the boxes and scores of a detector (ViTDet-H). A size without an object has no
    number. `prompts` are decoded at once.
    """

    role: str = "student"
    prompts: int = 16

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        module = named(models, self.role, what="role", where="COCO AP")
        known, found = annotations(data), list[Record]()
        numbers = {name: number for number, name in enumerate(_categories(known), 1)}
        with torch.no_grad():
            for number, rows in enumerate(data.batches(1, rng=None), 1):
                answers = self._answers(module, on_device(rows, module), known[number - 1])
                things = segments(known[number - 1])
                for thing, (segmentation, score) in zip(things, answers, strict=True):
                    category = numbers[thing["category"]]
                    found.append(
                        {
                            "image_id": number,
                            "category_id": category,
                            "segmentation": segmentation,
                            "score": score,
                        }
                    )
        if not found:
            raise BadData("COCO AP: the evaluation data hold no object; label some masks")
        return _averages(_dataset(known, numbers), found)

    def scores(self) -> Sequence[Score]:
        return [
            Score(name=name, better="higher", unit="%", label=label)
            for name, label in LABELS.items()
        ]

    def _answers(
        self, module: nn.Module, rows: Tensors, image: Annotation
    ) -> "list[tuple[Mapping[str, Any], float]]":  # Any: size and counts
        """Run lengths and predicted IoU of an image's answers."""
        things = segments(image)
        if not things:
            return []
        original = (image["height"], image["width"])
        size = (int(rows["sizes"][0, 0]), int(rows["sizes"][0, 1]))
        frame = rows["images"].shape[-1]
        boxes = _boxes([thing["rle"] for thing in things], size, original).to(rows["images"].device)
        images = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        logits, iou = predict_from_boxes(module, rows, images, boxes, at_once=self.prompts)
        answers: list[tuple[Mapping[str, Any], float]] = []
        for some in logits.split(self.prompts):
            whole = enlarged(some, frame=frame, size=size, original=original)
            for mask in (whole > threshold_of(module)).cpu().numpy():
                answers.append((encoded(mask), iou[len(answers)].item()))
        return answers


Record = dict[str, Any]  # Any: COCO's JSON


def _boxes(rles: Any, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Boxes [P, 4] (xyxy, in pixels of the frame) around the masks of an image."""
    from pycocotools.mask import toBbox

    x, y, width, height = torch.from_numpy(toBbox(rles)).float().unbind(1)
    across, down = size[1] / original[1], size[0] / original[0]
    return torch.stack([x * across, y * down, (x + width) * across, (y + height) * down], dim=1)


def _categories(known: Sequence[Annotation]) -> list[str]:
    return sorted({thing["category"] for image in known for thing in image["objects"]})


def _dataset(known: Sequence[Annotation], numbers: Mapping[str, int]) -> Record:
    """The truth as COCO writes it; a crowd is neither right nor wrong to find."""
    truth = [
        {
            "image_id": number,
            "category_id": numbers[thing["category"]],
            "segmentation": thing["rle"],
            "area": thing["area"],
            "iscrowd": thing["crowd"],
        }
        for number, image in enumerate(known, 1)
        for thing in image["objects"]
        if thing["area"] > 0
    ]
    return {
        "images": [
            {"id": number, "height": image["height"], "width": image["width"]}
            for number, image in enumerate(known, 1)
        ],
        "categories": [{"id": one, "name": name} for name, one in numbers.items()],
        "annotations": [{"id": number, **thing} for number, thing in enumerate(truth, 1)],
    }


def _averages(dataset: Record, found: list[Record]) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    given: Any = (dataset, found)  # Any: its types know the files of COCO alone
    # it prints all it does
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = given[0]
        truth.createIndex()
        scored = COCOeval(truth, truth.loadRes(given[1]), "segm")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    # -1 where there is no object of that size
    values = {name: float(scored.stats[place]) for name, place in STATS.items()}
    return {name: value for name, value in values.items() if value >= 0}
