"""Print the ABI that vosrt.h declares: functions, constants, and the size and layout of every struct.

    python runtime/native/abi.py > runtime/native/abi.txt

A test compares the output with the committed list, so that nobody changes the ABI by accident. Lines may be added; a
line that changes or goes breaks programs that are out there and needs another VOSRT_ABI_VERSION.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

HEADER = Path(__file__).parent / "include" / "vosrt.h"


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


def structs(text: str) -> dict[str, list[str]]:
    """Names of the fields of every struct that callers see into."""
    found = {}
    for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\n\} \1;", text, flags=re.DOTALL):
        fields = []
        for statement in body.split(";"):
            if callback := re.search(r"\(\*(\w+)\)", statement):
                fields.append(callback[1])
            elif statement.strip():
                fields += [re.findall(r"\w+", part.split("[")[0])[-1] for part in statement.split(",")]
        found[name] = fields
    return found


def program(text: str) -> str:
    """A C program that prints what only a compiler knows."""
    lines = [f'printf("constant %s = %ld\\n", "{name}", (long){name});' for name in constants(text)]
    for name, fields in structs(text).items():
        lines.append(f'printf("struct %s: %zu bytes\\n", "{name}", sizeof({name}));')
        for field in fields:
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


if __name__ == "__main__":
    sys.stdout.write(describe())
