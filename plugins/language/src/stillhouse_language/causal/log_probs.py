"""Log-probabilities of sequences under a causal language model.

B: sequences. S: tokens of the longest. T: tokens of all, packed one sequence after another. V:
vocabulary. D: width of the hidden states.
"""

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stillhouse.errors import BadData
from stillhouse.objectives.chunked import CHUNK, Head
from stillhouse.objectives.language import IGNORED


def sequence_log_probs(
    logits: Float[Tensor, "B S V"], tokens: Integer[Tensor, "B S"], mask: Bool[Tensor, "B S"]
) -> Float[Tensor, " B"]:
    """Log-probability of the tokens of `mask` given all before them, summed over each sequence, in
    nats: log pi(y | x) of Rafailov et al. 2023 (arXiv 2305.18290, eq. 7) where `mask` is y.

    logits[:, s] predict tokens[:, s + 1]. A masked-out token's logits have no part in value or
    gradient, be they infinite. Raises BadData where the first token is in the mask: nothing
    predicts it.
    """
    if bool(mask[:, 0].any()):
        raise BadData("log-probabilities: the mask holds the first token, which nothing predicts")
    counted = mask[:, 1:]
    labels = tokens[:, 1:].clamp_min(0).unsqueeze(-1)
    log_p = logits[:, :-1].log_softmax(-1).gather(-1, labels).squeeze(-1)
    return torch.where(counted, log_p, torch.zeros_like(log_p)).sum(1)


def packed_log_probs(
    head: Head,
    labels: Integer[Tensor, " T"],
    offsets: Integer[Tensor, " B+1"],
    *,
    chunk: int = CHUNK,
) -> Float[Tensor, " B"]:
    """`sequence_log_probs` from hidden states and head: logits of at most `chunk` tokens are in
    memory at a time, in the backward pass too.

    Sequence b is tokens offsets[b] to offsets[b + 1]; `labels` are the tokens that each position
    predicts, -100 where none counts. Nothing is computed for those.
    """
    kept = (labels != IGNORED).nonzero()[:, 0]
    rows = torch.bucketize(kept, offsets[1:], right=True)
    hidden, weight = head.hidden[kept], head.weight

    def part(given: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
        one = Head(hidden=given, weight=weight, scale=head.scale, softcap=head.softcap)
        logits = one.logits().float()
        return logits.log_softmax(-1).gather(-1, wanted[:, None])[:, 0]

    found = hidden.new_zeros(len(offsets) - 1, dtype=torch.float32)
    for index in torch.arange(len(kept), device=kept.device).split(chunk):
        wanted = labels[kept[index]]
        log_p = checkpoint(part, hidden[index], wanted, weight, use_reentrant=False)
        assert isinstance(log_p, Tensor)
        found = found.index_add(0, rows[index], log_p)
    return found
