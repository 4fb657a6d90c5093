"""DPO and log-probabilities: by hand, and as trl and transformers compute them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.chunked import Head
from stillhouse.objectives.objective import Optimizer, Phase
from stillhouse_language.arte.objectives import Dpo, dpo_loss, pair_log_probs
from stillhouse_language.causal.log_probs import packed_log_probs, sequence_log_probs
from stillhouse_language.causal.ragged import ragged
from stillhouse_language.causal.samples import config, model, tokenizer
from stillhouse_language.causal.tokens import labels_of


def test_log_probs_by_hand() -> None:
    # two tokens; logits ln 3 against 0: 3/4 and 1/4
    logits = torch.tensor([[[math.log(3), 0.0], [0.0, 0.0], [9.0, -9.0]]])
    tokens = torch.tensor([[1, 0, 1]])
    mask = torch.tensor([[False, True, True]])
    found = sequence_log_probs(logits, tokens, mask)
    assert found.tolist() == pytest.approx([math.log(3 / 4) + math.log(1 / 2)])


def test_a_masked_token_has_no_part_be_it_infinite() -> None:
    logits = torch.tensor([[[0.0, 0.0], [0.0, -torch.inf], [0.0, 0.0]]], requires_grad=True)
    tokens, mask = torch.tensor([[0, 1, 1]]), torch.tensor([[False, True, False]])
    found = sequence_log_probs(logits, tokens, mask)
    found.sum().backward()
    assert found.item() == pytest.approx(math.log(0.5))
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_the_first_token_has_no_log_probability() -> None:
    with pytest.raises(BadData, match="first token"):
        sequence_log_probs(torch.zeros(1, 2, 3), torch.zeros(1, 2).long(), torch.ones(1, 2) > 0)


def rows() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config()["vocab_size"], (3, 11), generator=rng)
    mask = torch.zeros(3, 11, dtype=torch.bool)
    mask[0, 4:9], mask[1, 1:], mask[2, 10:] = True, True, True
    return tokens, mask


def test_log_probs_are_those_of_transformers_own_loss() -> None:
    network, (tokens, mask) = model().network, rows()
    found = sequence_log_probs(network(input_ids=tokens).logits, tokens, mask)
    for row in range(3):
        labels = tokens[row].where(mask[row], -100)
        loss = network(input_ids=tokens[row : row + 1], labels=labels[None]).loss
        count = int(mask[row].sum())
        assert found[row].item() == pytest.approx(-loss.item() * count, abs=1e-5)


def test_log_probs_are_those_of_trl() -> None:
    from trl.trainer.utils import selective_log_softmax

    network, (tokens, mask) = model().network, rows()
    logits = network(input_ids=tokens).logits
    theirs = selective_log_softmax(logits[:, :-1], tokens[:, 1:]) * mask[:, 1:]
    ours = sequence_log_probs(logits, tokens, mask)
    torch.testing.assert_close(ours, theirs.sum(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [1, 4, 512])
def test_packed_log_probs_and_their_gradients_are_those_of_whole_logits(chunk: int) -> None:
    lm, (tokens, mask) = model(), rows()
    whole = sequence_log_probs(lm({"tokens": tokens})["logits"], tokens, mask)
    wanted = torch.autograd.grad((whole * torch.tensor([1.0, 2.0, 3.0])).sum(), lm.head.weight)
    lengths = [9, 11, 11]
    pack = ragged([tokens[row, :length].tolist() for row, length in enumerate(lengths)])
    labels = [
        labels_of(int(mask[row].nonzero()[0]), tokens[row, :length].tolist())
        for row, length in enumerate(lengths)
    ]
    found = lm({"tokens": pack.values, "tokens_offsets": pack.offsets})
    head = Head(hidden=found["hidden"], weight=found["head"])
    flat = torch.tensor([label for row in labels for label in row])
    packed = packed_log_probs(head, flat, pack.offsets, chunk=chunk)
    torch.testing.assert_close(packed, whole, atol=1e-5, rtol=0)
    gradient = torch.autograd.grad((packed * torch.tensor([1.0, 2.0, 3.0])).sum(), lm.head.weight)
    torch.testing.assert_close(gradient[0], wanted[0], atol=1e-4, rtol=1e-4)


def test_dpo_by_hand() -> None:
    # margin (-1 + 2) - (-3 + 1) = 3, beta 0.5: -ln sigmoid(1.5)
    found = dpo_loss(*(torch.tensor([x]) for x in (-1.0, -3.0, -2.0, -1.0)), beta=0.5)
    assert found.item() == pytest.approx(math.log(1 + math.exp(-1.5)))


def test_dpo_of_a_teacher_that_is_its_reference_is_ln_2() -> None:
    x, y = torch.randn(4), torch.randn(4)
    assert dpo_loss(x, y, x, y, beta=0.1).item() == pytest.approx(math.log(2))


def test_dpo_leaves_the_reference_alone() -> None:
    given = [torch.randn(3, requires_grad=True) for _ in range(4)]
    dpo_loss(*given, beta=0.1).backward()
    assert [x.grad is not None for x in given] == [True, True, False, False]
    assert given[0].grad is not None
    assert bool((given[0].grad < 0).all())  # a larger log-probability of the chosen: less loss


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_dpo_refuses_beta(beta: float) -> None:
    with pytest.raises(BadSetting, match="beta must be"):
        dpo_loss(*(torch.zeros(1) for _ in range(4)), beta=beta)


PAIRS = [
    ("the cat", " sat on a mat", " on on"),
    ("a mat", " sat", " the cat sat on the mat"),
    ("the", " cat cat", " a a a"),
]


def sides(which: int) -> dict[str, Any]:
    read, name = tokenizer(), ("chosen", "rejected")[which]
    tokens, labels = list[list[int]](), list[list[int]]()
    for pair in PAIRS:
        prompt = read.ids(pair[0])
        whole = [*prompt, *read.ids(pair[1 + which]), read.end]
        tokens.append(whole)
        labels.append(labels_of(len(prompt), whole))
    packed, flat = ragged(tokens), ragged(labels)
    return {
        name: packed.values,
        f"{name}_offsets": packed.offsets,
        f"{name}.labels": flat.values.long(),
    }


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of trl
def test_the_objective_is_trls_dpo_trainer(tmp_path: Path) -> None:
    """Loss and log-probabilities of one batch, policy and reference two different models."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    policy, reference = model(0), model(1)
    rows = [{"prompt": p, "chosen": chosen, "rejected": rejected} for p, chosen, rejected in PAIRS]
    options = DPOConfig(
        output_dir=str(tmp_path), beta=0.3, report_to=[], use_cpu=True, bf16=False,
        per_device_train_batch_size=3,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=policy.network,
        ref_model=reference.network,
        args=options,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer().inner,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(policy.network, batch)
    ours: dict[str, Any] = {**sides(0), **sides(1), "id": torch.arange(3)}
    with torch.no_grad():
        refs = pair_log_probs(reference, ours)
    for name, value in zip(("chosen", "rejected"), refs, strict=True):
        ours[f"{name}.reference"] = value
    phase = Phase(trains=("teacher",), optimizer=Optimizer(lr=1.0))
    objective = Dpo(phases={"align": phase}, beta=0.3)
    found = objective.terms(
        "align", {"teacher": policy}, ours, step=0, steps=1, rng=torch.Generator()
    )["dpo"]
    assert found.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert abs(found.item() - math.log(2)) > 1e-3  # the two models differ


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of trl
def test_trl_drops_a_pair_whose_prompt_fills_max_length(tmp_path: Path) -> None:
    """The trap that our pairs report (test_pairs): it goes without a warning."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    long = " ".join(["the cat"] * 20)
    rows = [{"prompt": long, "chosen": " sat", "rejected": " on"}]
    rows += [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
    trainer = DPOTrainer(
        model=model(0).network,
        ref_model=model(1).network,
        args=DPOConfig(
            output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, max_length=16
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer().inner,
    )
    assert len(trainer.train_dataset) == 3


def test_kl_div_of_log_targets_is_nan_where_our_losses_are_not() -> None:
    """torch's trap: 0 ln 0 is NaN in value; the kernel's KL of the same rows is finite."""
    from stillhouse.objectives.sparse import fused_kd_loss

    teacher = torch.tensor([[0.0, -torch.inf]])
    student = torch.tensor([[0.3, -0.2]], requires_grad=True)
    trap = F.kl_div(
        student.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="sum"
    )
    assert bool(trap.isnan())
    loss = fused_kd_loss(student, teacher, temperature=1.0)
    assert loss.item() == pytest.approx(-student.log_softmax(1)[0, 0].item(), abs=1e-6)
