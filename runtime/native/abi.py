"""Print the ABI that vosrt.h declares: functions, constants, and the size and layout of every struct.

    python runtime/native/abi.py > runtime/native/abi.txt
    python runtime/native/abi.py --python > runtime/src/vosrt/core/abi.py

The second command prints the Python binding of vosrt.h and vosrt_cuda.h for ctypes. A test compares both outputs with
the committed files, so that nobody changes the ABI by accident. Lines may be added; a line that changes or goes breaks
programs that are out there and needs another VOSRT_ABI_VERSION.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

HEADER = Path(__file__).parent / "include" / "vosrt.h"
CUDA_HEADER = HEADER.with_name("vosrt_cuda.h")


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def functions(text: str) -> list[str]:
    """Declarations, one line each."""
    found = re.findall(r"VOSRT_API ([^;{]*?\));", text)
    return sorted(" ".join(declaration.split()) for declaration in found)


def constants(text: str) -> list[str]:
    """Members of the enums, and the version."""
    bodies = re.findall(r"typedef enum \w+ \{(.*?)\}", text, flags=re.DOTALL)
    return ["VOSRT_ABI_VERSION", *(name for body in bodies for name in re.findall(r"\b(VOSRT_\w+)\s*=", body))]


def structs(text: str) -> dict[str, list[tuple[str, str]]]:
    """Fields of every struct that callers see into, see `fields`."""
    found = re.findall(r"typedef struct (\w+) \{(.*?)\n\} \1;", text, flags=re.DOTALL)
    return {name: fields(body) for name, body in found}


def program(text: str) -> str:
    """A C program that prints what only a compiler knows."""
    lines = [f'printf("constant %s = %ld\\n", "{name}", (long){name});' for name in constants(text)]
    for name, members in structs(text).items():
        lines.append(f'printf("struct %s: %zu bytes\\n", "{name}", sizeof({name}));')
        for field, _ in members:
            place = f"offsetof({name}, {field}), sizeof((({name} *)0)->{field})"
            lines.append(f'printf("    %s at %zu, %zu bytes\\n", "{field}", {place});')
    body = "\n    ".join(lines)
    return f"#include <stdio.h>\n#include <vosrt.h>\nint main(void) {{\n    {body}\n    return 0;\n}}\n"


def describe(compiler: str = "cc") -> str:
    """The whole list."""
    text = without_comments(HEADER.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "abi.c"), Path(folder, "abi")
        source.write_text(program(text))
        subprocess.run(
            [compiler, "-std=c99", "-Wall", "-Werror", f"-I{HEADER.parent}", "-o", binary, source], check=True
        )
        layout = subprocess.run([binary], capture_output=True, text=True, check=True).stdout
    return "".join(f"function {line}\n" for line in functions(text)) + layout


_TITLE = "The C interface of vosrt.h and vosrt_cuda.h for ctypes. Written by runtime/native/abi.py: not to be edited."
_SCALARS = {
    **{f"{sign}int{bits}_t": f"c_{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{name: f"c_{name}" for name in ("int", "char", "float", "double")},
    "size_t": "c_size_t",
}


def ctype(declared: str) -> str:
    """What ctypes calls a type, as in ``const uint8_t *``; enums are ints."""
    kind = declared.replace("const ", "").strip()
    if "*" in kind:
        return "c_char_p" if re.fullmatch(r"char \*", kind) else "c_void_p"
    return "None" if kind == "void" else _SCALARS.get(kind, "c_int")


def declared_type(declaration: str) -> str:
    """The type in a declaration of a parameter or a function."""
    return re.sub(r"\w+$", "", declaration.strip())


def fields(body: str) -> list[tuple[str, str]]:
    """Names of a struct's fields and what ctypes calls their types; callbacks are pointers."""
    found = []
    for statement in filter(None, map(str.strip, body.split(";"))):
        if callback := re.search(r"\(\*(\w+)\)", statement):
            found.append((callback[1], "c_void_p"))
            continue
        first, *others = (part.strip() for part in statement.split(","))
        kind = declared_type(first.partition("[")[0])
        for each in (first.removeprefix(kind), *others):
            name, _, extent = each.removesuffix("]").partition("[")
            found.append((name, f"{ctype(kind)} * {extent}" if extent else ctype(kind)))
    return found


def entry(*parts: str) -> str:
    """One entry of a dictionary, on as many lines as it needs."""
    return textwrap.fill("".join(parts), 118, initial_indent="    ", subsequent_indent="        ") + "\n"


def python_binding() -> str:
    """The binding: constants, structs and signatures of both headers."""
    text = "".join(without_comments(header.read_text(encoding="utf-8")) for header in (HEADER, CUDA_HEADER))
    values = re.findall(r"\b(VOSRT_\w+)\s*=\s*(-?\d+)|#define (VOSRT_ABI_VERSION) (\d+)u", text)
    out = "CONSTANTS: dict[str, int] = {\n"
    out += entry(*(f'"{name or macro}": {value or number}, ' for name, value, macro, number in values))
    out += "}\nSTRUCTS: dict[str, list[tuple[str, Any]]] = {\n"
    for name, members in structs(text).items():
        out += entry(f'"{name}": [', ", ".join(f'("{field}", {kind})' for field, kind in members), "],")
    out += "}\nFUNCTIONS: dict[str, tuple[Any, list[Any]]] = {  # result and arguments\n"
    for line in functions(text):
        result, name, arguments = re.fullmatch(r"(.*?)(\w+)\((.*)\)", line).groups()  # type: ignore[union-attr]
        kinds = [ctype(declared_type(each)) for each in arguments.split(",") if each.strip() != "void"]
        out += entry(f'"{name}": ({ctype(result)}, [{", ".join(kinds)}]),')
    used = ", ".join(sorted(set(re.findall(r"\bc_\w+", out))))
    return f'"""{_TITLE}"""\n\nfrom ctypes import {used}\nfrom typing import Any\n\n{out}}}\n'


if __name__ == "__main__":
    sys.stdout.write(python_binding() if sys.argv[1:] == ["--python"] else describe())
