"""The networks."""

from vosrt_train.model.aggregate import aggregate
from vosrt_train.model.encoder import Encoder, Features, build_encoder
from vosrt_train.model.mask_embedding import MaskEmbedding, build_mask_embedding

__all__ = ["Encoder", "Features", "MaskEmbedding", "aggregate", "build_encoder", "build_mask_embedding"]
