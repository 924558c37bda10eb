"""The networks."""

from vosrt_train.model.encoder import Encoder, Features, build_encoder

__all__ = ["Encoder", "Features", "build_encoder"]
