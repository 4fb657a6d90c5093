"""What a text tower reads of a class."""

from collections.abc import Sequence

from stillhouse.errors import BadData

PROMPT = "a photo of {}"


def prompts_of(names: Sequence[str], descriptions: Sequence[str] | None = None) -> list[str]:
    """What a text tower reads of each class: "a photo of <name>", with its description behind " . "
    where they are enriched. Raises BadData for a class without a description.
    """
    plain = [PROMPT.format(name) for name in names]
    if descriptions is None:
        return plain
    for name, description in zip(names, descriptions, strict=True):
        if not description:
            raise BadData(
                f"class '{name}' has no description; give one a class (chatgpt.txt), or set "
                "texts=plain"
            )
    return [f"{p} . {d}" for p, d in zip(plain, descriptions, strict=True)]
