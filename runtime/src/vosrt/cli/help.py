"""Help of a command: one table, no wider than the terminal, with the commands of the program at its end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from vosrt.cli.options import FOLDED
from vosrt.console import Cell, Column, say, show, styled, table

_STYLES = re.compile(r"\[/?(b|dim)\]")  # in help texts of ours
_LEFT = 24  # columns for names; longer ones break
_ARGUMENTS, _OPTIONS, _COMMANDS = "Arguments", "Options", "Commands"


def show_help(
    context: Any, command: Any, params: Sequence[Any], commands: Iterable[tuple[str, Any]] = (), *, whole: bool
) -> None:
    """Print the help of a command: ``--help-all``, or ``--help``, which only names the options of folded panels.

    Args:
        command: whose description and epilog are shown.
        commands: names and commands of its program.
        whole: explain every option.
    """
    folded: list[str] = []
    panels: dict[str, list[list[Cell]]] = {_ARGUMENTS: []}
    for param in params:
        if getattr(param, "hidden", False):
            continue
        argument = param.param_type_name == "argument"
        panel = getattr(param, "rich_help_panel", None) or (_ARGUMENTS if argument else _OPTIONS)
        if not whole and panel in FOLDED:
            folded.append(max(param.opts, key=len))
            continue
        if not whole and "completion" in param.name:
            continue
        panels.setdefault(panel, []).append([styled(f"  {_names(param)}", "cyan"), _text(param)])
    panels[_OPTIONS] = panels.pop(_OPTIONS, [])
    if folded:
        help_all: list[Cell] = [styled("  --help-all", "cyan"), f"Explain {' '.join(folded)} too."]
        panels[_OPTIONS].insert(-1, help_all)
    listed = [(name, each) for name, each in commands if not each.hidden]
    panels[_COMMANDS] = [[styled(f"  {name}", "cyan"), plain(each.help).split("\n\n")[0]] for name, each in listed]
    arguments = [_names(param) for param in params if param.param_type_name == "argument"]
    usage = " ".join([context.command_path.strip(), "[OPTIONS]", *(arguments or ["COMMAND"] * bool(listed))])
    say(f"Usage: {usage}\n")
    show(*([plain(command.help), ""] if command.help else []))
    for panel, lines in panels.items():
        if lines:
            columns = [Column(width=_LEFT, overflow="fold"), Column(overflow="fold")]
            show(styled(f"{panel}:", "bold"), table(columns, lines, head=False))
    if command.epilog:
        show("", plain(command.epilog))


def plain(text: str | None) -> str:
    """A help text without its styles and line breaks, paragraphs apart."""
    paragraphs = _STYLES.sub("", text or "").strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _names(param: Any) -> str:
    if param.param_type_name == "argument":
        return str(param.metavar or param.name.upper())
    names = ", ".join(sorted(param.opts, key=len))
    if getattr(param, "is_flag", False):
        return "/".join([names, *param.secondary_opts])
    return f"{names} {param.metavar or param.name.upper()}"


def _text(param: Any) -> str:
    """The help of a parameter, with its choices and default."""
    described = getattr(param, "type_descriptor", None) or getattr(param, "type", None)
    choices = [str(getattr(choice, "value", choice)) for choice in getattr(described, "choices", None) or ()]
    default, shown = getattr(param.default, "value", param.default), getattr(param, "show_default", True)
    remarks = [f"one of {', '.join(choices)}"] if choices else []
    if param.required:
        remarks.append("required")
    elif isinstance(shown, str):
        remarks.append(f"default: {shown}")
    elif shown and default not in (None, False, "", ()) and not callable(default):
        remarks.append(f"default: {'on' if default is True else default}")
    text = plain(getattr(param, "help", None))
    return f"{text} ({'; '.join(remarks)})" if remarks else text
