"""Notes of language/arte in every report."""

from stillhouse_language.recipes.arte_settings import ArteSettings

PAPER = (
    "Liu, Li, Cao, Yao, Hou, Li 2024, Aligning Teacher with Student Preferences for Tailored "
    "Training Data Generation (arXiv 2406.19227)"
)
NOTES = (
    "The authors published no code. Prompts are this plugin's own words; beta, adapters, ties and "
    "the priors of the item response model are choices of this plugin, named in the docstrings.",
    "Seeds change the order of fine-tuning's batches, and where models are trained here not these: "
    "drafts, preferences and each row's data are made once. Intervals say nothing of their spread.",
    "The first row of the drafts is what the paper calls the original teacher's data: draft "
    "questions, each with the rationale that the student did best with. The row of the same "
    "process shows what alignment itself adds.",
    "Models as they are were not shown the form of the answer: without a tag an answer is wrong. "
    "The share of answers with a tag and the likeliest option separate form from knowledge.",
)
FROM_DATA = (
    "Drafts come from the data and from template styles, and the teacher, which is the student's "
    "own model, chooses among them instead of writing."
)


def caution(settings: ArteSettings) -> str:
    """Why a headline may mislead, by what was run."""
    if settings.drafts == "data":
        return FROM_DATA
    return "Models of some 100,000 parameters, on sums of digits." if settings.trained_here else ""
