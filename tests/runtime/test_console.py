"""What commands print: data as it is, one line per error, on any stream and in any locale."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

import vosrt
from vosrt.cli.app import call, program
from vosrt.console import Column, complain, say, show, table, warn
from vosrt.errors import InputError, MissingExtraError, WorkError
from vosrt.text import counted, one_line, printable, to_json

HOSTILE = "[/v3] [bold]x[/bold] vosrt[bench] :smile: {a}"
COMMANDS = {
    "vos-run": "vosrt.cli.run",
    "vos-eval": "vosrt.cli.eval",
    "vos-bench": "vosrt.cli.bench",
    "vos-train": "vosrt_train.cli",
    "vos-export": "vosrt_export.cli",
}
# A command in its own process, with the streams of a real one; it runs the body that follows.
PROGRAM = """
import sys
from vosrt.cli.app import call, program
from vosrt.console import note, say, say_json, show, warn
app = program()
@app.command(hidden=True)
def run(go: bool = False, json: bool = False) -> int:
    {body}
    return 0
sys.exit(call(app, ["--go", *sys.argv[1:]], "tool"))
"""


def run_body(
    body: str, command: str = '"$PYTHON" -c "$PROGRAM"', **options: object
) -> subprocess.CompletedProcess[str]:
    """Run `body` as a command by a shell, so that its streams can be anything."""
    environment = {**os.environ, "PYTHON": sys.executable, "PROGRAM": PROGRAM.format(body=body)}
    result: subprocess.CompletedProcess[str] = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        env=environment,
        **options,  # type: ignore[call-overload]
    )
    return result


def test_markup_in_data_is_shown_and_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets of names and of pip commands survive in lines, tables, heads, titles, warnings and errors."""
    say(HOSTILE)
    show(table([Column(HOSTILE, no_wrap=True)], [[HOSTILE]], title=HOSTILE), HOSTILE)
    warn(HOSTILE)
    complain(str(MissingExtraError("PyTorch", "train")))
    printed = capsys.readouterr()
    assert printed.out.count(HOSTILE) == 5
    assert (
        printed.err
        == f"warning: {HOSTILE}\nerror: PyTorch is not installed; install it with: pip install 'vosrt[train]'\n"
    )


def test_a_table_that_is_too_wide_keeps_its_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    names = ("first", "second", "third", "fourth", "fifth")
    figures = table([Column(name, min_width=9) for name in names], [["1234567.8"] * 5])
    folds = table([Column("text", overflow="fold")], [["x" * 90]])
    show(figures, folds)
    head, row, *rest = capsys.readouterr().out.splitlines()
    assert head.split() == list(names)
    assert row.split() == ["1234567.8"] * 5
    assert [len(line.rstrip()) for line in rest] == [4, 40, 40, 10]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Vögel × – 鳥 🐦", "Vögel × – 鳥 🐦"),
        (os.fsdecode(b"caf\xe9.mp4"), r"caf\xe9.mp4"),
        (os.fsdecode("Vögel ".encode() + b"\xff"), r"Vögel \xff"),
        ("a\x1b[31mred\x07", r"a\x1b[31mred\x07"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\ud83d alone", r"\ud83d alone"),
    ],
)
def test_everything_can_be_printed(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode()
    assert "\n" not in one_line(text)
    assert json.loads(to_json({"name": [text]}))["name"][0].encode()


def test_one_thing_is_counted_in_the_singular() -> None:
    assert [counted(number, "frame") for number in (0, 1, 2)] == ["0 frames", "1 frame", "2 frames"]


def test_json_of_names_that_are_utf8_is_unchanged() -> None:
    """Only what cannot be encoded is replaced; control characters are JSON's own escapes."""
    document = {"Vögel": ["\x1b[31m", 1, None, 2.5, True]}
    assert json.loads(to_json(document)) == document
    assert json.loads(to_json({os.fsdecode(b"\xe9"): 1, "é": "é"})) == {r"\xe9": 1, "é": "é"}


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
@pytest.mark.parametrize("encoding", ["", "ascii", "latin-1"])
def test_no_locale_breaks_a_line(locale: str, encoding: str) -> None:
    body = r"say('480\xd7854 \udce9'); say_json({'n': '\u9ce5'}); warn('\u2013')"
    command = f'LC_ALL={locale} PYTHONIOENCODING={encoding} PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 "$PYTHON" -c "$PROGRAM"'
    result = run_body(body, command)
    assert result.returncode == 0
    assert r"\xe9" in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("streams", "code", "err"),
    [
        ("| head -c 1 > /dev/null", 0, ""),
        ("> /dev/full", 1, "error: standard output cannot be written (No space left on device)"),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("2> /dev/full", 0, ""),
    ],
)
def test_streams_that_cannot_be_written(streams: str, code: int, err: str, tmp_path: Path) -> None:
    """The work goes on to its end; a pipe that is closed is no error, a full disk is one line."""
    done = tmp_path / "done"
    body = f"[say('x' * 1000) for _ in range(1000)]; show('x'); warn('w'); open({str(done)!r}, 'w').write('ok')"
    result = run_body(body, f'set -o pipefail; "$PYTHON" -c "$PROGRAM" {streams}')
    assert done.read_text() == "ok"
    assert result.returncode == code
    assert result.stderr.replace("warning: w\n", "").startswith(err)
    assert len(result.stderr.splitlines()) <= 2


def test_what_a_library_leaves_in_a_full_stream_is_no_error() -> None:
    """Python would exit with 120 where the rest of a buffer cannot be written."""
    result = run_body(
        "import sys; sys.stderr.write('no end of line')", 'PYTHONUNBUFFERED= "$PYTHON" -c "$PROGRAM" 2> /dev/full'
    )
    assert result.returncode == 0


@pytest.mark.parametrize(
    ("body", "code", "err"),
    [
        ("raise MemoryError", 1, "error: the memory is used up"),
        ("bytearray(1 << 60)", 1, "error: the memory is used up"),
        ('raise RuntimeError("can\'t start new thread")', 1, "error: the system allows no further thread"),
        ("raise BlockingIOError(11, 'Resource temporarily unavailable')", 1, "error: the system allows no further"),
        ("open('/nowhere/x')", 2, "error: /nowhere/x: No such file or directory; expected a path"),
        (r"open('/nowhere/caf\udce9')", 2, r"error: /nowhere/caf\xe9: No such file"),
        ("1 / 0", 1, "error: ZeroDivisionError: division by zero (at <string>:8); nobody foresaw this"),
        (r"raise ValueError('two\nlines')", 1, "error: ValueError: two lines"),
        ("raise SystemExit('bye')", 1, ""),
        ("raise KeyboardInterrupt", 130, "interrupted: nothing was written"),
        ("__import__('warnings').warn('a library speaks', UserWarning)", 0, "warning: a library speaks"),
    ],
)
def test_every_error_is_one_line(body: str, code: int, err: str) -> None:
    result = run_body(body)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith(err)
    assert len(result.stderr.splitlines()) == bool(err)


def test_a_traceback_can_be_asked_for() -> None:
    result = run_body("1 / 0", 'VOSRT_TRACEBACK=1 "$PYTHON" -c "$PROGRAM"')
    assert result.returncode == 1
    assert "Traceback (most recent call last)" in result.stderr


def test_an_error_in_json_is_an_object_too() -> None:
    result = run_body("1 / 0", '"$PYTHON" -c "$PROGRAM" --json')
    document = json.loads(result.stdout)
    assert document["exit_code"] == result.returncode == 1
    assert document["error"].startswith("ZeroDivisionError")


def test_threads_that_cannot_start_are_one_line() -> None:
    """The system limits the number of processes; that limit does not bind the superuser."""
    if os.geteuid() == 0:
        pytest.skip("limits on processes do not bind the superuser")
    body = "import resource, threading; resource.setrlimit(resource.RLIMIT_NPROC, (1, 1)); threading.Thread().start()"
    result = run_body(body)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)


def test_memory_that_runs_out_is_one_line() -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    result = run_body("import numpy; numpy.ones(1 << 33, 'u1')", preexec_fn=limit)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert result.stderr.startswith("error: the memory is used up (Unable to allocate 8.00 GiB")


def raising(error: Exception) -> typer.Typer:
    app = program()

    @app.command(hidden=True)
    def run(source: str = "", json: bool = False) -> int:
        raise error

    @app.command()
    def other() -> int:
        """Do something else."""
        return 3

    return app


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 0, ""),
        (["--source", "x"], 2, "error: bad input"),
        (["other"], 3, ""),
        (["--source", ""], 2, "error: --source is empty; is a variable of the shell not set?"),
        (["--source="], 2, "error: --source is empty"),
        (["other", ""], 2, "error: an argument is empty"),
        (["--source", " "], 2, "error: bad input"),
        (["--nothing"], 2, "error: No such option: --nothing"),
        (["other", "--nothing"], 2, "see tool other --help"),
        (["-h"], 0, ""),
        (["--version"], 0, ""),
    ],
)
def test_exit_codes(arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(raising(InputError("bad input")), arguments, "tool") == code
    assert says in capsys.readouterr().err


def test_failed_work_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(raising(WorkError("it broke")), ["--json"], "tool") == 1
    printed = capsys.readouterr()
    assert (json.loads(printed.out), printed.err) == ({"error": "it broke", "exit_code": 1}, "error: it broke\n")


def main_of(name: str) -> Callable[[list[str]], int]:
    module = pytest.importorskip(COMMANDS[name], reason=f"{name} needs an extra")
    main: Callable[[list[str]], int] = module.main
    return main


@pytest.mark.parametrize("name", COMMANDS)
def test_all_commands_share_one_face(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--version``, ``-h``, wrong usage and a call without arguments work alike."""
    monkeypatch.setenv("COLUMNS", "80")
    main = main_of(name)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vosrt {vosrt.__version__}\n"
    assert main(["-h"]) == 0
    short = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == short
    assert main(["--help-all"]) == 0
    assert capsys.readouterr().out.startswith(short.splitlines()[0])
    assert max(map(len, short.splitlines())) <= 80
    assert main(["--no-such-option"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.endswith(f"see {name} --help\n")
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("asked", ["--help", "--help-all"])
def test_help_of_every_command_fits_the_width(
    name: str, asked: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main = main_of(name)
    assert main(["-h"]) == 0
    commands = re.findall(r"(?m)^  ([a-z-]+) ", capsys.readouterr().out.partition("\nCommands:")[2])
    assert commands or name == "vos-bench"
    for command in commands:
        assert main([command, asked]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(f"Usage: {name} {command}")
        assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("vos-run", ["demo", "doctor"]),
        ("vos-eval", ["run", "score", "compare", "cycle"]),
        ("vos-train", ["init", "pseudo-masks"]),
        ("vos-export", ["engine", "import-released", "verify", "quantise", "compress"]),
    ],
)
def test_help_lists_the_commands(
    name: str, commands: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main_of(name)(["--help"]) == 0
    after = capsys.readouterr().out.split("\nCommands:")[1]
    assert all(f"\n  {command} " in after for command in commands)


@pytest.mark.parametrize("arguments", [["--help"], ["batch", "--help"], ["--help-all"]])
def test_help_may_be_cut_short(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader may go once it has something, as ``head`` does: that is no error."""
    with (tmp_path / "stdout").open("w") as file:

        class Cut(io.StringIO):
            def write(self, text: str) -> int:
                if self.getvalue():
                    raise BrokenPipeError
                return super().write(text)

            def fileno(self) -> int:
                return file.fileno()

        cut = Cut()
        monkeypatch.setattr("sys.stdout", cut)
        assert main_of("vos-run")(arguments) == 0
    assert "Usage: vos-run" in cut.getvalue()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_two_screens(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The help of every command has at most 48 lines, two screens of 80 x 24."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main_of(name)(["-h"]) == 0
    assert len(capsys.readouterr().out.splitlines()) <= 48


@pytest.mark.parametrize("arguments", [["--help-all"], ["clip.mp4", "--help-all"]])
def test_all_options_are_explained_on_request(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--help`` names rarely used options, ``--help-all`` explains them; both name defaults and keep brackets."""
    monkeypatch.setenv("COLUMNS", "80")
    main = main_of("vos-run")
    assert main(["-h"]) == 0
    short = capsys.readouterr().out
    assert main(arguments) == 0
    whole = capsys.readouterr().out
    for text in (short, whole):
        assert max(map(len, text.splitlines())) <= 80
        assert "[N:]FILE" in text
        assert "(default: auto)" in text
        assert "\nCommands:\n  demo" in text
    listed = set(re.findall(r"--[a-z-]+", short))
    explained = set(re.findall(r"(?m)^  (?:-\w, )?(--[a-z-]+)", whole))
    assert {"--top-k", "--reconnect", "--opacity"} <= listed & explained
    assert "\n  --top-k" not in short


@pytest.mark.parametrize(
    ("typed", "offers"),
    [
        ("vos-run ", ["demo", "doctor"]),
        ("vos-run --ma", ["--mask"]),
        ("vos-run clip.mp4 --pol", ["--polygon"]),
        ("vos-run doctor --js", ["--json"]),
        ("vos-eval sc", ["score"]),
    ],
)
def test_shells_complete(typed: str, offers: list[str]) -> None:
    """Bash is offered commands, and the options of the command that would run."""
    name = typed.split()[0]
    program = f"import sys; from {COMMANDS[name]} import main; sys.exit(main())"
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    words = {variable: "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split(" ")) - 1)}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env={**os.environ, **words}
    )
    assert set(offers) <= set(result.stdout.split()), result.stderr


def test_the_version_is_that_of_the_distribution() -> None:
    assert vosrt.__version__.split(".")[0].isdigit()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("vos-bench --source 0", "--source is called --clip"),
        ("vos-export nowhere --output bundle", "--output is called --out"),
        ("vos-export nowhere -o bundle --rounds=1", "--rounds is called --refine"),
        ("vos-export verify nowhere --frames clip.mp4 --sequence dog", "--sequence is called --sequences"),
        ("vos-export quantise nowhere -o b --calibrate clip.mp4 --davis d", "--calibrate is called --clip"),
        ("vos-train pseudo-masks nowhere --init net --output masks", "--init is called --checkpoint"),
        ("vos-train nowhere --output=run --init default", "--output is called --out"),
    ],
)
def test_former_names_of_options_are_taken(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A script of before gets a warning a name, and gets as far as with the new one."""
    name, *arguments = words.split()
    assert main_of(name)(arguments) == 2
    *warned, error = capsys.readouterr().err.splitlines()
    assert f"warning: the option {says}; use that name" in warned
    assert error.startswith("error: ")
    assert "--help" not in error


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("vos-export c -o b --feature res5", "--feature is 'res5'; expected one of 'res3', 'res4', 'key'"),
        ("vos-export c -o b --size=3", "--size is '3'; expected "),
        ("vos-run clip -o out --threads two", "--threads is 'two'; expected a valid integer"),
        ("vos-eval run data --dataset vip --size 3", "--size is '3'; expected "),
        ("vos-train init -o c --seed -1", "--seed is '-1'; expected "),
    ],
)
def test_refused_values_are_named_with_what_was_expected(
    words: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *arguments = words.split()
    assert main_of(name)(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {says}")
