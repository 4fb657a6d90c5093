"""Code keys: a stage is keyed by the code that it can reach.

First-party code is `stillhouse` (without cli, report, testing) and every package, or single file,
that declares a domain. A key is a sha256 over the syntax trees of first-party modules: comments,
docstrings, layout and what stands under TYPE_CHECKING do not count. Libraries do not count either:
a run records their versions.

A stage reaches
- the modules of its class and of every function, class and instance in its value, and of what may
  build the models that it reads (the specs of the stages before it, a model.json from outside);
- what those import, anywhere, also inside functions. A name that a package's __init__ imports from
  elsewhere leads to the module that defines it; the __init__ itself counts where it defines the
  name, the whole package where it cannot be seen (`import *`, a `__getattr__` of a plugin's);
- runs.py, which opens what a stage reads and makes its context; not what that imports for books.

A static walk misses the following, which therefore count more than they may have to:
- a string that names a module ("package.module:function", "package.module", the beginning of an
  f-string), in the value or in code: the package that holds the module, whole. In the kernel such
  strings are openers and name one module exactly;
- a module that imports by names it does not spell out (importlib, entry points, exec,
  `sys.modules`, `__subclasses__`): its whole top-level package. The kernel's own doors
  (`closure.DOORS`) are exempt: all that comes through them is in the stage's value or inputs, or
  is an opener. A name that comes through trusted.py's door from elsewhere (a text column, a folder
  that a plugin opens itself) and leads to a module that the key does not cover is refused while
  the stage runs;
- a registry filled while modules are imported: every module that does more at import than define
  its own names counts for all stages that reach its package (see effects.py);
- `getattr(module, name)`: a module counts whole, whichever of its names are used; so does a
  package that is imported as an object;
- docstrings where code reads `__doc__`.

Not covered: files that are no Python, C extensions, packages that declare no domain, and code that
another process imports by a name which is put together from several pieces.
"""

from stillhouse.code.keys import (
    builds_in,
    code_key,
    code_version,
    reached_code,
    recipe_code,
    stage_code,
    stage_modules,
    stage_roots,
    value_code,
)
from stillhouse.code.sources import changed_code

__all__ = [
    "builds_in", "changed_code", "code_key", "code_version", "reached_code", "recipe_code",
    "stage_code", "stage_modules", "stage_roots", "value_code",
]  # fmt: skip
