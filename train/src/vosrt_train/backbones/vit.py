"""A vision transformer (Dosovitskiy et al. 2021) whose patches are the cells.

The class token and the registers (Darcet et al. 2024) take part in attention and are dropped at the end. Position
embeddings are interpolated to the grid of the frame inside the network. A frame whose sides are no multiples of the
patch is continued to the right and below with the mean colour (0 after normalisation): the last patches are whole.

Module names are those of DINO, so that weights in that naming fit as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vosrt.errors import OptionError
from vosrt_train.model.contract import VisualEncoder

_EXPANSION = 4


@dataclass(frozen=True, kw_only=True)
class Config:
    """The shape of the network; the defaults are those of ViT-S/16.

    Attributes:
        patch: side of a patch in pixels, which is the stride.
        width: channels of a token.
        depth: number of blocks.
        heads: of attention; they share the width.
        registers: tokens that belong to no patch, besides the class token.
        positions: side of the grid that the position embeddings were learnt on.
    """

    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    registers: int = 0
    positions: int = 14

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("patch", self.patch, 2, 64),
            ("width", self.width, 1, 4096),
            ("depth", self.depth, 1, 64),
            ("heads", self.heads, 1, 64),
            ("registers", self.registers, 0, 64),
            ("positions", self.positions, 1, 256),
        ):
            if not low <= value <= high:
                raise OptionError(f"{name} is {value}; expected {low} to {high}")
        if self.width % self.heads:
            raise OptionError(f"width is {self.width}, heads {self.heads}; expected a width that they divide")

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each feature."""
        return {"key": self.width}

    @property
    def stride(self) -> int:
        """Pixels per cell."""
        return self.patch


@dataclass(frozen=True)
class Tokens:
    """What the network gives.

    Attributes:
        key: f32 [n, width, h, w], the tokens of the patches after the last normalisation.
    """

    key: Tensor


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """f32 [n, tokens, width] -> the same."""
        n, tokens, width = x.shape
        query, key, value = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(attended.transpose(1, 2).reshape(n, tokens, width))
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, _EXPANSION * width)
        self.fc2 = nn.Linear(_EXPANSION * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """f32 [..., width] -> the same."""
        out: Tensor = self.fc2(nn.functional.gelu(self.fc1(x)))
        return out


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """f32 [n, tokens, width] -> the same."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class _PatchEmbedding(nn.Module):
    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        # A frame that lacks up to patch - 1 pixels of its last patch gets them; more of them would make no patch.
        self.pad = nn.ZeroPad2d((0, patch - 1, 0, patch - 1))
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, rgb: Tensor) -> Tensor:
        """f32 [n, 3, H, W] -> [n, width, ceil(H / patch), ceil(W / patch)]."""
        patches: Tensor = self.proj(self.pad(rgb))
        return patches


class Network(VisualEncoder):
    """The network; its one feature, key, are the tokens of the patches."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = _PatchEmbedding(config.patch, config.width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.register_tokens = nn.Parameter(torch.empty(1, config.registers, config.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.positions**2, config.width))
        self.blocks = nn.Sequential(*(_Block(config.width, config.heads) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)

    @property
    def stem(self) -> nn.Conv2d:
        """The convolution that sees the frame."""
        return self.patch_embed.proj

    def forward(self, rgb: Tensor) -> Tokens:
        """Compute the features; see `VisualEncoder`."""
        patches = self.patch_embed(rgb)
        n, width, height, columns = patches.shape
        patches = (patches + self._positions(height, columns)).flatten(2).transpose(1, 2)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(n, -1, -1)
        tokens = torch.cat([first, self.register_tokens.expand(n, -1, -1), patches], dim=1)
        tokens = self.norm(self.blocks(tokens))[:, 1 + self.config.registers :]
        return Tokens(tokens.transpose(1, 2).reshape(n, width, height, columns))

    def _positions(self, height: int, width: int) -> Tensor:
        """Position embeddings f32 [1, width, h, w] for a grid."""
        side = self.config.positions
        learnt = self.pos_embed[:, 1:].transpose(1, 2).reshape(1, self.config.width, side, side)
        return nn.functional.interpolate(learnt, size=(height, width), mode="bicubic", align_corners=False)
