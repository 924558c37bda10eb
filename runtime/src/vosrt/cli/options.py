"""Options that several commands have, declared once."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer

from vosrt.errors import OptionError
from vosrt.types import DEFAULT_SIZE, ModelPrecision, WorkingSize

if TYPE_CHECKING:
    from vosrt.model import Model

AnyRequest = TypeVar("AnyRequest")

WHAT, MODEL, RESULTS = "What to segment", "Model", "Results"
FURTHER, LOOKS = "Further options", "How results look"
PROPAGATION = "Propagation (default: as the bundle says)"
FOLDED = frozenset({FURTHER, LOOKS, PROPAGATION})  # panels of which --help lists the names alone

SIZE_HELP = f"Short side, or native. [dim]Default: the bundle's, or {DEFAULT_SIZE}."
BUNDLE_HELP = "fast, fine, refined or a folder."
ANY_BUNDLE_HELP = f"default, {BUNDLE_HELP}"  # where none is the default


def option(help_text: str, panel: str | None = None, *names: str, **more: Any) -> Any:
    """Declare an option: its help, the panel of --help that lists it, its names (else that of the argument)."""
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **more)


def like(shared: Any, help_text: str = "", panel: str | None = "", **changed: Any) -> Any:
    """Declare an option as the shared one, with another help text, panel or placeholder."""
    declared = copy(get_args(shared)[1])
    its_panel = declared.rich_help_panel if panel == "" else panel
    vars(declared).update(changed, help=help_text or declared.help, rich_help_panel=its_panel)
    return declared


Masks = Annotated[
    list[str] | None,
    option(
        "Image that marks the objects of the first frame, or of frame N; or a folder of them, as in DAVIS. Repeatable.",
        WHAT,
        "--mask",
        metavar="[N:]FILE",
    ),
]
Boxes = Annotated[
    list[str] | None, option("Box around an object, of frame N. Repeatable.", WHAT, "--box", metavar="[N:]X,Y,W,H")
]
Points = Annotated[
    list[str] | None,
    option(
        "Clicks: 120,80 is on the object, 140,60,- is not, 2=120,80 is on object 2. Repeatable.",
        WHAT,
        "--points",
        metavar="[N:][ID=]X,Y[,+|-]",
    ),
]
Polygons = Annotated[
    list[str] | None, option("LabelMe, COCO or our own outlines. Repeatable.", WHAT, "--polygon", metavar="[N:]JSON")
]
Bundle = Annotated[str, option(BUNDLE_HELP, MODEL, "--bundle", "-b")]
Engine = Annotated[str, option("auto, or one that [b]vos-run doctor[/b] lists.", MODEL, "--engine")]
PrecisionName = Annotated[str, option("auto, fp32, bf16, fp16 or int8.", FURTHER, "--precision")]
SegmenterFiles = Annotated[
    str,
    option(
        "A pair like SAM as ONNX files, which finds what is clicked or boxed instead of the bundle's features.",
        FURTHER,
        "--segmenter",
        metavar="ENCODER,DECODER",
        show_default=False,
    ),
]
Size = Annotated[str | None, option(SIZE_HELP, MODEL, metavar="PIXELS")]
# A protocol keeps the size of its frames.
ProtocolSize = Annotated[
    int | None,
    option(
        "Working size: short side in pixels. [dim]Default: as the bundle says, else the frames' own.",
        MODEL,
        "--size",
        min=16,
        max=4096,
    ),
]
Threads = Annotated[int, option("CPU threads; 0 uses every core.", FURTHER)]
Device = Annotated[str, option("Match masks on cpu, cuda, cuda:N or auto, which is a GPU that works.", FURTHER)]
Isolated = Annotated[
    bool, option("Run networks in processes of their own, for bundles from strangers.", FURTHER, "--isolated")
]
Context = Annotated[int | None, option("Recent frames that are attended.", PROPAGATION)]
Radius = Annotated[float | None, option("How far an object may move, in cells of 8 pixels.", PROPAGATION)]
TopK = Annotated[int | None, option("Neighbours per cell.", PROPAGATION)]
Temperature = Annotated[float | None, option("Of the softmax over the neighbours.", PROPAGATION)]
Overwrite = Annotated[bool, option("Replace earlier results once these are complete.", RESULTS, "--overwrite")]
Replace = Annotated[bool, option("Replace what is there.", None, "--overwrite")]
Out = Annotated[Path, option("Folder for the results.", RESULTS, "--out", "-o")]
Sequences = Annotated[
    list[str] | None, option("Only these, separated by commas. Repeatable.", WHAT, "--sequences", metavar="A,B")
]
Quiet = Annotated[bool, option("Print errors only.", None, "--quiet", "-q")]
Json = Annotated[bool, option("Print one JSON object and nothing else.", None, "--json")]


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Options by which several commands choose a model, as of `Model.load`."""

    bundle: str = "default"
    engine: str = "auto"
    precision: ModelPrecision = "auto"
    threads: int = 0
    device: str = "cpu"
    isolated: bool = False
    segmenter: str = ""

    def load(self) -> Model:
        """Load the model."""
        from vosrt.model import Model

        return Model.load(**{each.name: getattr(self, each.name) for each in fields(ModelChoice)})


def request_from(kind: type[AnyRequest], arguments: Mapping[str, Any], **changed: Any) -> AnyRequest:
    """Return the request of a command: each field is the argument of its name, or what ``changed`` says instead."""
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in arguments.items() if name in names} | changed)


def split_names(lists: list[str] | None) -> list[str]:
    """Return the names of a repeatable option that takes several, separated by commas."""
    return [name.strip() for each in lists or () for name in each.split(",") if name.strip()]


def given(**options: Any) -> dict[str, Any]:
    """Return the options that the user gave."""
    return {name: value for name, value in options.items() if value is not None}


def parse_size(text: str | None, option: str = "--size") -> WorkingSize:
    """Return what an option such as ``--size`` says, None where it is left out.

    Raises:
        OptionError: it is neither a number of pixels nor ``native``.
    """
    if text is None or text == "native":
        return None if text is None else "native"
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 7 and int(text)):
        raise OptionError(f"{option} is {text!r}; expected a short side in pixels, as in {option} 360, or native")
    return int(text)
