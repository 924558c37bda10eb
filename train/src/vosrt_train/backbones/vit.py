"""A vision transformer (Dosovitskiy et al. 2021) whose patches are the cells.

The class token and the registers (Darcet et al. 2024) take part in attention and are dropped at the end. Position
embeddings are interpolated to the grid of the frame inside the network, or queries and keys are rotated by the place
of their patch (DINOv3). A frame whose sides are no multiples of the patch is continued to the right and below with the
mean colour (0 after normalisation): the last patches are whole.

Module names are those of DINO and DINOv2, so that weights in that naming fit as they are.

Everything is written with operators that a bundle may hold (``onnx_operators.txt``): sizes become numbers through
`_middles`, slices stand for chunks, and products of ReLUs for the pieces of a cubic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vosrt.errors import OptionError
from vosrt_train.model.contract import Normalised, VisualEncoder
from vosrt_train.ranges import limited

_EXPANSION = 4
_FINEST = 4096  # cells that `_middles` tells apart: more than frames have

Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Config(Normalised):
    """The shape of the network; the defaults are those of ViT-S/16.

    Attributes:
        patch: side of a patch in pixels, which is the stride.
        width: channels of a token.
        depth: number of blocks.
        heads: of attention; they share the width.
        registers: tokens that belong to no patch, besides the class token.
        positions: side of the grid that the position embeddings were learnt on; 0 has none.
        antialias: whether a smaller grid gets averaged positions (DINOv2 with registers), not single ones.
        rotary: base of the periods by which queries and keys are rotated (DINOv3); 0 rotates nothing.
        hidden: channels inside an MLP; 0 is four times the width.
        gated: whether the MLP is a SwiGLU (Shazeer 2020).
        scaled: whether each branch is multiplied by learnt factors (LayerScale, Touvron et al. 2021).
        epsilon: of the normalisations.
    """

    patch: int = limited(16, 2, 64)
    width: int = limited(384, 1, 4096)
    depth: int = limited(12, 1, 64)
    heads: int = limited(6, 1, 64)
    registers: int = limited(0, 0, 64)
    positions: int = limited(14, 0, 256)
    antialias: bool = False
    rotary: float = limited(0.0, 1, 1e6, zero="for none")
    hidden: int = limited(0, 0, 32768, "channels")
    gated: bool = False
    scaled: bool = False
    epsilon: float = limited(1e-6, 1e-12, 1e-2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise OptionError(f"width is {self.width}, heads {self.heads}; expected a width that they divide")
        if self.rotary and self.width // self.heads % 4:
            raise OptionError(
                f"heads have {self.width // self.heads} channels; expected a multiple of 4 to rotate them"
            )

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
    """Features of the network.

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

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """f32 [n, tokens, width] -> the same."""
        n, tokens, width = x.shape
        query, key, value = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if rotation is not None:
            query, key = _rotate(query, rotation), _rotate(key, rotation)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(attended.transpose(1, 2).reshape(n, tokens, width))
        return out


def _rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate pairs of channels, i and i + d / 2 of d, of each token: f32 [n, heads, tokens, d] -> the same."""
    cosine, sine = rotation
    half = x.shape[-1] // 2
    return x * cosine + torch.cat([-1 * x[..., half:], x[..., :half]], dim=-1) * sine


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """f32 [..., width] -> the same."""
        out: Tensor = self.fc2(nn.functional.gelu(self.fc1(x)))
        return out


class _GatedMlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """f32 [..., width] -> the same."""
        both, hidden = self.w12(x), self.w3.in_features
        gate = both[..., :hidden]
        out: Tensor = self.w3(gate * torch.sigmoid(gate) * both[..., hidden:])
        return out


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """f32 [..., width] -> the same."""
        return x * self.gamma


class _Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width, hidden = config.width, config.hidden or _EXPANSION * config.width
        self.norm1 = nn.LayerNorm(width, eps=config.epsilon)
        self.attn = _Attention(width, config.heads)
        self.ls1 = _Scale(width) if config.scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=config.epsilon)
        self.mlp = _GatedMlp(width, hidden) if config.gated else _Mlp(width, hidden)
        self.ls2 = _Scale(width) if config.scaled else nn.Identity()

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """f32 [n, tokens, width] -> the same."""
        x = x + self.ls1(self.attn(self.norm1(x), rotation))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class _PatchEmbedding(nn.Module):
    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        # Complete the last patch; further padding is shorter than a patch and makes none.
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
        if config.positions:
            self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.positions**2, config.width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.epsilon)

    @property
    def stem(self) -> nn.Conv2d:
        """The convolution on the frame."""
        return self.patch_embed.proj

    def forward(self, rgb: Tensor) -> Tokens:
        """Compute the features; see `VisualEncoder`."""
        patches = self.patch_embed(rgb)
        n, width, height, columns = patches.shape
        first: Tensor = self.cls_token
        if self.config.positions:
            patches = patches + self._positions(height, columns)
            first = first + self.pos_embed[:, :1]
        registers = self.register_tokens.expand(n, -1, -1)
        tokens = torch.cat([first.expand(n, -1, -1), registers, patches.flatten(2).transpose(1, 2)], dim=1)
        rotation = self._rotation(height, columns) if self.config.rotary else None
        for block in self.blocks:
            tokens = block(tokens, rotation)
        tokens = self.norm(tokens)[:, 1 + self.config.registers :]
        return Tokens(tokens.transpose(1, 2).reshape(n, width, height, columns))

    def _positions(self, height: int, width: int) -> Tensor:
        """Interpolate the position embeddings to a grid: f32 [1, width, h, w]."""
        side = self.config.positions
        learnt = self.pos_embed[:, 1:].transpose(1, 2).reshape(1, self.config.width, side, side)
        if not self.config.antialias:
            return nn.functional.interpolate(learnt, size=(height, width), mode="bicubic", align_corners=False)
        # Matrix products stand for the antialiased mode of `interpolate`, which TensorRT and OpenVINO lack.
        return _averages(side, height) @ learnt @ _averages(side, width).T

    def _rotation(self, height: int, width: int) -> Rotation:
        """Cosine and sine f32 [tokens, d] of the angles of each token, d channels of a head; 0 but for patches.

        The middle of a patch has coordinates from -1 to 1 in each direction (Simeoni et al. 2025).
        """
        d = self.config.width // self.config.heads
        periods = self.config.rotary ** (torch.arange(d // 4) * (4 / d))
        y, x = ((2 * math.pi) * (2 * _middles(cells) - 1)[:, None] / periods for cells in (height, width))
        grid = (height, width, d // 4)
        angles = torch.cat([y[:, None].expand(grid), x[None].expand(grid)], dim=-1).flatten(0, 1)
        angles = torch.cat([torch.zeros(1 + self.config.registers, d // 2), angles])
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def _middles(cells: int) -> Tensor:
    """Middles of cells on a line from 0 to 1: f32 [cells]. Interpolation of a fine ramp makes numbers of a size."""
    fine = (torch.arange(_FINEST) + 0.5) / _FINEST
    return nn.functional.interpolate(fine[None, None, None], size=(1, cells), mode="bilinear")[0, 0, 0]


def _averages(learnt: int, cells: int) -> Tensor:
    """Weights of antialiased bicubic interpolation from `learnt` to `cells` places: f32 [cells, learnt]."""
    middles = _middles(cells)
    support = torch.clamp(2 * learnt * middles[:1], min=1)  # of the kernel, in places; the first middle is 0.5 / cells
    x = (torch.arange(learnt) + 0.5 - learnt * middles[:, None]) / support
    x = torch.relu(x) + torch.relu(-1 * x)
    # The cubic kernel with the coefficient -0.5, as of PyTorch and Pillow: zero from 2 on, one piece more below 1.
    outer, inner = torch.relu(2 - x), torch.relu(1 - x)
    weights = 0.5 * outer * outer * (outer - 1) + inner * inner * (1 - 2 * inner)
    return weights / (learnt * weights.mean(dim=1, keepdim=True))
