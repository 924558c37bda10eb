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

Masks = Annotated[
    list[str] | None,
    typer.Option(
        "--mask",
        help="Image that marks the objects of the first frame, or of frame N; or a folder of them, as in DAVIS. "
        "Repeatable.",
        metavar="[N:]FILE",
        rich_help_panel=WHAT,
    ),
]
Boxes = Annotated[
    list[str] | None,
    typer.Option(
        "--box",
        help="Box around an object, of frame N. Repeatable.",
        metavar="[N:]X,Y,W,H",
        rich_help_panel=WHAT,
    ),
]
Points = Annotated[
    list[str] | None,
    typer.Option(
        "--points",
        help="Clicks: 120,80 is on the object, 140,60,- is not, 2=120,80 is on object 2. Repeatable.",
        metavar="[N:][ID=]X,Y[,+|-]",
        rich_help_panel=WHAT,
    ),
]
Polygons = Annotated[
    list[str] | None,
    typer.Option(
        "--polygon",
        help="LabelMe, COCO or our own outlines. Repeatable.",
        metavar="[N:]JSON",
        rich_help_panel=WHAT,
    ),
]
Bundle = Annotated[str, typer.Option("--bundle", "-b", help=BUNDLE_HELP, rich_help_panel=MODEL)]
Engine = Annotated[
    str, typer.Option("--engine", help="auto, or one that [b]vos-run doctor[/b] lists.", rich_help_panel=MODEL)
]
PrecisionName = Annotated[
    str, typer.Option("--precision", help="auto, fp32, bf16, fp16 or int8.", rich_help_panel=FURTHER)
]
SegmenterFiles = Annotated[
    str,
    typer.Option(
        "--segmenter",
        help="A pair like SAM as ONNX files, which finds what is clicked or boxed instead of the bundle's features.",
        metavar="ENCODER,DECODER",
        show_default=False,
        rich_help_panel=FURTHER,
    ),
]
Size = Annotated[str | None, typer.Option(help=SIZE_HELP, metavar="PIXELS", rich_help_panel=MODEL)]
# A protocol keeps the size of its frames.
ProtocolSize = Annotated[
    int | None,
    typer.Option(
        "--size",
        min=16,
        max=4096,
        help="Working size: short side in pixels. [dim]Default: as the bundle says, else the frames' own.",
        rich_help_panel=MODEL,
    ),
]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 uses every core.", rich_help_panel=FURTHER)]
Device = Annotated[
    str,
    typer.Option(help="Match masks on cpu, cuda, cuda:N or auto, which is a GPU that works.", rich_help_panel=FURTHER),
]
Isolated = Annotated[
    bool,
    typer.Option(
        "--isolated",
        help="Run networks in processes of their own, for bundles from strangers.",
        rich_help_panel=FURTHER,
    ),
]
Context = Annotated[int | None, typer.Option(help="Recent frames that are attended.", rich_help_panel=PROPAGATION)]
Radius = Annotated[
    float | None,
    typer.Option(help="How far an object may move, in cells of 8 pixels.", rich_help_panel=PROPAGATION),
]
TopK = Annotated[int | None, typer.Option(help="Neighbours per cell.", rich_help_panel=PROPAGATION)]
Temperature = Annotated[
    float | None, typer.Option(help="Of the softmax over the neighbours.", rich_help_panel=PROPAGATION)
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace earlier results once these are complete.", rich_help_panel=RESULTS),
]
Replace = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", rich_help_panel=RESULTS)]
Sequences = Annotated[
    list[str] | None,
    typer.Option(
        "--sequences", help="Only these, separated by commas. Repeatable.", metavar="A,B", rich_help_panel=WHAT
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


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


def like(shared: Any, help_text: str = "", **changed: Any) -> Any:
    """Return the declaration of a shared option with another help text, panel or placeholder."""
    declared = copy(get_args(shared)[1])
    vars(declared).update(changed, help=help_text or declared.help)
    return declared


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
