"""What cannot be run is one line before anything runs."""

import pytest

from stillhouse.errors import BadSetting
from stillhouse.settings import make_settings

NAME = "language/autodistil"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": "{macs: 1000}"}, "1,000 macs are under the smallest subnet's"),
        ({"budget": "{flops: 1e9}"}, "unknown cost 'flops'"),
        ({"length": "100"}, "length=100, task_length=24: the teacher reads 64 tokens"),
        ({"scored": "65"}, "scored=65: only held=64 rows are held out"),
        ({"ranked": "5"}, "at least 3 subnets a sub-space"),
        ({"hand": "{layers: 9, width: 8, inner: 8, heads: 1}"}, "a subnet of 9 layers"),
        ({"spaces": "{x: {layers: [2], widths: [24], heads: [2]}}"}, "'x' needs layers, widths"),
        (
            {"spaces": "{x: {layers: [2], widths: [24], ratios: [2.3], heads: [2]}}"},
            "2.3 x 24 units are no whole number",
        ),
        ({"tasks": "{}"}, "at least one of tasks"),
    ],
)
def test_settings_that_cannot_work_are_one_line(given: dict[str, str], message: str) -> None:
    with pytest.raises(Exception) as error:  # noqa: PT011  each is a StillhouseError
        make_settings(NAME, "tiny", given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, BadSetting) or "unknown" in str(error.value)


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
def test_each_scale_has_three_or_two_spaces_and_a_student_by_hand_that_fits(scale: str) -> None:
    from stillhouse_language.recipes.autodistil_settings import AutoDistil

    settings = AutoDistil.at(scale)
    assert len(settings.sub_spaces()) == (32 if scale == "tiny" else 3 * 256)
    if scale != "paper":  # MiniLM's 6 x 768 takes half of BERT's MACs, a little over the budget
        costs = settings.sub_spaces().costs(settings.by_hand())
        assert costs["macs"] <= settings.budget["macs"]
