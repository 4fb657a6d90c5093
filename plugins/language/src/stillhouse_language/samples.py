"""Built-in text: the documentation in Python's own library, so that every recipe runs without a
download. Another Python has another text.
"""

import ast
import re
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Texts = NDArray[np.str_]
# modules whose docstrings are prose
MODULES = (
    "argparse", "calendar", "cmd", "codecs", "collections/__init__", "configparser", "copy", "csv",
    "dataclasses", "difflib", "dis", "doctest", "enum", "fractions", "functools", "gettext",
    "gzip", "heapq", "http/client", "inspect", "ipaddress", "json/__init__", "locale",
    "logging/__init__", "logging/handlers", "mailbox", "multiprocessing/pool", "optparse", "os",
    "pdb", "platform", "pprint", "queue", "random", "shelve", "shlex", "shutil", "smtplib",
    "statistics", "string", "subprocess", "tempfile", "textwrap", "threading", "timeit",
    "traceback", "unittest/case", "urllib/parse", "urllib/request", "uuid", "weakref",
    "_pydatetime",
)  # fmt: skip
REFERENCE, DOCSTRING = "reference", "docstring"
FEWEST, MOST = 6, 40  # words of a sentence
END = re.compile(r"(?<=[.?!])\s+(?=[A-Z])")
TEST_EVERY = 4  # every so-many-th sentence is for testing


def library_text() -> Mapping[str, Texts]:
    """Sentences of Python's language reference and of its library's docstrings, as "text"."""
    return {"text": np.array([*_sentences(_reference()), *_sentences(_docstrings())])}


def library_kinds() -> Mapping[str, NDArray[np.generic]]:
    """The same sentences, evenly of both kinds, as a task: "text", "label" ("reference" or
    "docstring") and "test" (bool).
    """
    kinds = {
        REFERENCE: list(_sentences(_reference())),
        DOCSTRING: list(_sentences(_docstrings())),
    }
    count = min(map(len, kinds.values()))
    texts, labels = list[str](), list[str]()
    for kind, sentences in kinds.items():
        # evenly spread: of all modules, not of the first ones
        texts += [sentences[i * len(sentences) // count] for i in range(count)]
        labels += [kind] * count
    numbers = np.tile(np.arange(count), len(kinds))
    return {"text": np.array(texts), "label": np.array(labels), "test": numbers % TEST_EVERY == 0}


def _reference() -> Iterator[str]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        for block in topics[name].split("\n\n"):
            if not block.startswith(" ") and "::=" not in block:  # prose, no code
                yield block


def _docstrings() -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in MODULES:
        file = library / f"{name}.py"
        if not file.is_file():
            continue  # of another Python's library
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (
                text := ast.get_docstring(node)
            ):
                yield from (block for block in text.split("\n\n") if not block.startswith(" "))


def _sentences(blocks: Iterator[str]) -> Iterator[str]:
    """Sentences of 6 to 40 words, each once."""
    seen = set[str]()
    for block in blocks:
        for sentence in END.split(" ".join(block.split())):
            words = len(sentence.split())
            if FEWEST <= words <= MOST and sentence not in seen and ">>>" not in sentence:
                seen.add(sentence)
                yield sentence
