"""A setting that reaches nothing is refused, with why and with those that do; no other is."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from stillhouse.cli.target import make_target
from stillhouse.digest import digest
from stillhouse.errors import BadSetting
from stillhouse.reach import check_reach
from stillhouse.report.build import commands
from stillhouse.report.collect import SettingsFile
from stillhouse.settings import make_recipe, make_settings, parse_assignments


@pytest.mark.parametrize(("recipe", "scale", "given", "message"), [
    ("vision/distill", "tiny", ["objective=std_kd", "temperature=9"],
     r"vision/distill: temperature=9.0 reaches nothing with objective=std_kd; the variant would be "
     r"the same training under another name. What does reach: numbers={std_kd.temperature: 9.0}$"),
    ("vision/distill", "tiny", ["objective=std_kd", "lr=0.3", "temperature=9"], "temperature=9.0 reaches"),
    ("vision/distill", "tiny", ["samples=9"], "samples=9 reaches nothing"),
    ("vision/distill", "tiny", ["teacher=file:t.pth", "teacher_lr=0.3"],
     r"teacher_lr=0.3 reaches nothing with teacher=file:t.pth; .* What does reach: .*tune_lr"),
    ("vision/knfu", "tiny", ["alpha=0.3"], "alpha=0.3 reaches nothing with split=grouped"),
])  # fmt: skip
def test_what_reaches_nothing_is_refused(
    recipe: str, scale: str, given: Sequence[str], message: str
) -> None:
    values = parse_assignments(given)
    if "teacher" in values:
        values["tune_steps"] = "10"
    with pytest.raises(BadSetting, match=message) as caught:
        check_reach(recipe, make_settings(recipe, scale, values), values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [
    ["seeds=3"],
    ["temperature=9", "seeds=2"],
    ["objective=std_kd", "numbers={std_kd.temperature: 9}"],
    ["temperature=4"],  # the preset's own value
    ["names=a,b,c", "classes=3"],  # neither can be made without the other
    ["objective=crd", "samples=9"],
    ["precision=fast"],
    ["milestones=0.5", "warmup=0.1", "precision=bf16", "cache=false", "mean=0.1", "std=0.2"],
])  # fmt: skip
def test_what_reaches_something_is_not(given: Sequence[str]) -> None:
    assert make_target("vision/distill", assignments=given).name == "vision/distill"


@pytest.mark.parametrize("more", [[], ["temperature=9", "seeds=2"], ["names=a;b,c d", "size=8"]])
def test_the_command_of_a_report_gives_the_same_run(tmp_path: Path, more: Sequence[str]) -> None:
    """Of data of a user's own, whose classes, names and normalization are among the settings."""
    for split in ("train", "test"):
        for name in ("c d", "a;b"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (8, 8), (40 * i, 9, 9)).save(folder / f"{i}.png")
    given = [f"data=file:{tmp_path}", *more]
    target = make_target("vision/distill", assignments=given)
    settings = SettingsFile(scale="tiny", settings=target.settings.overrides())
    command = commands("vision/distill", settings, None, target.recipe)[-1]
    uv, run, program, verb, ref, option, scale, *rest = shlex.split(command)
    assert (uv, run, program, verb, option) == ("uv", "run", "stillhouse", "run", "--scale")
    assert rest[::2] == ["--set"] * (len(rest) // 2)
    again = make_target(ref, scale, rest[1::2])
    assert (again.variant, digest(again.recipe)) == (target.variant, digest(target.recipe))
    assert again.settings == target.settings


def test_a_setting_that_differs_from_the_data_must_still_reach_something(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "0.png")
    given = [f"data=file:{tmp_path}", "samples=9"]
    with pytest.raises(BadSetting, match="samples=9 reaches nothing"):
        make_target("vision/distill", assignments=given)


def test_stored_settings_stay_readable() -> None:
    """Only what is newly given is looked at, not what an old run or params.yaml holds."""
    values = {"objective": ["std_kd"], "temperature": 9}
    check_reach("vision/distill", make_settings("vision/distill", "tiny", values), ())
    with pytest.raises(BadSetting, match="reaches nothing"):
        make_target("vision/distill", assignments=["objective=std_kd", "temperature=9"])


def test_sizes_that_fit_no_memory_are_one_line() -> None:
    settings = make_settings("vision/diswot", "tiny", {"widths": [2**31 - 1] * 4})
    with pytest.raises(BadSetting, match="vision/diswot: no recipe of these settings") as caught:
        make_recipe("vision/diswot", settings)
    assert "\n" not in str(caught.value)
