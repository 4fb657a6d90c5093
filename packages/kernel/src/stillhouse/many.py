"""Many small trainings in one stage (folds x seeds x kinds): each is kept when it is done."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from stillhouse.checkpoint import Conditions, State, last_checkpoint, save_checkpoint
from stillhouse.digest import digest
from stillhouse.errors import BadRecipe
from stillhouse.recipe import STAGE_NAME
from stillhouse.training import alone, named_seed
from stillhouse.work import Work

# one training by its name, with a Work of its own: what it leaves, as tensors and JSON values
Training = Callable[[str, Work], State]
MANY = "many"


def trainings(
    names: Sequence[str], train: Training, *, of: object, work: Work
) -> Iterator[tuple[str, State]]:
    """What `train(name, work)` leaves for each name, in order, its tensors on the CPU; `work.seed`
    and `work.ctx` are for its `fit`.

    Each is kept when it is done: a killed stage goes on behind the last one. The seed of a training
    depends on the stage's and on its name alone: the same whatever others there are. `of` is what
    they depend on beside the stage's inputs, of what a recipe is made of: as a rule the frozen
    dataclass that `train` is a method of. Raises BadRecipe for a name that is none, or is there
    twice.
    """
    for name, times in Counter(names).items():
        if times > 1 or not STAGE_NAME.fullmatch(name):
            why = "is there twice" if times > 1 else "has other than letters, digits, '-' and '_'"
            raise BadRecipe(f"stage '{work.ctx.stage}': a training's name, '{name}', {why}")
    here = dataclasses.asdict(Conditions.of(work.ctx))
    key = digest({"of": of, "conditions": here}, at="trainings")[:12]
    for done, name in enumerate(names, 1):
        folder = None if work.kept is None else work.kept / MANY / f"{name}-{key}"
        found = None if folder is None else last_checkpoint(folder)
        if found is None:
            seed = named_seed(work.seed, name)
            tensors, record = train(name, Work.seeded(seed, ctx=alone(work.ctx)))
            if folder is not None:
                save_checkpoint(folder, 0, tensors, {"record": record})
            # as they come back: whoever goes on behind a kill sees the same
            found = _sorted(tensors), json.loads(json.dumps(record))
        else:
            found = _sorted(found[0]), found[1]["record"]
        work.progress(done, len(names), name)
        yield name, found


def _sorted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[name].detach().cpu() for name in sorted(tensors)}
