"""The command tree; the last net for errors: one line, exit code 2 for what users can put right."""

import gc
import io
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

try:
    from typer import TyperException as UsageError
except ImportError:  # before typer 0.21, which Flower requires, they are click's own
    from click import ClickException as UsageError

from stillhouse.cli.cleaning import clean
from stillhouse.cli.completing import answer_shells, completion
from stillhouse.cli.doctor import doctor
from stillhouse.cli.groups import deferred_groups
from stillhouse.cli.listing import list_, show
from stillhouse.cli.plugin import new
from stillhouse.cli.pushing import push
from stillhouse.cli.results import compare, diagnose, export, overview, predict, report
from stillhouse.cli.running import run, stage
from stillhouse.cli.stopping import quiet_end
from stillhouse.errors import TRY_AGAIN, OutOfMemory, StillhouseError
from stillhouse.files import REFUSALS

# exit codes after Ctrl-C and SIGTERM
STOPPED = (130, 143)


class _Group(TyperGroup):
    def get_help_option(self, ctx: Any) -> Any:  # Any: typer's own classes are private to it
        return _light(super().get_help_option(ctx))


class _Command(TyperCommand):
    def get_help_option(self, ctx: Any) -> Any:  # Any: typer's own classes are private to it
        return _light(super().get_help_option(ctx))


def _light(option: Any) -> Any:  # Any: typer's own classes are private to it
    """An unused --help is False, not None: to read None typer imports pydantic, half the start."""
    option.default = False
    return option


app = typer.Typer(
    name="stillhouse",
    cls=_Group,
    add_completion=False,
    # plain help: importing rich would double the time to start
    rich_markup_mode=None,
    # the interpreter's own traceback, without the values of local variables
    pretty_exceptions_enable=False,
)


def _version(shown: bool) -> None:
    if shown:
        from importlib.metadata import version

        print(f"stillhouse {version('stillhouse')}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def stillhouse(
    ctx: typer.Context,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make small models out of large ones, reproducibly."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


app.command("list", cls=_Command)(list_)
COMMANDS = (
    *(show, run, stage, report, diagnose, compare, overview, export, push, doctor, clean),
    completion,
)
for command in COMMANDS:
    app.command()(command)
# options that a domain's predictions take stand among its inputs
app.command(context_settings={"ignore_unknown_options": True})(predict)
app.add_typer(new, name="new")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on `argv` (default: the process's own); returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text
    code = _run(argv)
    if argv is None:
        # going through all that torch has imported once more, at the very end, takes a second
        gc.freeze()
        if code in STOPPED:
            quiet_end()
    return code


def _run(argv: Sequence[str] | None) -> int:
    answer_shells()
    group = typer.main.get_group(app)
    for name, command in deferred_groups().items():
        # the kernel's own commands cannot be replaced
        group.commands.setdefault(name, command)
    try:
        code = group.main(argv, prog_name="stillhouse", standalone_mode=False)
        sys.stdout.flush()  # a full disk behind a redirection shows here, not at exit
    except (KeyboardInterrupt, typer.Abort):
        print("\nInterrupted.", file=sys.stderr)
        return STOPPED[0]
    except OutOfMemory as error:
        code = _refuse(error)
        return TRY_AGAIN if error.again else code
    except (StillhouseError, UsageError) as error:
        return _refuse(error.format_message() if isinstance(error, UsageError) else error)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        return _refuse(f"{error.filename or 'file system'}: {REFUSALS[error.errno]}")
    return code if isinstance(code, int) else 0


def _refuse(reason: object) -> int:
    print(f"error: {' '.join(str(reason).split())}", file=sys.stderr)
    return 2
