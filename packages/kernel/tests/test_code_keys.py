"""What changes a stage's code key, and what does not: on a plugin in a folder, edited file by file."""

import ast
import importlib
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from stillhouse.code import builds_in, code_version, stage_code, stage_modules, value_code
from stillhouse.code.closure import DOORS, KERNEL, Code
from stillhouse.code.sources import read, snapshot, sources
from stillhouse.errors import PluginError
from stillhouse.recipe import Recipe, Stage
from stillhouse.stages import Convert, Evaluate, Make

NAMES = itertools.count()
FILES = {
    "__init__.py": "from .used import make\nfrom .other import scores as scores\ndomain = None\n",
    "used.py": '''\
"""The module."""
from typing import TYPE_CHECKING

from .deep import helper  # a comment
if TYPE_CHECKING:
    from .other import scores

LIMIT = 3


def make(inputs, *, work):
    """Make it."""
    from .late import late
    return helper(inputs, LIMIT) + late()
''',
    "deep.py": "from . import used\n\n\ndef helper(a, b):\n    return used.LIMIT\n",
    "late.py": "def late():\n    return 1\n",
    "other.py": "def scores(models, data):\n    return {'a': 1.0}\n",
    "far/__init__.py": "",
    "far/near.py": "def fn():\n    return 1\n",
    "far/beside.py": "X = 1\n",
}


class Plugin:
    """A plugin's folder under a name of its own, and the key of a stage that holds its `make`."""

    def __init__(self, root: Path) -> None:
        self.name = f"keyed_plugin_{next(NAMES)}"
        self.folder = root / self.name
        info = root / f"{self.name}-1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: {self.name}\nVersion: 1\n")
        point = f"[stillhouse.domains]\n{self.name} = {self.name}:domain\n"
        (info / "entry_points.txt").write_text(point)
        self.write(FILES)

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text.replace("PLUGIN", self.name))
        snapshot.cache_clear()

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text
        self.write({name: text.replace(old, new)})

    def reached(self, *roots: str, file: str = "used") -> set[str]:
        code = sources().code
        found = code.reached(roots or [f"{self.name}.{file}"])
        return {n.removeprefix(f"{self.name}.") for n in found if n.startswith(self.name)}

    def key(self) -> str:
        code = sources().code
        return code.digest(code.reached([f"{self.name}.used"]))


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugin]:
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Plugin(tmp_path)
    yield made
    for name in [name for name in sys.modules if name.startswith(made.name)]:
        del sys.modules[name]
    snapshot.cache_clear()


Edit = Callable[[Plugin], None]
SAME: dict[str, Edit] = {
    "a comment": lambda p: p.edit("used.py", "# a comment", "# another"),
    "a docstring": lambda p: p.edit("used.py", "Make it.", "Make it well."),
    "the module's docstring": lambda p: p.edit("used.py", "The module.", "A module."),
    "layout": lambda p: p.edit("used.py", "LIMIT = 3\n", "\n\nLIMIT = (\n    3)\n"),
    "a type that is only checked": lambda p: p.edit(
        "used.py", "import scores", "import s as scores"
    ),
    "a module it does not reach": lambda p: p.edit("other.py", "1.0", "2.0"),
    "a name more in __init__": lambda p: p.edit("__init__.py", "make\n", "make, LIMIT as LIMIT\n"),
    "a new module": lambda p: p.write({"new.py": "x = 1\n"}),
    "the domain": lambda p: p.edit("__init__.py", "None", "dict(name='x')"),
}
OTHER: dict[str, Edit] = {
    "a function's body": lambda p: p.edit("used.py", "+ late()", "- late()"),
    "a constant": lambda p: p.edit("used.py", "LIMIT = 3", "LIMIT = 4"),
    "a constant's type": lambda p: p.edit("used.py", "LIMIT = 3", "LIMIT = 3.0"),
    "a decorator": lambda p: p.edit("deep.py", "def helper", "@staticmethod\ndef helper"),
    "a module that it imports": lambda p: p.edit("deep.py", "used.LIMIT", "2"),
    "a module imported in a function": lambda p: p.edit("late.py", "1", "2"),
    "a docstring that code reads": lambda p: p.edit("used.py", "LIMIT = 3", "LIMIT = __doc__"),
}


@pytest.mark.parametrize("edit", SAME.values(), ids=SAME)
def test_what_leaves_the_key(plugin: Plugin, edit: Edit) -> None:
    before = plugin.key()
    edit(plugin)
    assert plugin.key() == before


@pytest.mark.parametrize("edit", OTHER.values(), ids=OTHER)
def test_what_changes_the_key(plugin: Plugin, edit: Edit) -> None:
    before = plugin.key()
    edit(plugin)
    assert plugin.key() != before


def test_a_circular_import_ends_and_type_checking_counts_for_nothing(plugin: Plugin) -> None:
    assert plugin.reached() == {"used", "deep", "late"}


def test_a_name_is_followed_through_the_init_to_where_it_is_defined(plugin: Plugin) -> None:
    plugin.write({"user.py": "from PLUGIN import scores\n"})
    assert plugin.reached(file="user") == {"user", "other"}
    before = sources().code.digest(sources().code.reached([f"{plugin.name}.user"]))
    # the same modules, but the name means another of their functions
    plugin.edit("other.py", "def scores", "def second():\n    pass\n\n\ndef scores")
    now = sources().code.digest(sources().code.reached([f"{plugin.name}.user"]))
    plugin.edit("__init__.py", "import scores as scores", "import second as scores")
    after = sources().code.digest(sources().code.reached([f"{plugin.name}.user"]))
    assert len({before, now, after}) == 3


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ("from .other import *\n", "all"),
        ("def __getattr__(name):\n    return 1\n", "all"),
        ("from . import other\nscores = other.scores\n", {"", "user", "other"}),
        ("try:\n    from .other import scores\nexcept ImportError:\n    from .late import scores\n",
         {"user", "other", "late"}),
    ],
)  # fmt: skip
def test_an_init_that_hides_where_a_name_comes_from_counts_whole(
    plugin: Plugin, init: str, expected: Any
) -> None:
    plugin.write({"__init__.py": init, "user.py": "from PLUGIN import scores\n"})
    found = {n.removeprefix(plugin.name) for n in plugin.reached(file="user")}
    if expected == "all":
        assert found >= {"", "used", "other", "far.beside"}
    else:
        assert found == expected


STRINGS = {
    "module and function": 'NAME = "PLUGIN.far.near:fn"\n',
    "module": 'import importlib\nm = lambda: importlib.import_module("PLUGIN.far.near")\n',
    "beginning of a name": 'def name(x):\n    return f"PLUGIN.far.{x}"\n',
}


@pytest.mark.parametrize("text", STRINGS.values(), ids=STRINGS)
def test_a_module_named_by_a_string_counts_with_its_package(plugin: Plugin, text: str) -> None:
    plugin.write({"user.py": text})
    assert plugin.reached(file="user") == {"user", "far", "far.near", "far.beside"}


DYNAMIC = {
    "a computed name": "import importlib\n\ndef f(x):\n    return importlib.import_module(x)\n",
    "a relative name": "from importlib import import_module\nimport_module('.late', __package__)\n",
    "sys.modules": "import sys\n\ndef f(x):\n    return sys.modules[x]\n",
    "subclasses": "class A: pass\n\ndef f():\n    return A.__subclasses__()\n",
    "entry points": "from importlib.metadata import entry_points\nf = lambda: entry_points(group='x')\n",
    "exec": "def f(x):\n    exec(x)\n",
}


@pytest.mark.parametrize("text", DYNAMIC.values(), ids=DYNAMIC)
def test_a_module_that_imports_by_names_it_does_not_say_reaches_its_plugin(
    plugin: Plugin, text: str
) -> None:
    plugin.write({"user.py": text})
    assert plugin.reached(file="user") >= {"used", "other", "far.beside", plugin.name}


def test_eval_of_a_module_is_no_import(plugin: Plugin) -> None:
    plugin.write({"user.py": "def f(net):\n    return net.eval()\n"})
    assert plugin.reached(file="user") == {"user"}


REGISTRIES = {
    "a decorator": "from .registry import add\n\n@add\ndef f():\n    pass\n",
    "a call": "from . import registry\nregistry.TABLE.update(f=1)\n",
    "an entry": "from .registry import TABLE\nTABLE['f'] = 1\n",
    "a call whose result is kept": "from .registry import add\nf = add(len)\n",
    "a subclass": "from .registry import Base\n\nclass F(Base):\n    pass\n",
    "a subclass of a subclass": "from .registry import Plain\n\nclass F(Plain):\n    pass\n",
    "an instance": "from .registry import Enlisted\nF = Enlisted()\n",
    "a library's registry": "import torch\ntorch.serialization.add_safe_globals([len])\n",
    "another module's attribute": "import torch\ntorch.f = 1\n",
    "a method of a registry of elsewhere": "from .registry import R\nF = R.enter(len)\n",
    "an alias": "from . import registry\nT = registry.TABLE\nT['f'] = 1\n",
}
REGISTRY = """\
TABLE = {}
R = object()


def add(f):
    TABLE[f.__name__] = f
    return f


class Base:
    def __init_subclass__(cls):
        TABLE[cls.__name__] = cls


class Plain(Base):
    pass


class Enlisted:
    def __init__(self):
        TABLE["x"] = self
"""


@pytest.mark.parametrize("text", REGISTRIES.values(), ids=REGISTRIES)
def test_what_fills_a_registry_at_import_counts_for_every_stage(plugin: Plugin, text: str) -> None:
    plugin.write({"registry.py": REGISTRY})
    assert plugin.reached() >= {"used"}
    plugin.write({"filled.py": text})
    assert "filled" in plugin.reached()


HARMLESS = """\
import enum
import re
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from .other import scores

WORD = re.compile(r"x")
TABLE = {name: len(name) for name in ("a", "b")}
TABLE["c"] = 3
PAIRS = [*TABLE.items()]


@dataclass(frozen=True, kw_only=True)
class Point:
    x: int = field(default=1)

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError(f"x {self.x}".strip())


class Kind(enum.Enum):
    A = 1


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(1, 1)

    @torch.no_grad()
    def forward(self, x):
        return self.one(x)


def _double(x):
    found = []
    found.append(2 * x)
    return found


ORIGIN = Point(x=2)
TWICE = _double(3)
LATER = partial(scores, 1)
if __name__ == "__main__":
    print(TWICE)
"""


def test_definitions_and_constants_are_no_effect_of_an_import(plugin: Plugin) -> None:
    plugin.write({"plain.py": HARMLESS})
    assert plugin.reached() == {"used", "deep", "late"}


def test_a_file_that_is_no_python_is_one_line(plugin: Plugin) -> None:
    plugin.edit("other.py", "return", "return return")
    assert plugin.reached() == {"used", "deep", "late"}  # nothing leads there
    plugin.edit("deep.py", "return", "return return")
    with pytest.raises(PluginError) as told:
        plugin.key()
    assert str(told.value) == (
        f"{plugin.folder / 'deep.py'}, line 5: invalid syntax; mend it: a stage's key covers the "
        "code that the stage can reach"
    )


def test_a_single_file_is_a_plugin_too(tmp_path: Path) -> None:
    (tmp_path / "single.py").write_text("import os\nX = 1\n")
    modules = read({"single": tmp_path / "single.py"})
    code = Code(modules=modules)
    assert code.reached(["single"]) == {"single"}


def recipe_of(*stages: Stage) -> Recipe:
    return Recipe(name="r", reference="", stages=stages)


def test_a_stage_reaches_what_it_holds_and_what_builds_the_models_that_it_reads(
    plugin: Plugin,
) -> None:
    plugin.write(
        {
            "metrics.py": "from dataclasses import dataclass\n\n"
            "from stillhouse.metrics.metric import Metric\n"
            "from stillhouse.metrics.scores import Score\n\n\n@dataclass(frozen=True)\n"
            "class Count(Metric):\n    name: str = ''\n"
            "    def __call__(self, models, data, *, work):\n        return {}\n"
            "    def scores(self):\n        return (Score(name='n', better='neither'),)\n",
        }
    )
    used, late, metrics = (
        importlib.import_module(f"{plugin.name}.{name}") for name in ("used", "late", "metrics")
    )
    data = Make(name="data", make=used.make, inputs={}, ports=("train",))
    convert = Convert(name="convert", convert=late.late, inputs={"data": "data.train"})
    inputs = {"data": "data.train", "student": "convert.model"}
    scores = Evaluate(name="scores", metrics=(metrics.Count(),), inputs=inputs)
    named = Evaluate(
        name="named",
        metrics=(metrics.Count(name=f"{plugin.name}.far.near:fn"),),
        inputs={"data": f"builtin:{plugin.name}.other:scores"},
    )
    recipe = recipe_of(data, convert, scores, named)

    def own(stage: Stage) -> set[str]:
        found = stage_modules(recipe, stage)
        return {n.removeprefix(f"{plugin.name}.") for n in found if n.startswith(plugin.name)}

    assert own(data) == {"used", "deep", "late"}
    assert own(convert) == {"late"}
    assert own(scores) == {"metrics", "late"}
    assert own(named) == {"metrics", "far", "far.near", "far.beside", "other"}
    kinds = {s.name: stage_modules(recipe, s) & {f"{KERNEL}.engine", f"{KERNEL}.stages.convert"} for s in recipe.stages}  # fmt: skip
    assert kinds == {
        "data": set(),
        "convert": {f"{KERNEL}.stages.convert"},
        "scores": {f"{KERNEL}.stages.convert"},
        "named": set(),
    }
    assert stage_code(recipe, scores) != stage_code(recipe, scores, [f"{plugin.name}.far.near"])


def test_builders_of_a_model_from_outside_are_read_from_its_spec(
    plugin: Plugin, tmp_path: Path
) -> None:
    folder = tmp_path / "given" / "model"
    folder.mkdir(parents=True)
    spec = f'{{"build": "{plugin.name}.late:late", "kwargs": {{"part": "{plugin.name}.other:scores"}}}}'
    (folder / "model.json").write_text(spec)
    expected = (f"{plugin.name}.late", f"{plugin.name}.other")
    assert builds_in(folder) == builds_in(folder.parent) == expected
    (folder / "model.json").write_text("{")
    assert builds_in(folder) == builds_in(tmp_path / "nothing") == ()


def test_the_key_of_a_value_and_of_a_package(plugin: Plugin) -> None:
    late = importlib.import_module(f"{plugin.name}.late")
    before = value_code({"a": [late.late]}), code_version(plugin.name)
    plugin.edit("other.py", "1.0", "2.0")
    after = value_code({"a": [late.late]}), code_version(plugin.name)
    assert before[0] == after[0]
    assert before[1] != after[1]


STAGES = ("convert", "evaluate", "make", "search", "train")


def test_the_kernel_has_no_more_doors_than_are_known() -> None:
    """A module of the kernel that imports by name must be listed, with why nothing is missed."""
    code = sources().code
    kernel = code.whole(KERNEL)
    reached = code.reached([*(f"{KERNEL}.stages.{n}" for n in STAGES), f"{KERNEL}.federated.stage"])
    assert {n for n in reached if code.modules[n].dynamic} <= DOORS
    assert {n for n in kernel if code.modules[n].dynamic} >= DOORS
    assert not code._acting(KERNEL)
    assert not {n for n in kernel if n.split(".")[1:2] in (["cli"], ["report"], ["testing"])}


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_reached_module_of_the_kernel_imports_is_reached(stage: str) -> None:
    code = sources().code
    reached = code.reached([f"{KERNEL}.stages.{stage}"])
    assert len(reached) < len(code.whole(KERNEL)) / 2
    for name in sorted(reached):
        for node in ast.walk(ast.parse(code.modules[name].text)):
            module = str(node.module) if isinstance(node, ast.ImportFrom) else ""
            if module in code.modules and not code.modules[module].package:
                assert module in reached, name
