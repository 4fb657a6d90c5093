"""Every error a user can cause, each one clear line: where, what was found, what would do, how to
get it.

StillhouseError
|- UnknownName        an unknown name, with the nearest known one
|- BadSetting         a setting or argument whose value cannot be used
|- BadRecipe          a recipe whose parts do not fit together
|- UnhashableRecipe   a lambda, closure or open object inside a recipe
|- MissingData        an input that is not on this machine
|- BadData            an input that is there and cannot be used: truncated, NaN, label out of range
|- CorruptArtifact    bytes that differ from the digest written beside them
|- StaleInput         data or code that changed while a stage ran
|- MissingExtra       a package that is not installed
|- StorageError       no space, read-only, not permitted
|- OutOfMemory        a training step that does not fit the device's memory
|- ContractError      a frozen role that changed, a loss that is not finite
|- ClientLost         a client of a federation that does not answer
`- PluginError        a plugin that cannot be loaded
"""

import difflib
from collections.abc import Iterable


class StillhouseError(Exception):
    """Something the user can put right. The command line prints it without a traceback and exits
    with 2.
    """


class UnknownName(StillhouseError):
    """A name that is not among the valid ones."""

    def __init__(self, what: str, name: str, valid: Iterable[str], *, where: str = "") -> None:
        names = sorted(valid)
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        known = f" Valid: {', '.join(names)}." if names else " There are none."
        prefix = f"{where}: " if where else ""
        super().__init__(f"{prefix}unknown {what} '{name}'.{hint}{known}")


class BadSetting(StillhouseError):
    """A setting or argument whose value cannot be used."""


class BadRecipe(StillhouseError):
    """A recipe whose parts do not fit together."""


class UnhashableRecipe(BadRecipe):
    """A value inside a recipe that has no reproducible digest."""


class MissingData(StillhouseError):
    """An input that is not on this machine."""


class BadData(StillhouseError):
    """An input that is there and cannot be used."""


class CorruptArtifact(StillhouseError):
    """Bytes that differ from the digest written beside them."""


class StaleInput(StillhouseError):
    """Data or code that changed while a stage ran: what the stage left belongs to no key."""


class MissingExtra(StillhouseError):
    """A package that is not installed."""

    def __init__(self, where: str, package: str, *, install: str) -> None:
        super().__init__(f"{where} needs `{package}`, which is not installed. Run: {install}")


class StorageError(StillhouseError):
    """The file system refused: no space, read-only, not permitted."""


# EX_TEMPFAIL of sysexits.h: the command line's exit code where another try may do
TRY_AGAIN = 75


class OutOfMemory(StillhouseError):
    """A training step that does not fit the device's memory. `again`: with each batch in more
    micro-batches it may; the command line then exits with 75 (EX_TEMPFAIL) instead of 2.
    """

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class ContractError(StillhouseError):
    """A promise of the kernel that a model or an objective broke during training."""


class ClientLost(StillhouseError):
    """A client of a federation that does not answer: its round ends without it."""


class PluginError(StillhouseError):
    """A plugin that cannot be loaded."""
