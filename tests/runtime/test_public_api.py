"""The public names of `vosrt`, and what importing it costs."""

from __future__ import annotations

from pathlib import Path

import vosrt
from tests.fakes.programs import printed_by
from vosrt import errors

SOURCES = Path(vosrt.__file__).resolve().parents[1]


def test_all_names_exist_and_are_sorted() -> None:
    """``__all__`` is what there is, in order; every error of the tree but its internals is public."""
    assert list(vosrt.__all__) == sorted(vosrt.__all__)
    assert all(hasattr(vosrt, name) for name in vosrt.__all__)
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert tree <= set(vosrt.__all__)


def test_importing_loads_no_engine_and_no_framework() -> None:
    """``import vosrt`` stays quick; NumPy comes with the first public name, PyTorch and ONNX never."""
    heavy = ("numpy", "torch", "onnx", "onnxruntime", "cv2", "av", "safetensors")
    code = f"import sys; sys.path.insert(0, {str(SOURCES)!r}); import vosrt; print(set({heavy}) & set(sys.modules))"
    assert printed_by(code).strip() == "set()"


def test_commands_let_numpy_start_no_threads() -> None:
    """NumPy's BLAS would start one per processor at import, and fail with a traceback where none can be had."""
    code = "import os, vosrt.cli.run; print(len(os.listdir('/proc/self/task')))"
    assert printed_by(code).strip() == "1"


def test_segmenting_imports_no_network() -> None:
    """HTTP and TLS cost a tenth of the start; a module of XML brings them."""
    code = "import sys, vosrt.cli.segment; print({'ssl', 'http.client', 'xml.sax'} & set(sys.modules))"
    assert printed_by(code).strip() == "set()"
