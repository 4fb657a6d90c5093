"""Settings of clip/vlm_ood or clip/dc_clip, chosen on a held-out part of their training data.

    uv run python benchmarks/clip_grid.py clip/dc_clip --teacher [--scale small]
    uv run python benchmarks/clip_grid.py clip/dc_clip [--scale small] [--device cuda]
    uv run python benchmarks/clip_grid.py clip/vlm_ood --teacher [--scale small]
    uv run python benchmarks/clip_grid.py clip/vlm_ood [--scale small] [--device cuda]

A fifth of the training data is held out by the recipe itself (its setting `grid`): of clip/vlm_ood
a fifth of the training images of each known class, of clip/dc_clip a fifth of the photos and emoji,
whole, with their texts. No stage of such a run reads the test data or unseen classes.

Rates: each row, the baseline too, is trained at each of the same rates, one seed a cell. The
rate with the highest main score on the held-out part (vlm_ood: mean accuracy of the known classes,
dc_clip: mean recall) is chosen, of two as high the lower. `--teacher`, where networks are joined:
how long the maps between them are trained (of clip/dc_clip also at which weight decay), by the
teacher's own score on the held-out part, which its maps have not seen.

docs/results/clip-<recipe>-grid/<scale>.json holds all cells; killed, the same call goes on in the
stage where it was. The last line is what `stillhouse run` is given by --set.
"""

import argparse
import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from grids import Record, guarded, tell
from rounds import write

from stillhouse.artifact import load_model
from stillhouse.cli.target import Target
from stillhouse.data.shards import load_data
from stillhouse.environment import environment
from stillhouse.inputs import check_present
from stillhouse.places import project_root
from stillhouse.recipe import SCALES, Recipe
from stillhouse.report.collect import collect
from stillhouse.runs import Runs, outside_refs, run_stage
from stillhouse.settings import make_recipe, make_settings, parse_assignments
from stillhouse.stages import Evaluate
from stillhouse.work import Work
from stillhouse_clip.holding import SHARE, cell
from stillhouse_clip.languages import Aligned, Embedded
from stillhouse_clip.recipes.vlm_ood_settings import SHARED, VlmOodSettings

ROOT = Path(__file__).resolve().parents[1]
RATES: Mapping[str, tuple[float, ...]] = {
    "clip/vlm_ood": (1e-3, 3e-3, 1e-2),
    "clip/dc_clip": (3e-4, 1e-3, 3e-3, 1e-2),
}
DC_CLIP, VLM_OOD = "clip/dc_clip", "clip/vlm_ood"
MAIN = {"clip/vlm_ood": "known_accuracy", "clip/dc_clip": "mean_recall"}
STEPS, DECAYS = (300, 1200, 100), (0.1, 1.0)
MAP_STEPS = (100, 300, 1500)  # of clip/vlm_ood
HEADS = "heads"


def of_rows(target: Target, score: str) -> Record:
    """Row, as `rates` names it -> rate -> the score of each seed on the held-out part."""
    done = collect(target.recipe, target.runs().folder)
    found: dict[str, dict[str, list[float]]] = {}
    texts = getattr(target.settings, "texts", ())
    for title, row in target.recipe.rows.items():
        _, comma, rate = title.rpartition(", rate ")
        if comma:
            key = row.stages[0].partition(f"-{cell(float(rate))}-")[0]
            for text in texts if len(texts) == 1 or key.startswith(SHARED) else ():
                key = key.removesuffix(f"-{text}")
            scores = [done[stage].scores[score] for stage in row.stages]
            found.setdefault(key, {}).setdefault(rate, []).extend(scores)
    return found


def best(cells: Mapping[str, list[float]]) -> str:
    """The cell with the highest mean; of two as high the first."""
    return max(cells, key=lambda name: sum(cells[name]) / len(cells[name]))


def rates(recipe: str, scale: str, given: Record, device: str) -> Record:
    """All cells of the rates, and those chosen."""
    target = _prepared(recipe, scale, {"grid": list(RATES[recipe]), "seeds": 1, **given})
    students = [row for row in target.recipe.rows.values() if row.kind != "teacher"]
    _run(target, [name for row in students for name in row.stages], device)
    found = of_rows(target, MAIN[recipe])
    for row, cells in found.items():
        text = ", ".join(f"{rate}: {100 * values[0]:.1f} %" for rate, values in cells.items())
        print(f"  {row:<24}{text}", flush=True)
    chosen = {row: float(best(cells)) for row, cells in found.items()}
    listed = ", ".join(f"{row}: {rate:g}" for row, rate in chosen.items())
    print(f"rates={{{listed}}}")
    settings = target.settings.model_dump(mode="json")
    return {"rows": found, "chosen": chosen, "variant": target.variant, "settings": settings}


def teacher(scale: str, given: Record, device: str) -> Record:
    """The cells of the maps that join the teacher's networks, and the chosen one. Both networks are
    the same in all cells: they are run over the held-out part once.
    """
    found: dict[str, dict[str, float]] = {}
    first: Runs | None = None
    features: Embedded | None = None
    for steps, decay in itertools.product(STEPS, DECAYS):
        own = {"teacher_steps": steps, "teacher_weight_decay": decay}
        target = _prepared(
            DC_CLIP, scale, {"grid": list(RATES[DC_CLIP]), "seeds": 1, **given, **own}
        )
        made, runs = target.recipe, target.runs(device=device, observe=tell)
        first = first or runs
        wanted = _before(target, HEADS)
        for stage in made.stages:
            if stage.name in wanted:
                _share(stage.name, first, runs)
                run_stage(made, stage, runs)
        metric = _metric(made)
        features = features or _features(runs.folder, metric)
        name = f"teacher_steps={steps} teacher_weight_decay={decay:g}"
        found[name] = metric.recalls(_joined(features, runs.folder / HEADS / HEADS))
        print(f"  {name:<48}{100 * found[name][MAIN[DC_CLIP]]:.1f} %", flush=True)
    chosen = max(found, key=lambda name: found[name][MAIN[DC_CLIP]])
    print(chosen)
    return {"cells": found, "chosen": chosen}


def joining_map(scale: str, given: Record, device: str) -> Record:
    """The cells of the map that joins the teacher of clip/vlm_ood: its accuracy on held-out images
    of known classes, by their names and by their descriptions.
    """
    found: dict[str, Record] = {}
    for steps in MAP_STEPS:
        own = {"grid": list(RATES[VLM_OOD]), "seeds": 1, **given, "teacher_steps": steps}
        target = _prepared(VLM_OOD, scale, own)
        assert isinstance(target.settings, VlmOodSettings)
        scored = [f"teacher-{text}-scores" for text in target.settings.texts]
        _run(target, scored, device)
        done = collect(target.recipe, target.runs().folder)
        each = {name: done[name].scores[MAIN[VLM_OOD]] for name in scored}
        found[f"teacher_steps={steps}"] = each
        said = ", ".join(f"{name} {100 * value:.1f} %" for name, value in each.items())
        print(f"  teacher_steps={steps:<8}{said}", flush=True)
    chosen = max(found, key=lambda name: sum(found[name].values()))
    print(chosen)
    return {"cells": found, "chosen": chosen}


def _prepared(recipe: str, scale: str, given: Record) -> Target:
    """A run of the recipe with these settings, whose inputs are there."""
    settings = make_settings(recipe, scale, given)
    made = make_recipe(recipe, settings)
    target = Target(name=recipe, settings=settings, recipe=made, root=project_root())
    target.runs().note_settings(settings)
    check_present(outside_refs(made), target.root)
    return target


def _run(target: Target, names: Sequence[str], device: str) -> None:
    """Run the stages `names` and all that they need."""
    runs, wanted = target.runs(device=device, observe=tell), set[str]()
    for name in names:
        wanted |= _before(target, name)
    for stage in target.recipe.stages:
        if stage.name in wanted:
            run_stage(target.recipe, stage, runs)


def _metric(recipe: Recipe) -> Aligned:
    stage = recipe.stage("teacher-scores")
    assert isinstance(stage, Evaluate)
    metric = stage.metrics[0]
    assert isinstance(metric, Aligned)
    return metric


def _features(folder: Path, metric: Aligned) -> Embedded:
    """What both networks make of the held-out part, in spaces of their own."""
    image, text = (load_model(folder / f"{side}-network" / "model") for side in ("image", "text"))
    towers = Both(image.module, text.module).eval()
    ports = {"images": "test_images", "texts": "test_texts"}
    data = {port: load_data(folder / "held-out" / name) for port, name in ports.items()}
    work = Work(data=data, assets={metric.role: text.assets})
    return metric.embedded({metric.role: towers}, work, first=len(metric.two))


class Both(torch.nn.Module):
    """Two networks as towers."""

    def __init__(self, image: torch.nn.Module, text: torch.nn.Module) -> None:
        super().__init__()
        self.image, self.text = image, text

    def forward(self, batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return self.image(batch) if "images" in batch else self.text(batch)


def _joined(features: Embedded, heads: Path) -> Embedded:
    """Both behind the maps."""
    module = load_model(heads).module.eval()
    with torch.no_grad():
        found = module({"image.embedding": features.images, "text.text": features.texts})
    return replace(features, images=found["embedding"], texts=found["text"])


def _before(target: Target, name: str) -> set[str]:
    """A stage and all that it needs."""
    found, left = set[str](), [name]
    while left:
        stage = target.recipe.stage(left.pop())
        found.add(stage.name)
        left += [each for each in target.recipe.upstream(stage) if each not in found]
    return found


def _share(stage: str, first: Runs, runs: Runs) -> None:
    """Copy a stage of the first cell's run, which is up to date where its key is the same."""
    source, target = first.folder / stage, runs.folder / stage
    if source.is_dir() and not target.is_dir():
        shutil.copytree(source, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", choices=list(RATES))
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--teacher", action="store_true", help="what joins the teacher's networks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    options = parser.parse_args()
    given = parse_assignments(options.set)
    name = options.recipe.replace("/", "-").replace("_", "-")
    file = options.out / f"{name}-grid" / f"{options.scale}.json"
    record = json.loads(file.read_text()) if file.is_file() else {}
    if options.teacher:
        choose = teacher if options.recipe == DC_CLIP else joining_map
        record["teacher"] = choose(options.scale, given, options.device)
    else:
        record["rates"] = rates(options.recipe, options.scale, given, options.device)
    about = {"held_out": SHARE, "score": MAIN[options.recipe], "scale": options.scale, "seed": 0}
    part = record["teacher" if options.teacher else "rates"]
    part |= {"set": options.set, "environment": environment(options.device)}
    write(file, {**record, "settings": about})


if __name__ == "__main__":
    guarded(main)
