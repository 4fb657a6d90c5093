"""Reports: a pure function of finished stages. Nothing below imports this package.

The public names are imported when they are first used: matplotlib, jinja2 and scipy take seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.report.comparison import ComparedReports, compare
    from stillhouse.report.document import Document, load
    from stillhouse.report.pages import publish, report
    from stillhouse.report.tables import Table, results
    from stillhouse.report.terminal import brief, legend

_MODULE = {
    "brief": "terminal",
    "legend": "terminal",
    "ComparedReports": "comparison",
    "compare": "comparison",
    "Document": "document",
    "load": "document",
    "publish": "pages",
    "report": "pages",
    "Table": "tables",
    "results": "tables",
}

__all__ = [
    "ComparedReports", "Document", "Table", "brief", "compare", "legend", "load", "publish",
    "report", "results",
]  # fmt: skip


def __getattr__(name: str) -> Any:  # Any: the public names have no common type
    if name not in _MODULE:
        raise AttributeError(f"module 'stillhouse.report' has no attribute '{name}'")
    return getattr(importlib.import_module(f"stillhouse.report.{_MODULE[name]}"), name)
