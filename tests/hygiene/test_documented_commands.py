"""Command lines in documents, notebooks and messages are those that the commands take today."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import typer

from tests.hygiene.test_repository import REPOSITORY, tracked_files
from tests.runtime.test_console import COMMANDS

COMMAND = re.compile(r"(?<![\w-])(vos-(?:run|bench|eval|export|train))(?![\w-])")
TYPED = re.compile(r"[\s!]*(?:[A-Z_]+=\S+ |torchrun .*?)?(vos-(?:run|bench|eval|export|train)\s.*)")
# What ends a command line: quotes, operators of a shell, comments, the next command, and the rest of a sentence.
END = re.compile(r"`|\n|&&|\||;|>|\s#|\\n|\"|…|(?<![\w-])vos-|, |\. |: ")
FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
# Words in capitals stand for a value of the reader's; those whose form is checked, for these.
PLACEHOLDERS = {"N": "1", "R": "0.5", "G": "0.5", "B": "0.5", "FAMILY": "dino", "X,Y": "1,2"}
ANSWERED_AT_ONCE = {"-h", "--help", "--help-all", "--help-settings", "--version", "--install-completion"}


def documents() -> Iterator[tuple[str, str]]:
    """Yield name and text of every document; a notebook's cells are fenced where they hold code."""
    for path in tracked_files():
        name, text = str(path.relative_to(REPOSITORY)), path.read_text() if path.suffix in {".md", ".ipynb"} else ""
        if path.suffix == ".ipynb":
            cells = [("".join(cell["source"]), cell["cell_type"]) for cell in json.loads(text)["cells"]]
            text = "\n".join(f"```\n{source}\n```" if kind == "code" else source for source, kind in cells)
        if text:
            yield name, text


def command_lines(text: str) -> list[str]:
    """Return what stands in blocks of code to be typed: ``[…]`` as if it were typed, too, and the first of ``a|b``."""
    found = []
    for block in (*FENCED.findall(text), *INDENTED.findall(FENCED.sub("", text))):
        for line in block.replace("\\\n", " ").splitlines():
            plain = re.sub(r"(?<=\s)\[|\](?=\s|$)|\s#.*|…", "", line)
            plain = re.sub(r"(?<=[\w.])(\|[\w.…-]+)+(?=\s|$)", "", plain)
            parts = re.split(r"&&|\s\||;|\s>|\(", plain)
            found += [match[1].strip() for part in parts if (match := TYPED.match(part))]
    return found


@cache
def program(name: str) -> Any:
    """Return the tree of commands of a program."""
    module = pytest.importorskip(COMMANDS[name], reason=f"{name} needs an extra")
    return typer.main.get_command(module._app)


def refusal(line: str) -> str:
    """Return why a command line cannot be typed, or an empty text; nothing is run."""
    name, *words = (PLACEHOLDERS.get(word, word) for word in shlex.split(line))
    if ANSWERED_AT_ONCE.intersection(words):
        return ""
    try:
        with program(name).make_context(name, words) as context:
            _, command, rest = program(name).resolve_command(context, [*context._protected_args, *context.args])
            with command.make_context(name, rest, parent=context):
                return ""
    except Exception as error:
        return f"{line}: {error}"


def unknown_options(text: str) -> list[str]:
    """Return the options that a text gives to a command which has none of that name."""
    found, text = [], text.replace("\\\n", " ")
    for match in COMMAND.finditer(text):
        commands = program(match[1])
        words = END.split(text[match.end() : match.end() + 1000])[0].split()
        command = commands.commands.get(words[0] if words else "") or commands.own_command() or commands
        names = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
        options = [option[1] for word in words if (option := re.match(r"\W*?(--?[a-z][\w-]*)", word))]
        found += [f"{match[1]} … {each}" for each in options if each not in names | ANSWERED_AT_ONCE]
    return found


def test_command_lines_of_documents_can_be_typed() -> None:
    lines = {(name, line) for name, text in documents() for line in command_lines(text)}
    assert len(lines) > 60
    assert sorted(f"{name}: {why}" for name, line in lines if (why := refusal(line))) == []


def test_options_that_documents_and_messages_name_exist() -> None:
    """Documents, and what the sources say to their reader, name options as they are called today."""
    texts = [(name, text) for name, text in documents() if name != "CHANGELOG.md"]  # which names what was
    sources = (path for path in tracked_files() if path.suffix in {".py", ".hpp", ".cpp"} and "/src/" in str(path))
    texts += [(str(path.relative_to(REPOSITORY)), path.read_text()) for path in sources]
    assert len(texts) > 200
    assert {name: found for name, text in texts if (found := unknown_options(text))} == {}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("vos-export quantise SMALL -o SMALL-8 --clip CLIP --davis DAVIS", ""),
        ("vos-export quantise SMALL -o SMALL-8 --calibrat CLIP", "No such option"),
        ("vos-run clip.mp4 --mask first.png -o result", ""),
        ("vos-run clip.mp4 --mask first.png", "Missing parameter: out"),
        ("vos-export engine default --flavour cuda", "is not one of"),
        ("vos-bench --rounds two", "integer"),
    ],
)
def test_command_lines_are_read_as_the_commands_read_them(line: str, says: str) -> None:
    assert (says in refusal(line)) if says else refusal(line) == ""


def test_options_are_found_in_running_text() -> None:
    assert unknown_options("see `vos-export quantise` or `vos-run clip --nothing`; `--nowhere`") == [
        "vos-run … --nothing"
    ]
    assert unknown_options("`vos-export quantise B --calibrate CLIP`") == ["vos-export … --calibrate"]
    assert unknown_options("`vos-run explain clip.mp4 [--frame 4] -o why`, `vos-benchmark --x`") == []


def test_lines_are_taken_out_of_blocks() -> None:
    text = (
        "Text.\n\n    . x && vos-run A [--size 3] -o B   # vos-run C\n\n```bash\nvos-eval run a|b \\\n -o C > d\n```\n"
    )
    assert command_lines(text) == ["vos-eval run a   -o C", "vos-run A --size 3 -o B"]
