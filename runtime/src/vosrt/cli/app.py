"""Foundation of all commands: one program with its commands, one line per error, the exit codes.

Exit codes: 0 done; 1 the work failed, what was done is kept; 2 wrong input, nothing was written; 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import vosrt
from vosrt import console
from vosrt._signals import handled
from vosrt.cli.help import show_help
from vosrt.errors import MissingExtraError, OptionError, VosrtError

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
TRACEBACK_VARIABLE = "VOSRT_TRACEBACK"

_HELP = ["-h", "--help"]
# Options that the program answers itself; what else comes first belongs to its own command.
_PROGRAM_OPTIONS = {*_HELP, "--version", "--install-completion", "--show-completion"}

# Former names of options. A command that declares the new name, and not the old one, takes that with a warning.
_OLD_NAMES = {
    "--output": "--out",
    "--source": "--clip",
    "--frames": "--clip",
    "--calibrate": "--clip",
    "--sequence": "--sequences",
    "--rounds": "--refine",
    "--init": "--checkpoint",
}

# Reasons why the option parser refuses a value, and what it expected.
_REASONS = {
    r"^Input should be (less|greater) than or equal to (.*)$": r"a number \1 than or equal to \2",
    r"^Input should be ([^,]*).*$": r"\1",
    r"^.* is not one of (.*)$": r"one of \1",
    r"^.* is not in the range (.*)$": r"\1",
    r"^.* is not a valid (\w+)$": r"a valid \1",
}

# What a wrong option raises. Its base class is click's, of which newer versions of typer carry a copy.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class _Program(TyperGroup):
    """Commands, of which a hidden one runs where none is named: ``vos-run SOURCE`` beside ``vos-run doctor``."""

    def own_command(self) -> Any:
        """Return the hidden command, or None."""
        return next((command for command in self.commands.values() if command.hidden), None)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Name the hidden command where no other one is named."""
        own = self.own_command()
        if not args:
            args = [] if ctx.resilient_parsing else ["--help"]
        elif own is None and args[0] == "--help-all":
            args = ["--help"]  # which has the same to say: the options are those of the commands
        elif own is not None and args[0] not in self.commands and args[0].split("=")[0] not in _PROGRAM_OPTIONS:
            args = [str(own.name), *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Keep the name of the hidden command out of usage lines."""
        name, command, rest = super().resolve_command(ctx, args)
        return ("" if command is not None and command.hidden else name), command, rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write help of the hidden command with the others below it, and end."""
        self.write_help(ctx, whole=False)
        ctx.exit()  # typer's own empty line after it would fail where the reader has gone: --help | head

    def write_help(self, ctx: Any, *, whole: bool) -> None:
        """Write help with all options, or with the usual ones."""
        own = self.own_command()
        params = [*(own.params if own else ()), *self.params, self.get_help_option(ctx)]
        show_help(ctx, own or self, params, self.commands.items(), whole=whole)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete names of commands, and options of the hidden one."""
        own = self.own_command()
        return [*super().shell_complete(ctx, incomplete), *(own.shell_complete(ctx, incomplete) if own else ())]


class _Command(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Answer ``--help-all``, refuse empty words, and take former names of options."""
        if "--help-all" in args:
            self._write_help(ctx, whole=True)
            ctx.exit()
        if not ctx.resilient_parsing:
            _check_words(args)
        return super().parse_args(ctx, self._with_new_names(ctx, args))

    def _with_new_names(self, ctx: Any, args: list[str]) -> list[str]:
        known = {name for param in self.get_params(ctx) for name in param.opts}
        ours = args.index("--") if "--" in args else len(args)  # what follows are files
        for place, argument in enumerate(args[:ours]):
            old, equals, value = argument.partition("=")
            new = _OLD_NAMES.get(old, "")
            if new in known and old not in known:
                console.warn(f"the option {old} is called {new}; use that name")
                args[place] = new + equals + value
        return args

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write help, and end as the program's."""
        self._write_help(ctx, whole=False)
        ctx.exit()

    def _write_help(self, ctx: Any, *, whole: bool) -> None:
        if self.hidden:  # the program's own command has the program's page
            ctx.parent.command.write_help(ctx.parent, whole=whole)
        else:
            show_help(ctx, self, self.get_params(ctx), whole=whole)


def _check_words(words: list[str]) -> None:
    """Refuse empty words, which a variable of the shell that is not set leaves: as a path, one is the working folder.

    Raises:
        OptionError: a word, or the value of an option, is empty.
    """
    for before, word in pairwise(["", *words]):
        name, equals, value = word.partition("=")
        if not word or (name[:2] == "--" and equals and not value):
            what = name or (before if before[:1] == "-" else "an argument")
            raise OptionError(f"{what} is empty; is a variable of the shell not set?")


class _App(typer.Typer):
    def command(self, *args: Any, **more: Any) -> Any:
        """Add a command, whose help is ours."""
        return super().command(*args, cls=_Command, **more)


def program(help_text: str | None = None) -> typer.Typer:
    """Return a program without commands.

    The command that is added with ``hidden=True`` is the program's own: it runs where no other one is named.
    """
    app = _App(
        cls=_Program,
        help=help_text,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": _HELP},
    )
    app.callback()(_program_options)
    return app


def _program_options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=lambda value: _version(value)),
    ] = False,
) -> None:
    pass


def _version(wanted: bool) -> None:
    if wanted:
        console.say(f"vosrt {vosrt.__version__}")
        raise typer.Exit


def entry(app: typer.Typer, name: str) -> Callable[..., int]:
    """Return the ``main`` of a program, which takes the words of a command line, by default those of ``sys.argv``.

    It returns the exit code: 0, 1 (the work failed), 2 (wrong input, nothing was written) or 130 (interrupted).
    """

    def main(arguments: list[str] | None = None) -> int:
        return call(app, sys.argv[1:] if arguments is None else arguments, name)

    return main


def call(app: typer.Typer, arguments: list[str], name: str) -> int:
    """Run a command line whose commands return their exit code.

    Every error is one line on stderr; after ``--json`` also a JSON object on stdout. ``kill`` ends it as Ctrl-C does.
    With VOSRT_TRACEBACK=1 in the environment, an unforeseen error shows its traceback.

    Args:
        app: made by `program`.
        arguments: of the command line, without the program.
        name: of the command, as a person types it.

    Returns:
        The exit code.
    """
    console.prepare()
    return console.finish(guarded(lambda: _invoke(app, arguments, name), arguments, name))


def guarded(work: Callable[[], int], arguments: list[str], name: str) -> int:
    """Do what a command does; every error is printed as `call` says, and becomes its exit code."""
    try:
        with handled(), _warnings_in_one_line():
            return work()
    except BaseException as error:
        return _explain(error, arguments, name)


def _invoke(app: typer.Typer, arguments: list[str], name: str) -> int:
    command = typer.main.get_command(app)
    if f"_{name.replace('-', '_').upper()}_COMPLETE" in os.environ:  # a shell asks what may come next
        command.main(arguments, prog_name=name)
    # command.main() would turn Ctrl-C and closed pipes into other exit codes.
    with command.make_context(name, list(arguments)) as context:
        return int(command.invoke(context) or 0)


def _explain(error: BaseException, arguments: list[str], name: str) -> int:
    """Print an error as one line; return the exit code."""
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        # rich raises it where the reader of stdout has gone.
        gone = isinstance(error.__context__, BrokenPipeError)
        return 0 if gone or error.code is None else error.code if isinstance(error.code, int) else EXIT_FAILED
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        console.note("interrupted: nothing was written")
        return EXIT_INTERRUPTED
    message, code = _message_of(error, arguments, name)
    if isinstance(error, _UsageError):
        files = [each for each in arguments if each[:1] == "-" and os.path.exists(each)]
        message += f"; the file {files[0]} is written ./{files[0]}" if files else ""
    if "--json" in arguments:
        console.say_json({"error": message, "exit_code": code})
    console.complain(message)
    return code


def _message_of(error: BaseException, arguments: list[str], name: str) -> tuple[str, int]:
    """Return the message of an error and the exit code."""
    if isinstance(error, VosrtError):
        return str(error), error.exit_code
    if isinstance(error, _UsageError):
        path = getattr(getattr(error, "ctx", None), "command_path", "") or name
        return f"{_usage_message(error, arguments)}; see {path.strip()} --help", EXIT_USAGE
    if isinstance(error, MemoryError):
        return (
            f"the memory is used up ({error or 'an allocation failed'}); try a smaller --size, or end other programs",
            1,
        )
    if _no_thread(error):
        return "the system allows no further thread or process; raise the limit (ulimit -u), or end other programs", 1
    if isinstance(error, OSError) and error.filename is not None:
        # A path that cannot even be looked up: a name too long, a folder that this user may not enter.
        return f"{os.fsdecode(error.filename)}: {error.strerror}; expected a path that can be used", EXIT_USAGE
    if os.environ.get(TRACEBACK_VARIABLE):
        raise error
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(place.filename)}:{place.lineno}"
    return (
        f"{type(error).__name__}: {error} (at {where}); nobody foresaw this, so please report it with what "
        f"{TRACEBACK_VARIABLE}=1 shows",
        EXIT_FAILED,
    )


def _usage_message(error: Any, arguments: list[str]) -> str:
    """Return what is wrong with a command line, in our words where a value is refused."""
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    refused = re.fullmatch(r"Invalid value for '?(-[^']*?)'?: (.*)", message.replace("Value error, ", ""), re.DOTALL)
    names = getattr(getattr(error, "param", None), "opts", ())
    if refused is None or not names:
        return str(message).rstrip(".")
    values = [value for word, value in pairwise(arguments) if word in names]
    values += [word.partition("=")[2] for word in arguments if word.partition("=")[0] in names and "=" in word]
    given = f"{max(names, key=len)} is {values[-1]!r}; " if values else ""
    reason = refused[2].rstrip(".")
    for pattern, expected in _REASONS.items():
        reason = re.sub(pattern, f"expected {expected}", reason)
    return given + reason


def _no_thread(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.EAGAIN and error.filename is None
    return isinstance(error, RuntimeError) and (
        "can't start new thread" in str(error) or "Resource temporarily unavailable" in str(error)
    )


def require(module: str, what: str, extra: str) -> None:
    """Refuse to go on without an optional package.

    Args:
        module: name of the module that it brings, e.g. ``"torch"``.
        what: its name for people, e.g. ``"PyTorch"``.
        extra: the extra of this distribution that brings it.

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(what, extra)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print warnings of libraries without the line of their source."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        console.warn(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
