import pytest

from stillhouse.testing import DomainSuite

# a run and a second, killed one of every stage, beside another worker on two cores
pytestmark = pytest.mark.timeout(1500)


class TestClip(DomainSuite):
    domain = "clip"
    slow = ("dc_clip", "vlm_ood")
    assignments = {
        "dc_clip": (),
        "vlm_ood": (
            "steps=4",
            "shot_steps=2",
            "shot_views=1",
            "rows=cls,proximity,prompts,captions",
            "shot_rows=proximity",
            "texts=described",
            "student=conv2",
        ),
    }
