"""The objective of sam/tinysam: a SAM that learns masks, from a teacher or alone.

B: images. M: masks kept an image. N: prompts of a step. C: channels. G: side of the embedding.
L: side of the low-resolution masks. S: side of the frame in pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from stillhouse.errors import BadSetting, UnknownName
from stillhouse.objectives.inputs import not_negative
from stillhouse.objectives.objective import Models, Phase, Tensors
from stillhouse_sam.objectives import (
    FOCAL_SHARE,
    embedding_loss,
    hard_mask_weight,
    mask_iou,
    output_loss,
    prediction_loss,
    token_loss,
)
from stillhouse_sam.prompts import (
    error_points,
    in_frame,
    points_in,
    sample_hard_points,
    unpack_masks,
)

TERMS = ("embedding", "tokens", "output")
NOT_THERE = -100.0  # a logit
SHIFT = 20 / 1024  # of the frame: the farthest that an edge of a box is moved
MORE = 0.5  # of the steps that have more clicks, where there are any


@dataclass(frozen=True, kw_only=True)
class FullStage:
    """L = alpha L_embedding + beta L_token + gamma sum_i H_i L_output^i + L_mask + L_ious (Shu et
    al. 2025, arXiv 2312.13789, sec. 3.1), of which `distil` names the terms that read the teacher.

    Roles: "encoder" and "decoder" learn; "prompts" reads prompts for both sides, so that a student
    has the teacher's, frozen; "teacher-encoder" and "teacher-decoder" run as `distil` needs
    them. The batch has images, sizes [B, 2], masks uint8 [B, M, L, L / 8], mask_valid [B, M] and
    boxes [B, M, 4]; an image without a mask takes part in the embedding term only.

    A step draws `prompts_per_image` valid masks an image, with replacement; a mask is prompted by
    its box with probability `box_share`, else by a point of it. Each side of a box is moved by a
    normal number of standard deviation `box_noise` of the box's width or height, at most 20/1024 of
    the frame (SAM, arXiv 2304.02643, app. A). With hard prompts (`hard_rounds` > 0) the points are
    drawn anew, a number of times uniform in 0..hard_rounds, from what the student's own mask misses
    (`sample_hard_points`); the new point replaces the old one. In half of the steps 1 to
    `more_clicks` further points, a number for all prompts of the step, are given together with the
    prompt: from where the mask of that prompt errs, with label 1 in what it misses and 0 in what it
    wrongly takes. Sampling passes carry no gradient; the embedding is computed once.

    Reconstruction (the authors released no training): the weights of the terms, the boxes beside
    the points, that points of hard prompts replace and have label 1, the sum over prompts divided
    by N, that the student's mask is the one of the highest predicted IoU. `more_clicks` is SAM's
    interactive training (app. A) with one sampling pass in the place of one a click. Raises
    BadSetting for a setting that would have no effect.
    """

    phases: Mapping[str, Phase]
    distil: tuple[str, ...] = TERMS
    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0
    mask_weight: float = 1.0
    iou_weight: float = 1.0
    focal: float = FOCAL_SHARE
    prompts_per_image: int = 4
    box_share: float = 0.5
    box_noise: float = 0.1
    hard_rounds: int = 0
    more_clicks: int = 0
    hard_weighting: bool = False
    eps: float = 1e-3

    def __post_init__(self) -> None:
        for name in self.distil:
            if name not in TERMS:
                raise UnknownName("term", name, TERMS, where="distil")
        for name in ("alpha", "beta", "gamma", "mask_weight", "iou_weight", "focal", "box_noise"):
            not_negative(name, getattr(self, name))
        for name, least in (("prompts_per_image", 1), ("hard_rounds", 0), ("more_clicks", 0)):
            if getattr(self, name) < least:
                raise BadSetting(f"{name} must be >= {least} (got {getattr(self, name)})")
        if not 0 <= self.box_share <= 1:
            raise BadSetting(f"box_share must be >= 0 and <= 1 (got {self.box_share})")
        if self.hard_weighting and "output" not in self.distil:
            raise BadSetting("hard_weighting weighs the output term; add 'output' to distil")
        for name in ("hard_rounds", "more_clicks"):
            if getattr(self, name) and not self._decodes():
                raise BadSetting(f"{name} > 0, but no term decodes a mask; add one, or set it to 0")
        if self.hard_rounds and self.box_share == 1:
            raise BadSetting("hard_rounds > 0 redraws points; set box_share below 1")

    def terms(
        self,
        phase: str,
        models: Models,
        batch: Tensors,
        *,
        step: int,
        steps: int,
        rng: Generator,
    ) -> Tensors:
        embedding = models["encoder"](batch)["embedding"]
        terms: dict[str, Tensor] = {}
        taught = None
        if self.distil:
            with torch.no_grad():
                taught = models["teacher-encoder"](batch)["embedding"]
        if taught is not None and "embedding" in self.distil:
            inside = real_part(batch, embedding.shape[-1])
            terms["embedding"] = self.alpha * embedding_loss(embedding, taught, inside)
        if self._decodes():
            terms |= self._prompted(models, batch, embedding, taught, rng)
        # an image without masks still has to give a loss that can be differentiated
        return terms or {"mask": 0.0 * embedding.sum()}

    def _decodes(self) -> bool:
        truth = self.mask_weight > 0 or self.iou_weight > 0
        return truth or not {"tokens", "output"}.isdisjoint(self.distil)

    def _prompted(
        self,
        models: Models,
        batch: Tensors,
        embedding: Tensor,
        taught: Tensor | None,
        rng: Generator,
    ) -> dict[str, Tensor]:
        masks = unpack_masks(batch["masks"])
        real = real_part(batch, masks.shape[-1])
        masks = masks & real[:, None]
        # a mask that lies in the last, broken cell of a mirrored image is none
        valid = batch["mask_valid"] & masks.flatten(2).any(2)
        if not bool(valid.any()):
            return {}
        chosen = self._chosen(valid, rng)
        rows, truth = chosen[0], masks[chosen]
        inside, ours = real[rows], embedding[rows]
        side = batch["images"].shape[-1] / truth.shape[-1]
        prompt = self._prompt(models, batch, chosen, truth, ours.detach(), side, rng)
        prompt = self._clicked(models, prompt, truth, inside, ours.detach(), side, rng)
        found = _real(models["decoder"]({"embedding": ours, **prompt}), inside)
        mask, iou = prediction_loss(found["logits"], found["iou"], truth, focal=self.focal)
        terms = {"mask": self.mask_weight * mask, "iou": self.iou_weight * iou}
        if taught is None or {"tokens", "output"}.isdisjoint(self.distil):
            return terms
        with torch.no_grad():
            answer = models["teacher-decoder"]({"embedding": taught[rows], **prompt})
            theirs = _real(answer, inside)
        if "tokens" in self.distil:
            terms["tokens"] = self.beta * token_loss(found["tokens"], theirs["tokens"])
        if "output" in self.distil:
            weight = self._weight(found, theirs, truth)
            loss = output_loss(found["logits"], theirs["logits"], weight, inside)
            terms["output"] = self.gamma * loss
        return terms

    def _weight(self, found: Tensors, theirs: Tensors, truth: Tensor) -> Tensor:
        """[N]; ones without hard mask weighting."""
        if not self.hard_weighting:
            return torch.ones(len(truth), device=truth.device)
        teacher, student = (mask_iou(chosen_mask(side), truth) for side in (theirs, found))
        return hard_mask_weight(teacher, student, eps=self.eps)

    def _chosen(self, valid: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """Rows and columns [N] of masks, `prompts_per_image` of each image that has one."""
        drawn = torch.rand(len(valid), self.prompts_per_image, generator=rng).to(valid.device)
        counts = valid.sum(1, keepdim=True)
        rank = (drawn * counts).floor().clamp_max(counts - 1) + 1
        columns = torch.searchsorted(valid.cumsum(1).double(), rank.double())
        some = counts.squeeze(1) > 0
        rows = torch.arange(len(valid), device=valid.device)[:, None].expand_as(columns)
        return rows[some].flatten(), columns[some].flatten()

    def _prompt(
        self,
        models: Models,
        batch: Tensors,
        chosen: tuple[Tensor, Tensor],
        truth: Tensor,
        embedding: Tensor,
        side: float,
        rng: Generator,
    ) -> dict[str, Tensor]:
        """sparse, dense and position of the prompts that the step learns from."""
        frame = batch["images"].shape[-1]
        boxed = (torch.rand(len(truth), generator=rng) < self.box_share).to(truth.device)
        boxes = jittered(batch["boxes"][chosen], self.box_noise, SHIFT * frame, rng=rng)
        points = points_in(truth, rng=rng)
        free = (~boxed).nonzero().squeeze(1)
        rounds = int(torch.randint(self.hard_rounds + 1, (), generator=rng))
        with torch.no_grad():
            for _ in range(rounds if len(free) else 0):
                prompt = _single(models, points[free], side)
                found = models["decoder"]({"embedding": embedding[free], **prompt})
                missed = sample_hard_points(truth[free], chosen_mask(found), rng=rng)
                points = points.index_copy(0, free, missed)
        prompt = _single(models, points, side)
        if not bool(boxed.any()):
            return prompt
        # a point and its padding are two tokens, as the corners of a box are
        corners = models["prompts"]({"boxes_prompt": boxes})["sparse"]
        sparse = torch.where(boxed[:, None, None], corners, prompt["sparse"])
        return {**prompt, "sparse": sparse}

    def _clicked(
        self,
        models: Models,
        prompt: dict[str, Tensor],
        truth: Tensor,
        inside: Tensor,
        embedding: Tensor,
        side: float,
        rng: Generator,
    ) -> dict[str, Tensor]:
        """The prompt with as many further points as the step draws."""
        if not self.more_clicks or float(torch.rand((), generator=rng)) >= MORE:
            return prompt
        count = int(torch.randint(1, self.more_clicks + 1, (), generator=rng))
        with torch.no_grad():
            found = _real(models["decoder"]({"embedding": embedding, **prompt}), inside)
        points, labels = error_points(truth, chosen_mask(found), count, rng=rng)
        clicks = _encoded(models, points, labels, side)["sparse"]
        # the last token pads points that have no box beside them; the prompt brings what it needs
        return {**prompt, "sparse": torch.cat([prompt["sparse"], clicks[:, :-1]], dim=1)}


def jittered(boxes: Tensor, noise: float, most: float, *, rng: Generator) -> Tensor:
    """Boxes [N, 4] (left, top, right, bottom), each edge moved by a normal number: standard
    deviation `noise` of the box's width or height, at most `most` pixels either way.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    drawn = torch.randn(boxes.shape, generator=rng).to(boxes)
    return boxes + (noise * sides * drawn).clamp(-most, most)


def _encoded(models: Models, points: Tensor, labels: Tensor, side: float) -> dict[str, Tensor]:
    """The prompt of points [N, K, 2], pixels of the mask, with labels [N, K]; `side` is how many
    pixels of the frame one has.
    """
    return dict(models["prompts"]({"points": in_frame(points, side), "labels": labels}))


def _single(models: Models, points: Tensor, side: float) -> dict[str, Tensor]:
    """The prompt of one foreground point [N, 2] each."""
    return _encoded(models, points[:, None], torch.ones_like(points[:, :1]), side)


def _real(found: Tensors, inside: Tensor) -> dict[str, Tensor]:
    """What a decoder gave, its logits certain to be no mask outside the image: padding is in
    no mask, whatever the decoder draws there, and costs nothing.
    """
    return {**found, "logits": found["logits"].masked_fill(~inside[:, None], NOT_THERE)}


def chosen_mask(found: Tensors) -> Tensor:
    """The mask [N, L, L] of the highest predicted IoU, detached."""
    best = found["iou"].detach().argmax(1)
    return found["logits"].detach()[torch.arange(len(best), device=best.device), best] > 0


def real_part(batch: Tensors, side: int) -> Tensor:
    """Which cells [B, side, side] have their middle in the real part of the frame; of a batch with
    images and sizes.
    """
    sizes = batch["sizes"] * (side / batch["images"].shape[-1])
    middle = torch.arange(side, device=sizes.device) + 0.5
    rows = middle[None, :, None] < sizes[:, 0, None, None]
    return rows & (middle[None, None, :] < sizes[:, 1, None, None])
