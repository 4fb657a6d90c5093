"""Direct preference optimization: the loss, and the objective that trains a teacher by it.

B: preference pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from stillhouse.objectives import Positive, SampleMean, check_declared
from stillhouse.objectives.chunked import CHUNK
from stillhouse.objectives.objective import Models, Phase, Tensors
from stillhouse_language.causal.log_probs import packed_log_probs
from stillhouse_language.causal.model import head_of

CHOSEN, REJECTED = "chosen", "rejected"


def dpo_loss(
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    ref_chosen: Float[Tensor, " B"],
    ref_rejected: Float[Tensor, " B"],
    *,
    beta: Positive,
) -> SampleMean:
    """DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7; ARTE, arXiv 2406.19227, step 3):
    -log sigmoid(beta ((chosen - ref_chosen) - (rejected - ref_rejected))) of sequence
    log-probabilities, in nats; mean over the pairs, the reference's are constants.
    """
    check_declared(dpo_loss, beta=beta)
    margin = (chosen - ref_chosen.detach()) - (rejected - ref_rejected.detach())
    return -F.logsigmoid(beta * margin).mean()


@dataclass(frozen=True, kw_only=True)
class Dpo:
    """Trains `role` by `dpo_loss` on pairs: an objective of the kernel.

    A batch holds, for each of "chosen" and "rejected": ragged columns `<which>` (tokens of prompt
    and response), `<which>.labels` (the token that each position predicts; -100 where it is the
    prompt's), and `<which>.reference`, the reference model's log-probability of the response. Both
    sides go through the model in one batch. Logits are computed by chunks.
    """

    phases: Mapping[str, Phase]
    role: str = "teacher"
    beta: float = 0.1
    chunk: int = field(default=CHUNK)

    def __post_init__(self) -> None:
        check_declared(dpo_loss, beta=self.beta)

    @property
    def sample_mean(self) -> bool:
        """A batch may go in micro-batches."""
        return True

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
        chosen, rejected = pair_log_probs(models[self.role], batch, chunk=self.chunk)
        references = (batch[f"{which}.reference"].to(chosen) for which in (CHOSEN, REJECTED))
        return {"dpo": dpo_loss(chosen, rejected, *references, beta=self.beta)}


def pair_log_probs(
    model: torch.nn.Module, batch: Tensors, *, chunk: int = CHUNK
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Log-probabilities of the chosen and of the rejected responses, by one forward of both."""
    sides = (CHOSEN, REJECTED)
    offsets = [batch[f"{side}_offsets"] for side in sides]
    whole = torch.cat([offsets[0], offsets[0][-1] + offsets[1][1:]])
    tokens = torch.cat([batch[side] for side in sides])
    labels = torch.cat([batch[f"{side}.labels"] for side in sides])
    found = model({"tokens": tokens, "tokens_offsets": whole})
    both = packed_log_probs(head_of(model, found), labels, whole, chunk=chunk)
    count = len(offsets[0]) - 1
    return both[:count], both[count:]
