import pytest
import torch

from stillhouse.errors import BadSetting, UnknownName
from stillhouse_contracts.counts import FitCounts, fitted, log_counts
from stillhouse_contracts.models import BiLstmAttention, TokenVectors, hashed_vectors, model
from stillhouse_contracts.tokens import IDS, VOCABULARY
from stillhouse_contracts.usage import detected_by, detector_usage

TYPES = ("a", "b")
TOKENS = torch.tensor([[5, 9, 40, 7], [8, 6, 0, 0], [0, 0, 0, 0]])
SMALL = {"width": 8}
NAMES = [
    ("af-teacher", {**SMALL, "heads": 2, "slots": 3, "backbone": "gru"}),
    ("stip", {**SMALL, "heads": 2, "slots": 3}),
    ("stip", {**SMALL, "heads": 2, "slots": 3, "backbone": "transformer"}),
    ("stip", {**SMALL, "heads": 2, "slots": 3, "backbone": "none"}),
    ("textcnn", SMALL),
    ("bilstm", SMALL),
]


@pytest.mark.parametrize(("name", "changes"), NAMES)
def test_every_network_reads_tokens_mixtures_and_vectors_alike(
    name: str, changes: dict[str, object]
) -> None:
    torch.manual_seed(0)
    spec = model(name, types=TYPES, length=4, vectors=6, **changes)
    network = spec.new().eval()
    found = network({"tokens": TOKENS})
    assert found["logits"].shape == (3, 2)
    assert found["features"].ndim == 2
    assert found["logits"].isfinite().all()
    mixture = torch.nn.functional.one_hot(TOKENS, len(VOCABULARY)).float()
    torch.testing.assert_close(network({"mixture": mixture})["logits"], found["logits"])
    vectors = hashed_vectors(6)[TOKENS]
    given = {"tokens": TOKENS, "vectors": vectors}
    torch.testing.assert_close(network(given)["logits"], found["logits"])
    whole = network({"vectors": vectors[:1]})["logits"]
    torch.testing.assert_close(whole, found["logits"][:1])
    assert detected_by(spec) == (TYPES, 4)


@pytest.mark.parametrize(("name", "changes"), [each for each in NAMES if each[0] != "textcnn"])
def test_padding_behind_a_text_changes_nothing(name: str, changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    network = model(name, types=TYPES, length=4, vectors=6, **changes).new().eval()
    short, long = TOKENS[1:2, :2], TOKENS[1:2]
    torch.testing.assert_close(
        network({"tokens": long})["logits"], network({"tokens": short})["logits"]
    )


def test_hashed_vectors_are_fixed_and_travel_with_the_weights() -> None:
    table = hashed_vectors(16)
    assert torch.equal(table, hashed_vectors(16))
    assert table[0].abs().sum() == 0
    assert float(table[1:].norm(dim=1).mean()) == pytest.approx(1, abs=0.05)
    embed = TokenVectors(16)
    assert "table" in embed.state_dict()
    assert list(embed.parameters()) == []
    with pytest.raises(BadSetting, match="width 0"):
        hashed_vectors(0)


def test_the_student_is_smaller_than_the_teacher() -> None:
    sizes = {
        name: sum(
            p.numel() for p in model(name, types=TYPES, length=100, vectors=64).new().parameters()
        )
        for name in ("af-teacher", "stip")
    }
    assert sizes["stip"] * 20 < sizes["af-teacher"]


def test_attention_of_the_bilstm_weighs_states_of_the_text_alone() -> None:
    torch.manual_seed(0)
    network = BiLstmAttention(vectors=6, width=4, classes=2).eval()
    # of a text of one token the attention is 1, and the features are its state
    vectors = network.embed.table[TOKENS[:1, :1]]
    state = network.lstm(vectors)[0][0, 0]
    found = network({"tokens": torch.tensor([[5, 0, 0]])})["features"][0]
    torch.testing.assert_close(found, state)


def test_networks_that_are_none_are_refused() -> None:
    with pytest.raises(UnknownName, match="'stip'"):
        model("stipp", types=TYPES, length=4, vectors=6)
    with pytest.raises(UnknownName, match="'width'"):
        model("stip", types=TYPES, length=4, vectors=6, widht=3)
    with pytest.raises(UnknownName, match="backbone"):
        model("stip", types=TYPES, length=4, vectors=6, backbone="grü").new()
    with pytest.raises(BadSetting, match="even width"):
        model("stip", types=TYPES, length=4, vectors=6, width=9, heads=3, backbone="gru").new()


def test_counts_by_hand() -> None:
    tokens = torch.tensor([[IDS["call"], IDS["call"], IDS["now"], 0]])
    found = log_counts(tokens)[0]
    assert float(found[IDS["call"]].exp()) == pytest.approx(3)
    assert float(found[IDS["now"]].exp()) == pytest.approx(2)
    assert int((found > 0).sum()) == 2


def test_logistic_regression_finds_the_token_that_tells() -> None:
    call, now = IDS["call"], IDS["now"]
    tokens = torch.tensor([[call, 5], [call, 6], [now, 5], [now, 6]] * 5)
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]] * 5)
    network = fitted(tokens, labels)
    found = network({"tokens": tokens[:4]})["logits"]
    assert (found[:, 0] > 0).tolist() == [True, True, False, False]
    # nobody has the second type: half a sample's share of 21
    share = 0.5 / 21
    assert float(found[0, 1].detach().sigmoid()) == pytest.approx(share)
    with pytest.raises(BadSetting, match="strength"):
        FitCounts(types=("a",), length=4, strength=0)


def test_the_usage_names_types_length_and_vocabulary() -> None:
    usage = detector_usage(model("stip", types=TYPES, length=4, vectors=6))
    assert usage.classes == TYPES
    assert usage.preprocessing["length"] == 4
    assert usage.preprocessing["vocabulary"] == list(VOCABULARY)
