"""A narrow network out of a wide one, without a step of training.

Channels follow largely from one another. The narrow network keeps those from which the others follow best, and each
of its convolutions is fitted by least squares to what the wide one computes there (He, Zhang and Sun 2017, "Channel
pruning for accelerating very deep neural networks", with a greedy choice in place of LASSO). A convolution is fitted on
what the narrow network has computed so far, so that it makes up for errors of those before it.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vosrt_train.model.encoder import Encoder
from vosrt_train.model.resnet import BasicBlock
from vosrt_train.pixels import normalise

_CELLS = 60_000  # that a convolution is fitted to, over all frames; the widest fit has 9 * 4 * width unknowns
_RIDGE = 1e-4  # of the mean square of a fit's inputs


@torch.no_grad()
def narrow(wide: Encoder, encoder: Encoder, frames: Tensor) -> None:
    """Give an encoder the weights with which it computes as nearly as it can what a wider one does.

    Its layers up to layer3 are fitted; layer4 and the key head stay as they are.

    Args:
        wide: has as many channels as `encoder` or more.
        encoder: is changed in place.
        frames: u8 [n, 3, H, W] of the kind that the networks are for.
    """
    source, target = wide.backbone, encoder.backbone
    pixels = normalise(frames)
    modes = wide.training, encoder.training
    wide.eval()
    encoder.eval()
    theirs = source.bn1(source.conv1(pixels))
    kept = _choose(theirs.relu(), encoder.config.width)
    ours = _fit(target.conv1, target.bn1, pixels, theirs[:, kept]).relu()
    theirs, ours = source.maxpool(theirs.relu()), target.maxpool(ours)
    for name in ("layer1", "layer2", "layer3"):
        for from_block, block in zip(getattr(source, name), getattr(target, name), strict=True):
            theirs, ours, kept = _narrow_block(from_block, block, theirs, ours, kept)
    wide.train(modes[0])
    encoder.train(modes[1])


def _narrow_block(
    wide: BasicBlock, block: BasicBlock, theirs: Tensor, ours: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a block.

    Args:
        wide: block of the wide network.
        block: of the narrow one; changed in place.
        theirs: f32 [n, C, h, w], what the wide block is given.
        ours: f32 [n, c, h, w], what the narrow one is given.
        kept: i64 [c], the channels of `theirs` that `ours` stands for.

    Returns:
        The same three, of what the blocks compute.
    """
    inside = wide.bn1(wide.conv1(theirs))
    chosen = _choose(inside.relu(), block.conv1.out_channels)
    ours_inside = _fit(block.conv1, block.bn1, ours, inside[:, chosen]).relu()
    shortcut = theirs if wide.downsample is None else wide.downsample(theirs)
    computed = wide.bn2(wide.conv2(inside.relu())) + shortcut
    ours_shortcut = ours
    if block.downsample is not None:
        kept = _choose(computed.relu(), block.conv2.out_channels)
        conv, norm = cast(nn.Sequential, block.downsample)
        ours_shortcut = _fit(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm), ours, shortcut[:, kept])
    rest = _fit(block.conv2, block.bn2, ours_inside, computed[:, kept] - ours_shortcut)
    return computed.relu(), (rest + ours_shortcut).relu(), kept


def _choose(maps: Tensor, count: int) -> Tensor:
    """Choose channels from which all follow best by a linear map: greedily, as Cholesky's method with pivots goes.

    Args:
        maps: f32 [n, C, h, w].
        count: at most C.

    Returns:
        i64 [count], ascending.
    """
    rows = maps.transpose(0, 1).flatten(1)
    left = (rows @ rows.T).double() / rows.shape[1]  # second moments that the chosen ones do not explain yet
    chosen: list[int] = []
    for _ in range(count):
        gain = left.square().sum(0) / left.diagonal().clamp_min(1e-12)
        gain[chosen] = -1
        best = int(gain.argmax())
        chosen.append(best)
        left -= torch.outer(left[:, best], left[best]) / left[best, best].clamp_min(1e-12)
    return torch.tensor(sorted(chosen), device=maps.device)


def _fit(conv: nn.Conv2d, norm: nn.BatchNorm2d, inputs: Tensor, wanted: Tensor) -> Tensor:
    """Fit a convolution and the batch-norm after it by ridge regression.

    The batch-norm has the statistics of these inputs, so that training may go on with either kind of statistics.

    Args:
        conv: without bias; changed in place.
        norm: changed in place.
        inputs: f32 [n, c, H, W].
        wanted: f32 [n, k, h, w], what the two should compute.

    Returns:
        f32 [n, k, h, w], what they compute.
    """
    random = torch.Generator().manual_seed(0)
    unknowns = conv.weight[0].numel() + 1
    squares = torch.zeros(unknowns, unknowns, dtype=torch.float64, device=inputs.device)
    products = torch.zeros(unknowns, wanted.shape[1], dtype=torch.float64, device=inputs.device)
    for seen, shown in zip(inputs, wanted.flatten(2), strict=True):
        patches = F.unfold(
            seen[None], conv.kernel_size, padding=cast(tuple[int, int], conv.padding), stride=conv.stride
        )[0]
        cells = torch.randperm(patches.shape[1], generator=random)[: -(-_CELLS // len(inputs))].to(inputs.device)
        rows = F.pad(patches[:, cells], (0, 0, 0, 1), value=1.0).double()  # the last unknown is the bias
        squares += rows @ rows.T
        products += rows @ shown[:, cells].T.double()
    diagonal = squares.diagonal()[:-1]
    diagonal += _RIDGE * diagonal.mean()
    solution = torch.linalg.solve(squares, products).float()
    conv.weight.copy_(solution[:-1].T.view_as(conv.weight))
    computed = conv(inputs)
    variance, mean = torch.var_mean(computed, (0, 2, 3), correction=0)
    norm.running_mean, norm.running_var = mean, variance
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(mean + solution[-1])
    return cast(Tensor, norm(computed))
