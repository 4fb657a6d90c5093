"""The learned maps of the objectives, as roles: modules from named tensors to named tensors.

Each reads what `Composed.feeds` gives it ("<role>.<output>", "id", "seed") and leaves its result
under the output's own name ("student.hint2" -> "hint2"). Arguments are JSON values.
B: samples of the batch. C: channels. D: embedding width. N: samples of the memory. K: negatives.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.features import negative_mean
from stillhouse.objectives.inputs import fraction, full, named, positive, product
from stillhouse.objectives.objective import Tensors


class ConvProjector(nn.Module):
    """1 x 1 convolution and BatchNorm from the student's to the teacher's channels, one a map.

    `relu` ends with a ReLU, for targets that come after one (FitNets' regressor).
    """

    def __init__(
        self,
        inputs: Sequence[str],
        channels: Sequence[int],
        targets: Sequence[int],
        relu: bool = False,
    ) -> None:
        super().__init__()
        _check_widths(inputs, channels, targets)
        self.inputs, self.relu = tuple(inputs), relu
        self.maps = nn.ModuleList(
            conv_bn(a, b, kernel=1) for a, b in zip(channels, targets, strict=True)
        )

    def forward(self, given: Tensors) -> dict[str, Tensor]:
        found = _apply(self.maps, self.inputs, given)
        return {name: F.relu(x) for name, x in found.items()} if self.relu else found


class LinearProjector(nn.Module):
    """A linear map from the student's to the teacher's embedding width, one an embedding."""

    def __init__(
        self, inputs: Sequence[str], channels: Sequence[int], targets: Sequence[int]
    ) -> None:
        super().__init__()
        _check_widths(inputs, channels, targets)
        self.inputs = tuple(inputs)
        self.maps = nn.ModuleList(nn.Linear(a, b) for a, b in zip(channels, targets, strict=True))

    def forward(self, given: Tensors) -> dict[str, Tensor]:
        return _apply(self.maps, self.inputs, given)


class OverhaulConnectors(nn.Module):
    """OFD's connectors (arXiv 1904.01866), a 1 x 1 convolution and BatchNorm each, and margins.

    Reads "<student>.<name>" of `inputs` and "<teacher>.<name>" of `teachers`, all before the ReLU.
    Leaves the connected maps and "margin1", "margin2", ...: E[x | x < 0] per channel of a Gaussian
    with the mean and deviation of the teacher's map, averaged over the steps trained so far.
    Differs: the paper reads both from the BatchNorm before the ReLU, where there is one; this gives
    the same numbers there and also holds for a map that adds a shortcut.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        teachers: Sequence[str],
        channels: Sequence[int],
        targets: Sequence[int],
    ) -> None:
        super().__init__()
        _check_widths(inputs, channels, targets)
        _check_widths(teachers, channels, targets)
        self.inputs, self.teachers = tuple(inputs), tuple(teachers)
        self.maps = nn.ModuleList(
            conv_bn(a, b, kernel=1) for a, b in zip(channels, targets, strict=True)
        )
        self.moments = nn.ModuleList(_Moments(width) for width in targets)

    def forward(self, given: Tensors) -> dict[str, Tensor]:
        outputs = _apply(self.maps, self.inputs, given)
        for i, (name, moments) in enumerate(zip(self.teachers, self.moments, strict=True)):
            outputs[f"margin{i + 1}"] = negative_mean(*moments(_input(given, name)))
        return outputs


class _Moments(nn.Module):
    """Mean and standard deviation per channel, averaged over every batch seen in training mode."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("square", torch.ones(channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Float[Tensor, "B C H W"]) -> tuple[Tensor, Tensor]:
        mean, square = self.get_buffer("mean"), self.get_buffer("square")
        if self.training:
            batches = self.get_buffer("batches").add_(1)
            x = full(x.detach())
            mean.lerp_(x.mean(dim=(0, 2, 3)), 1 / batches)
            square.lerp_(x.square().mean(dim=(0, 2, 3)), 1 / batches)
        return mean.clone(), (square - mean.square()).clamp_min(0).sqrt()


class MaskedGenerator(nn.Module):
    """MGD's generator (arXiv 2205.01529): the teacher's map from the student's, masked.

    Aligns the width by a 1 x 1 convolution, sets a random `ratio` of the channels of each sample to
    zero (channels, not positions: the form for classification), then convolution 3 x 3, ReLU,
    convolution 3 x 3. The mask comes from "seed"; none in evaluation mode. 0 <= ratio < 1.
    """

    def __init__(self, source: str, channels: int, target: int, ratio: float = 0.15) -> None:
        super().__init__()
        fraction("ratio", ratio)
        self.source, self.ratio = source, ratio
        self.align = nn.Conv2d(channels, target, 1)
        self.generate = nn.Sequential(
            nn.Conv2d(target, target, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(target, target, 3, padding=1),
        )

    def forward(self, given: Tensors) -> dict[str, Tensor]:
        x = self.align(_input(given, self.source))
        if self.training:
            rng = _generator(given)
            kept = torch.rand(x.shape[:2], generator=rng) >= self.ratio
            x = x * kept.to(x.device)[:, :, None, None]
        return {_output(self.source): self.generate(x)}


class ReviewFusion(nn.Module):
    """ReviewKD's residual framework with attention-based fusion (arXiv 2104.09044, ABF).

    `inputs` go from shallow to deep, an embedding [B, D] counting as a 1 x 1 map. From the deepest
    on, each level is brought to `width` channels, fused with the (upsampled) result of the deeper
    one by two attention maps, passed on, and brought to the teacher's channels. Maps keep the
    student's sizes; `hcl_loss` evens out a difference to the teacher's.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        channels: Sequence[int],
        targets: Sequence[int],
        width: int = 512,
    ) -> None:
        super().__init__()
        _check_widths(inputs, channels, targets)
        self.inputs = tuple(inputs)
        self.narrow = nn.ModuleList(conv_bn(a, width, kernel=1) for a in channels)
        self.attend = nn.ModuleList(nn.Conv2d(2 * width, 2, 1) for _ in channels[1:])
        self.widen = nn.ModuleList(conv_bn(width, b, kernel=3) for b in targets)

    def forward(self, given: Tensors) -> dict[str, Tensor]:
        levels = [narrow(_as_map(_input(given, name))) for name, narrow in self._zip(self.narrow)]
        carried = levels[-1]
        results = [carried]
        for level, attend in zip(levels[-2::-1], reversed(self.attend), strict=True):
            carried = F.interpolate(carried, size=level.shape[2:], mode="nearest")
            weights = torch.sigmoid(attend(torch.cat([level, carried], dim=1)))
            carried = level * weights[:, :1] + carried * weights[:, 1:]
            results.append(carried)
        wide = zip(self._zip(self.widen), reversed(results), strict=True)
        return {_output(name): widen(x) for (name, widen), x in wide}

    def _zip(self, modules: nn.ModuleList) -> list[tuple[str, nn.Module]]:
        return list(zip(self.inputs, modules, strict=True))


class ContrastiveMemory(nn.Module):
    """CRD's embeddings and memory (arXiv 1910.10699): a bank of every sample's embedding, a side.

    Reads `inputs` (the student's embedding, the teacher's), "id" (0 ... samples - 1) and "seed".
    Leaves for each side the scores of `crd_loss`, of its samples against the other side's bank:
    "<side>_positives" [B] and "<side>_negatives" [B, K]. In training mode the banks then move to
    momentum * old + (1 - momentum) * new, and the first batch fixes Z. 0 <= momentum < 1.
    Differs: negatives are any other sample (the paper's unlabelled case; its CIFAR runs take
    samples of other classes). Each process of a multi-process run keeps a bank of its own.
    """

    def __init__(
        self,
        student: int,
        teacher: int,
        samples: int,
        inputs: Sequence[str] = ("student.embedding", "teacher.embedding"),
        width: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        positive("temperature", temperature)
        positive("negatives", negatives)
        fraction("momentum", momentum)
        if samples < 2:
            raise BadSetting(f"samples must be >= 2 (got {samples})")
        self.inputs, self.samples, self.negatives = tuple(inputs), samples, negatives
        self.temperature, self.momentum = temperature, momentum
        self.embed = nn.ModuleList([nn.Linear(student, width), nn.Linear(teacher, width)])
        self.register_buffer("banks", F.normalize(torch.randn(2, samples, width), dim=2))
        self.register_buffer("log_z", torch.zeros(2))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    def forward(self, given: Tensors) -> dict[str, Tensor]:
        ids = named(given, "id", what="input", where="ContrastiveMemory")
        self._check_ids(ids)
        others = self._draw(ids, _generator(given))
        new = [
            F.normalize(full(embed(_input(given, name))), dim=1, eps=1e-6)
            for embed, name in zip(self.embed, self.inputs, strict=True)
        ]
        # a copy: the banks change in place below, and the backward pass needs them as they were
        banks = self.get_buffer("banks").clone()
        raw = [self._scores(new[side], banks[1 - side], ids, others) for side in (0, 1)]
        if self.training:
            self._remember(ids, new, raw)
        log_z = self.get_buffer("log_z").clone()
        outputs: dict[str, Tensor] = {}
        for side, name in enumerate(("student", "teacher")):
            scores = raw[side] - log_z[side]
            outputs[f"{name}_positives"] = scores[:, 0]
            outputs[f"{name}_negatives"] = scores[:, 1:]
        return outputs

    def _scores(
        self,
        new: Float[Tensor, "B D"],
        bank: Float[Tensor, "N D"],
        ids: Integer[Tensor, " B"],
        others: Integer[Tensor, "B K"],
    ) -> Float[Tensor, "B 1+K"]:
        # all N similarities, then a gather: the K rows themselves would take B K D numbers
        every = product(new, bank.mT) / self.temperature
        return every.gather(1, torch.cat([ids[:, None], others], dim=1))

    def _draw(self, ids: Integer[Tensor, " B"], rng: torch.Generator) -> Integer[Tensor, "B K"]:
        drawn = torch.randint(self.samples - 1, (len(ids), self.negatives), generator=rng)
        drawn = drawn.to(ids.device)
        return drawn + (drawn >= ids[:, None])

    @torch.no_grad()
    def _remember(self, ids: Tensor, new: Sequence[Tensor], raw: Sequence[Tensor]) -> None:
        banks, log_z, begun = (self.get_buffer(n) for n in ("banks", "log_z", "begun"))
        if not begun:
            for side in (0, 1):
                log_sum = raw[side].flatten().logsumexp(0)
                log_z[side] = log_sum + math.log(self.samples / raw[side].numel())
            begun.fill_(True)
        for side in (0, 1):
            mixed = self.momentum * banks[side, ids] + (1 - self.momentum) * new[side]
            banks[side, ids] = F.normalize(mixed, dim=1).to(banks.dtype)

    def _check_ids(self, ids: Tensor) -> None:
        if int(ids.max()) >= self.samples:
            raise BadData(
                f"ContrastiveMemory has rows for ids 0 to {self.samples - 1} (got id {ids.max()}); "
                "give it as many samples as the largest id of the data, plus 1"
            )


def conv_bn(channels: int, target: int, *, kernel: int) -> nn.Sequential:
    """A convolution that keeps the size, and BatchNorm."""
    conv = nn.Conv2d(channels, target, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(target))


def _apply(maps: nn.ModuleList, inputs: Sequence[str], given: Tensors) -> dict[str, Tensor]:
    return {
        _output(name): module(_input(given, name))
        for module, name in zip(maps, inputs, strict=True)
    }


def _input(given: Tensors, name: str) -> Tensor:
    return named(given, name, what="input", where="projector")


def _output(name: str) -> str:
    return name.rpartition(".")[2]


def _as_map(x: Tensor) -> Tensor:
    return x[:, :, None, None] if x.ndim == 2 else x


def _generator(given: Mapping[str, Tensor]) -> torch.Generator:
    return torch.Generator().manual_seed(int(_input(given, "seed")))


def _check_widths(inputs: Sequence[str], channels: Sequence[int], targets: Sequence[int]) -> None:
    if not len(inputs) == len(channels) == len(targets) or not inputs:
        raise BadSetting(
            "inputs, channels and targets must have one entry a map "
            f"(got {len(inputs)}, {len(channels)}, {len(targets)})"
        )
