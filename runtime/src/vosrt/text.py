"""Text that comes from data, made fit to be printed and stored."""

from __future__ import annotations

import json
import re
from typing import Any


def _escape(code: int) -> str:
    byte = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code
    return f"\\x{byte:02x}" if byte < 256 else f"\\u{byte:04x}"


# Bytes of a file name that are not UTF-8 come as U+DC80 to U+DCFF; no surrogate can be encoded.
_SURROGATE = re.compile("[\ud800-\udfff]")
# Characters that steer a terminal (C0, C1, DEL) or turn the direction of writing; line feed and tab are layout.
_STEERING = [range(0x20), range(0x7F, 0xA0), range(0x200E, 0x2010), range(0x2028, 0x202F), range(0x2066, 0x206A)]
_ESCAPES = {code: _escape(code) for span in _STEERING for code in span if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    r"""Return `text` with what cannot be printed as escapes.

    Bytes of a file name that are not UTF-8 become ``\xe9``, and so do characters that steer a terminal.
    """
    return _without_surrogates(text).translate(_ESCAPES)


def one_line(text: str) -> str:
    """Return `text` printable and without line breaks."""
    return printable(" ".join(text.split()))


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 frame``, ``2 frames``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def quoted(value: object) -> str:
    """Return a value from a file as Python writes it, in ASCII and at most 60 characters."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "…"


def reason_of(error: BaseException) -> str:
    """Return an exception's words, or else its name, as `one_line` of at most 300 characters."""
    text = one_line(str(error)) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"


def to_json(document: Any, *, indent: int | None = None) -> str:
    r"""Return a JSON text that every reader accepts.

    Names that are not UTF-8 are stored as `printable` shows them: a lone surrogate would be refused by strict readers
    and cannot be encoded.
    """
    return json.dumps(_storable(document), ensure_ascii=False, indent=indent)


def _without_surrogates(text: str) -> str:
    return text if text.isascii() else _SURROGATE.sub(lambda found: _escape(ord(found[0])), text)


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return _without_surrogates(value)
    if isinstance(value, dict):
        return {_storable(key): _storable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(each) for each in value]
    return value
