"""One stage's inputs and results between DVC's cache and the DVC remote.

`python -m stillhouse_flows.data.share REQUEST` does it in a process of its own, at the root: DVC
takes paths from the working directory. A stage's results are found by what it reads (DVC's run
cache), of which only this stage's entry travels: all of it would be every run's since the first.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillhouse.errors import MissingData
from stillhouse_flows.processes.hush import hush_dvc
from stillhouse_flows.processes.querying import answer

if TYPE_CHECKING:
    from dvc.repo import Repo

Errand = Literal["find", "give", "give-data", "fetch"]


def find(root: Path, address: str) -> bool:
    """Whether the stage's results are in the cache, brought from the remote where they were not."""
    from dvc.repo import Repo, lock_repo
    from dvc.stage.cache import RunCacheNotFoundError

    with Repo(str(root), _wait_for_lock=True) as repo, lock_repo(repo), repo.scm_context():
        stage = _stage(repo, address)
        stage.save_deps()
        try:
            repo.stage_cache.restore(stage)
        except RunCacheNotFoundError:
            _copy(_remote(repo), repo.cache.legacy, _entry(stage))
        else:
            return True
        try:
            repo.stage_cache.restore(stage, pull=True)
        except RunCacheNotFoundError:
            return False
    return True


def give(root: Path, address: str) -> bool:
    """Put the stage's results on the remote: the files first, so that an entry is never a lie."""
    from dvc.repo import Repo, lock_repo

    with Repo(str(root), _wait_for_lock=True) as repo, lock_repo(repo), repo.scm_context():
        stage = _stage(repo, address)
        if stage.always_changed:  # DVC's run cache takes no such stage: dvc.lock names its files
            for objects in stage.get_used_objs().values():
                repo.cloud.push(objects)
            return True
        stage.save_deps()
        cached = repo.stage_cache._load(stage)  # pyright: ignore[reportPrivateUsage]
        if cached is None:
            raise MissingData(f"{address}: not in DVC's cache, so there is nothing to share")
        # Any: DVC's objects are untyped
        done: Any = repo.stage_cache._create_stage(  # pyright: ignore[reportPrivateUsage]
            cached, wdir=stage.wdir
        )
        for objects in done.get_used_objs().values():
            repo.cloud.push(objects)
        _copy(repo.cache.legacy, _remote(repo), _entry(stage))
    return True


def fetch(root: Path, address: str) -> bool:
    """Bring what the stage reads: its data, and the outputs that dvc.lock names."""
    from dvc.exceptions import CheckoutError, DvcException
    from dvc.repo import Repo

    with Repo(str(root), _wait_for_lock=True) as opened:
        repo: Any = opened  # Any: DVC binds its methods in a way no checker sees
        wanted = reads(opened, address)
        try:
            if wanted:
                repo.pull([str(root / path) for path in wanted])
        except (CheckoutError, DvcException) as error:
            raise MissingData(
                f"the DVC remote lacks what {address} reads ({', '.join(wanted)}); "
                "where it is, run: dvc push"
            ) from error
    return True


def give_data(root: Path, address: str) -> bool:
    """Put the data that the stage reads on the remote; what is there already stays."""
    from dvc.repo import Repo

    with Repo(str(root), _wait_for_lock=True) as opened:
        repo: Any = opened  # Any: as above
        data = [path for path in reads(opened, address) if path.startswith("data/")]
        if data:
            repo.push([str(root / path) for path in data])
    return True


def reads(repo: "Repo", address: str) -> list[str]:
    """What the stage reads that DVC keeps, relative to the root: data and other stages' outputs."""
    root = Path(repo.root_dir)
    outs = [Path(out.fs_path) for stage in repo.index.stages for out in stage.outs]
    deps = [Path(dep.fs_path) for dep in _stage(repo, address).deps]
    return [
        dep.relative_to(root).as_posix()
        for dep in deps
        if any(dep == out or out in dep.parents for out in outs)
    ]


def _stage(repo: "Repo", address: str) -> Any:  # Any: DVC's Stage is untyped
    (stage,) = repo.stage.collect(address)
    return stage


def _entry(stage: Any) -> str:  # Any: as above
    from dvc.stage.cache import _get_stage_hash  # pyright: ignore[reportPrivateUsage]

    key: str = _get_stage_hash(stage)
    return f"runs/{key[:2]}/{key}"


def _remote(repo: "Repo") -> Any:  # Any: DVC's object store is untyped
    return repo.cloud.get_remote_odb(None, "share", hash_name="md5-dos2unix")


def _copy(source: Any, aim: Any, folder: str) -> None:  # Any: as above
    """Copy one run cache entry between stores, each file whole or not at all."""
    from dvc_objects.fs import generic

    start = source.fs.join(source.path, *folder.split("/"))
    if not source.fs.exists(start):
        return
    for file in source.fs.find(start):
        target = aim.fs.join(aim.path, *folder.split("/"), source.fs.name(file))
        if not aim.fs.exists(target):
            generic.copy(source.fs, file, aim.fs, target)


def main(argv: Sequence[str]) -> int:
    request = json.loads(argv[0])
    errands = {"find": find, "give": give, "fetch": fetch, "give-data": give_data}
    hush_dvc()
    return answer(lambda: json.dumps(errands[request["errand"]](Path.cwd(), request["address"])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
