"""A study of rank correlations: numbers by hand, what is left out, the drawing."""

import pytest
import torch

from stillhouse.data import TensorData
from stillhouse.errors import BadData, BadSetting, UnknownName
from stillhouse.search.correlations import RankCorrelations, Scatter
from stillhouse.search.ranking import partial_kendall_tau
from stillhouse.work import Work


def table() -> TensorData:
    columns = {
        "accuracy": [1.0, 2.0, 3.0, 4.0, 5.0],
        "parameters": [1.0, 3.0, 2.0, 4.0, 5.0],
        "macs": [10.0, 30.0, 20.0, 40.0, 50.0],  # orders as parameters do
        "score": [2.0, 1.0, 4.0, 3.0, 5.0],
    }
    return TensorData({name: torch.tensor(values) for name, values in columns.items()})


def test_correlations_by_hand():
    lines = ("score", "parameters", "macs")
    found = RankCorrelations(lines=lines, resamples=20)({}, table(), work=Work())
    # of ten pairs, score has two in the wrong order, parameters one
    assert found["score", "kendall_tau"] == pytest.approx(0.6)
    assert found["parameters", "kendall_tau"] == pytest.approx(0.8)
    # squared differences of ranks: 4 times 1; 1 - 6 * 4 / (5 * 24)
    assert found["score", "spearman_rho"] == pytest.approx(0.8)
    columns = table().columns
    partial = partial_kendall_tau(columns["score"], columns["accuracy"], columns["parameters"])
    assert found[("score", "partial_tau")] == pytest.approx(partial)
    for line, name in (
        ("score", "kendall_tau"),
        ("score", "spearman_rho"),
        ("macs", "kendall_tau"),
    ):
        assert found[line, f"{name}_low"] <= found[line, name] <= found[line, f"{name}_high"]


def test_what_orders_as_size_does_has_no_partial_correlation():
    found = RankCorrelations(lines=("score", "parameters", "macs"), resamples=5)(
        {}, table(), work=Work()
    )
    assert {key for key in found if "partial" in key[1]} == {
        ("score", "partial_tau"),
        ("score", "partial_tau_low"),
        ("score", "partial_tau_high"),
    }
    # and where the target itself orders as size does, none has
    columns = {**table().columns, "accuracy": table().columns["parameters"]}
    found = RankCorrelations(lines=("score",), resamples=5)({}, TensorData(columns), work=Work())
    assert set(found) == {
        ("score", f"{name}{end}")
        for name in ("kendall_tau", "spearman_rho")
        for end in ("", "_low", "_high")
    }


def test_a_scatter_shows_every_line_and_its_tau():
    columns = {**table().columns, "wide": torch.tensor([1.0, 10.0, 1e2, 1e3, 1e5])}
    figure = Scatter(lines=("score", "wide", "macs"), columns=2)(
        {}, TensorData(columns), work=Work()
    )
    assert [axis.get_title() for axis in figure.axes[:3]] == [
        "score: tau 0.60, n = 5",
        "wide: tau 1.00, n = 5",
        "macs: tau 0.80, n = 5",
    ]
    assert [axis.get_xscale() for axis in figure.axes[:3]] == ["linear", "symlog", "linear"]
    assert {axis.get_ylabel() for axis in figure.axes[:3]} == {"accuracy"}


def test_wrong_columns_say_so():
    with pytest.raises(UnknownName, match="rank correlations: unknown column 'scor'. Did you mean"):
        RankCorrelations(lines=("scor",))({}, table(), work=Work())
    texts = TensorData({**table().columns, "name": ["a"] * 5})
    with pytest.raises(BadData, match="column 'name' holds no single numbers"):
        RankCorrelations(lines=("name",))({}, texts, work=Work())
    with pytest.raises(BadSetting, match="need a line and resamples >= 1"):
        RankCorrelations(lines=())
