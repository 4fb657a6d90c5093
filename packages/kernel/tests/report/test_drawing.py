"""A plot is one small SVG that follows the reader's mode."""

import re
from xml.etree import ElementTree

from matplotlib.figure import Figure

from stillhouse.report.drawing import LONG, adaptive, compact, following
from stillhouse.report.palette import THEMES, Theme, pairs

LIGHT, DARK = THEMES["light"], THEMES["dark"]


def drawing(theme: Theme) -> Figure:
    figure = Figure(figsize=(2, 2))
    axes = figure.subplots()
    axes.plot([0, 1, 2], [0, 1.23456, 0.5], color=theme.series[1])
    axes.set_title('a path="1.23456" < b')
    return figure


def test_each_colour_of_the_light_mode_has_one_of_the_dark_mode() -> None:
    found = pairs()
    assert found[LIGHT.ink] == DARK.ink
    assert found[LIGHT.series[6]] == DARK.series[6]
    assert len(found) == 5 + len(LIGHT.series)  # teachers are drawn in ink


def test_every_colour_that_is_drawn_turns_with_the_mode() -> None:
    svg = adaptive(drawing)
    body = svg.partition("</style>")[2]
    drawn = set(re.findall(r"(fill|stroke): (#[0-9a-f]{6})", body))
    assert ("stroke", LIGHT.series[1]) in drawn
    rules = svg.partition("prefers-color-scheme:dark")[2].partition("</style>")[0]
    for what, light in drawn:
        assert f'[style*="{what}: {light}"]{{{what}:{pairs()[light]}!important}}' in rules
    assert rules.count("!important") == len(drawn)
    assert DARK.series[0] not in svg  # what is not drawn has no rule


def test_paths_and_numbers_are_short_and_texts_stay() -> None:
    svg = adaptive(drawing)
    assert "".join(ElementTree.fromstring(svg).itertext()).count('a path="1.23456" < b') == 1
    attributes = re.findall(r'(?:d|x|y)="([^"]*)"', svg.replace('path="1.23456"', ""))
    assert attributes
    assert not any(LONG.search(value) or "\n" in value for value in attributes)


def test_a_number_is_rounded_to_a_hundredth_of_a_point() -> None:
    assert compact('<path d="M 1.23456 -0.001\nL 2.5 10.996"/>') == '<path d="M 1.23 -0 L 2.5 11"/>'


def test_following_leaves_what_is_drawn() -> None:
    plain = compact('<svg><style>*{a:b}</style><path style="fill: #ffffff"/></svg>')
    assert following(plain).endswith('</style><path style="fill: #ffffff"/></svg>')
