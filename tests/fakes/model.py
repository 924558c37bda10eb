"""A model without files: the fake engine under a manifest."""

from __future__ import annotations

from vosrt.bundle import EncoderSpec, GraphFile, Manifest
from vosrt.engines.fake import FakeEngine
from vosrt.model import Model


def fake_model(*, size: int | None = None, enlarge_percent: int = 100, max_side: int = 256, threads: int = 0) -> Model:
    """Return a model whose embeddings are mean colours.

    Args:
        size: short side that the manifest recommends, in pixels.
        enlarge_percent: to which it lets smaller frames be enlarged.
        max_side: of a working frame, in pixels.
        threads: as for `Model`.
    """
    manifest = Manifest(
        name="fake",
        trained=False,
        summary="mean colours",
        encoder=EncoderSpec(channels=32, feature="res4", min_side=16, max_side=max_side),
        graphs={"encoder": GraphFile(file="encoder.onnx", sha256="0" * 64, bytes=1, precision="fp32")},
        size=size,
        enlarge_percent=enlarge_percent,
    )
    return Model(manifest, {"encoder": FakeEngine(manifest.encoder)}, threads=threads)
