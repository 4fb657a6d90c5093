"""Which seeds of two rows belong together, and the difference of the rows."""

from collections.abc import Mapping

from stillhouse.recipe import OUTSIDE, Recipe
from stillhouse.report.collect import Finished
from stillhouse.report.statistics import Difference, paired, unpaired
from stillhouse.report.timings import evaluated_model
from stillhouse.stages.convert import Convert


def difference(
    recipe: Recipe, title: str, score: str, done: Mapping[str, Finished]
) -> Difference | None:
    """A row's difference to the baseline: paired over the seeds that both have, of the means where
    they share none; None for the baseline itself, or where one of them has no score yet. A teacher
    is no student of a seed: its row is paired where it has all of the baseline's and no other.
    """
    if title == recipe.baseline:
        return None
    ours, theirs = _by_seed(recipe, title, recipe.baseline)
    if recipe.rows[title].kind == "teacher" and ours.keys() != theirs.keys():
        shared = list[int]()
    else:
        shared = [seed for seed in ours if seed in theirs]
    a, b = _values(ours, score, done), _values(theirs, score, done)
    if both := [seed for seed in shared if seed in a and seed in b]:
        apart = len(a.keys() ^ b.keys())
        return paired([a[seed] for seed in both], [b[seed] for seed in both], apart=apart)
    return unpaired(list(a.values()), list(b.values())) if a and b else None


def _values(
    stages: Mapping[int, str], score: str, done: Mapping[str, Finished]
) -> dict[int, float]:
    return {
        seed: done[stage].scores[score]
        for seed, stage in stages.items()
        if stage in done and score in done[stage].scores
    }


def _by_seed(recipe: Recipe, *titles: str) -> list[dict[int, str]]:
    """Of each row its evaluations by the seed of what they are about; by their place where a row
    does not say its seeds.
    """
    found = [recipe.rows[title].stages for title in titles]
    seeds = [[_seed(recipe, name) for name in stages] for stages in found]
    known = all(None not in row and len(set(row)) == len(row) for row in seeds)
    if not known:
        return [dict(enumerate(stages)) for stages in found]
    return [
        {seed: name for seed, name in zip(row, stages, strict=True) if seed is not None}
        for row, stages in zip(seeds, found, strict=True)
    ]


def _seed(recipe: Recipe, evaluation: str) -> int | None:
    """The seed of the training, behind conversions, of the model that is evaluated."""
    ref = evaluated_model(recipe.stage(evaluation))
    while ref and not ref.startswith(OUTSIDE):
        stage = recipe.stage(ref.partition(".")[0])
        if not isinstance(stage, Convert) or "student" not in stage.inputs:
            return stage.seed
        ref = stage.inputs["student"]
    return None
