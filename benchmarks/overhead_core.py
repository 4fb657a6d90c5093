"""One distillation step, the same for every contestant: networks, batches, formula, plain loop."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

WIDTHS = {"teacher": 8, "student": 4}
BATCH, SIDE, CLASSES, BATCHES = 8, 16, 10, 16
TEMPERATURE, CE, KD = 4.0, 0.1, 0.9
LR, MOMENTUM, DECAY = 0.05, 0.9, 5e-4

Pair = tuple[Tensor, Tensor]  # images [B, 3, H, W], labels [B]


class Block(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm2(self.two(self.norm1(self.one(x)).relu())) + x).relu()


class Net(nn.Module):
    """Six residual blocks, small on purpose: arithmetic must not hide what the loop costs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(6)])
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.norm(self.stem(x)).relu()).mean((2, 3)))


def networks() -> tuple[Net, Net]:
    """(teacher, student), the same weights in every process."""
    torch.manual_seed(0)
    teacher, student = Net(WIDTHS["teacher"]), Net(WIDTHS["student"])
    return teacher.eval().requires_grad_(False), student.train()


def batches() -> list[Pair]:
    """Batches made beforehand, the same in every process."""
    rng = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(BATCH, 3, SIDE, SIDE, generator=rng),
            torch.randint(0, CLASSES, (BATCH,), generator=rng),
        )
        for _ in range(BATCHES)
    ]


def sgd(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)


def formula(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """0.1 cross-entropy + 0.9 T^2 KL(teacher || student), mean over the batch."""
    soft = nn.functional.kl_div(
        nn.functional.log_softmax(student_logits / TEMPERATURE, 1),
        nn.functional.softmax(teacher_logits / TEMPERATURE, 1),
        reduction="batchmean",
    )
    return CE * nn.functional.cross_entropy(student_logits, labels) + KD * TEMPERATURE**2 * soft


def train_bare(feed: Iterable[Pair], teacher: nn.Module, student: nn.Module) -> None:
    """The plain loop everything is compared with."""
    optimizer = sgd(student.parameters())
    for images, labels in feed:
        with torch.no_grad():
            target = teacher(images)
        loss = formula(student(images), target, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
