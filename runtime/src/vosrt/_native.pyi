"""Native core of vosrt: the C ABI of libvosrt as Python objects."""

from collections.abc import Sequence
from typing import Any

from vosrt.types import F32Array, I32Array, Precision, TopK, U8Array, Window

def version() -> str: ...
def isa_available(name: str) -> bool: ...
def resize_bgr(image: U8Array, height: int, width: int) -> U8Array: ...
def read_values(
    similarity: F32Array,
    slot: I32Array,
    cell: I32Array,
    values: Sequence[F32Array],
    temperature: float,
    *,
    threads: int = 0,
) -> F32Array: ...
def load_session(
    session: bytes, *, precision: Precision = "auto", isa: str = "auto", threads: int = 0
) -> tuple[Memory, int, int, U8Array | None, bytes]: ...

class Memory:
    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        *,
        context: int = 20,
        window: Window = "circle",
        radius: float = 12.0,
        top_k: int = 10,
        temperature: float = 0.05,
        pad_context: bool = True,
        global_reference: bool = True,
        yield_background: bool = True,
        align_corners: bool = True,
        precision: Precision = "auto",
        isa: str = "auto",
        threads: int = 0,
    ) -> None: ...
    def push(self, embedding: F32Array) -> None: ...
    def annotate(self, mask: U8Array) -> None: ...
    def remove(self, object_id: int) -> None: ...
    def labels(self, height: int, width: int) -> tuple[U8Array, F32Array]: ...
    def soft_masks(self) -> F32Array: ...
    def set_soft_masks(self, masks: F32Array) -> None: ...
    def top_k(self) -> TopK: ...
    def save(self, frame_height: int, frame_width: int, annotation: U8Array | None, model: bytes) -> bytes: ...
    @property
    def object_ids(self) -> tuple[int, ...]: ...
    @property
    def info(self) -> dict[str, Any]: ...
