"""Configurations: frozen dataclasses, one per table of a configuration file.

`EncoderConfig` travels in the metadata of a checkpoint. Reading and writing files is `vosrt_train.config_file`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from vosrt.bundle import Feature
from vosrt.errors import OptionError
from vosrt_train.data.config import CacheConfig, ClipConfig
from vosrt_train.mask_config import (
    SEGMENTATION_FRAMES,
    ForegroundConfig,
    MaskNetworkConfig,
    PseudoMaskConfig,
    SegmentationConfig,
)
from vosrt_train.ranges import check_range as _check

_MAX_CHANNELS = 1024

Decay = Literal["halving", "cosine"]
Device = Literal["auto", "cpu", "cuda"]
Arithmetic = Literal["fp32", "bf16"]
BatchNormMode = Literal["train", "eval"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The shape of the encoder (Araslanov et al. 2021, ResNet-18 at stride 8).

    Attributes:
        layer4: False leaves out layer4 and the key head: faster, and feature res3 only.
        width: channels of layer1; layer2, 3 and 4 have 2, 4 and 8 times as many.
        key_channels: channels of the key head.
    """

    layer4: bool = True
    width: int = 64
    key_channels: int = 128

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("key_channels", self.key_channels)):
            if not 1 <= value <= _MAX_CHANNELS:
                raise OptionError(f"{name} is {value}; expected 1 to {_MAX_CHANNELS} channels")

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each feature that this encoder has."""
        if not self.layer4:
            return {"res3": 4 * self.width}
        return {"res3": 4 * self.width, "res4": 8 * self.width, "key": self.key_channels}

    @property
    def stride(self) -> int:
        """Pixels per cell of these features."""
        return 8


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The two losses.

    Attributes:
        anchors: side of the grid of anchors on the reference frame of each clip.
        points: side of the grid of points for the cross-view loss.
        temperature: of every softmax.
        cross_view: weight of the cross-view loss; the space-time loss has weight 1.
    """

    anchors: int = 8
    points: int = 4
    temperature: float = 0.05
    cross_view: float = 0.1

    def __post_init__(self) -> None:
        _check("loss.anchors", self.anchors, 1, 64, "a side")
        _check("loss.points", self.points, 1, 64, "a side")
        _check("loss.temperature", self.temperature, 1e-4, 1e4)
        _check("loss.cross_view", self.cross_view, 0, 100)


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """Adam (Kingma and Ba 2015), with weight decay added to the gradient.

    Attributes:
        learning_rate: at its height.
        betas: decay of the two moments.
        weight_decay: of everything but biases and mask networks.
        mask_weight_decay: of mask encoder and decoder, but for their biases. Adam adds decay to the gradient, and
            theirs is small for long: at 5e-4, nearly all weights of a residual decoder were 0 after 200 steps.
        bias_rate: learning rate of biases as a multiple.
        mask_rate: learning rate of mask encoder and decoder as a multiple. Without batch-norm they learnt at
            1e-4 to 2.5e-4, and not at 6e-4.
        clip_gradient: largest norm of the whole gradient; 0 leaves it as it is.
    """

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 5e-4
    mask_weight_decay: float = 0.0
    bias_rate: float = 2.0
    mask_rate: float = 1.0
    clip_gradient: float = 0.0

    def __post_init__(self) -> None:
        _check("optimiser.learning_rate", self.learning_rate, 0, 10)
        for beta in self.betas:
            _check("optimiser.betas", beta, 0, 0.999999)
        _check("optimiser.weight_decay", self.weight_decay, 0, 10)
        _check("optimiser.mask_weight_decay", self.mask_weight_decay, 0, 10)
        _check("optimiser.bias_rate", self.bias_rate, 0, 100)
        _check("optimiser.mask_rate", self.mask_rate, 0, 100)
        _check("optimiser.clip_gradient", self.clip_gradient, 0, 1e6)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long, and how the learning rate goes.

    Attributes:
        epochs: length in epochs (an epoch has one clip per video); 0 where ``steps`` says it.
        steps: length in steps; 0 where ``epochs`` says it.
        warmup: steps over which the learning rate rises from 0 to its height.
        decay: ``"halving"`` halves it at even intervals, ``"cosine"`` lowers it to ``final`` along half a cosine.
        halvings: how often ``"halving"`` halves.
        final: where ``"cosine"`` ends, as a share of the height.
    """

    epochs: int = 500
    steps: int = 0
    warmup: int = 0
    decay: Decay = "halving"
    halvings: int = 4
    final: float = 0.01

    def __post_init__(self) -> None:
        if (self.epochs > 0) == (self.steps > 0) or min(self.epochs, self.steps) < 0:
            raise OptionError(
                f"schedule.epochs is {self.epochs} and schedule.steps {self.steps}; expected one of them to be 0 and "
                "the other the length of the training"
            )
        _check("schedule.warmup", self.warmup, 0, 10**7, "steps")
        _check("schedule.halvings", self.halvings, 0, 64)
        _check("schedule.final", self.final, 0, 1)

    def total_steps(self, steps_per_epoch: int) -> int:
        """Length of the training in steps."""
        return self.steps or self.epochs * steps_per_epoch


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Where and how the arithmetic is done.

    Attributes:
        device: ``"auto"`` takes a GPU where PyTorch finds one.
        precision: of the convolutions; ``"bf16"`` is automatic mixed precision. Losses are always in fp32.
        channels_last: layout of the feature maps.
        compile: run the encoder through ``torch.compile``; needs a C++ compiler and minutes at the start.
        threads: of PyTorch on the CPU; 0 is one per processor.
        sync_batch_norm: statistics over all processes; GPUs only.
        regular_batch_norm: statistics in the regularising branch: of its own batch (the released program), or the
            running ones (``"eval"``, the paper).
    """

    device: Device = "auto"
    precision: Arithmetic = "bf16"
    channels_last: bool = True
    compile: bool = False
    threads: int = 0
    sync_batch_norm: bool = False
    regular_batch_norm: BatchNormMode = "train"

    def __post_init__(self) -> None:
        _check("compute.threads", self.threads, 0, 1024)


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Following objects through annotated sequences with the runtime.

    Attributes:
        folder: annotated sequences in the layout of DAVIS; ``""`` skips validation.
        every: steps between validations; 0 validates at the end alone.
        sequences: names of the sequences; none is all of them.
        size: short side of the working frame, in pixels; 0 keeps the frames' own.
        feature: the map that is validated, and exported in the end; ``"auto"`` is res4 where there is one, else res3.
    """

    folder: str = ""
    every: int = 500
    sequences: tuple[str, ...] = ()
    size: int = 240
    feature: Feature | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        _check("validation.every", self.every, 0, 10**9, "steps")
        if self.size:
            _check("validation.size", self.size, 16, 4096, "pixels, or 0 for the frames' own size")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is written down, and when.

    Attributes:
        every: steps between two lines of scalars, which are means over these steps.
        pictures: steps between pictures; 0 draws none.
        checkpoint: steps between two states from which ``--resume`` goes on; one is written at the end in any case.
    """

    every: int = 10
    pictures: int = 500
    checkpoint: int = 100

    def __post_init__(self) -> None:
        _check("log.every", self.every, 1, 10**9, "steps")
        _check("log.pictures", self.pictures, 0, 10**9, "steps")
        _check("log.checkpoint", self.checkpoint, 1, 10**9, "steps")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All there is to choose; the defaults are those of the paper.

    Attributes:
        seed: of the weights, the clips, the views and the anchors.
        licence: of the weights, written into the checkpoints.
    """

    seed: int = 0
    licence: str = "not stated"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    clips: ClipConfig = field(default_factory=ClipConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    masks: MaskNetworkConfig = field(default_factory=MaskNetworkConfig)
    pseudo: PseudoMaskConfig = field(default_factory=PseudoMaskConfig)
    foreground: ForegroundConfig = field(default_factory=ForegroundConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        _check("seed", self.seed, 0, 2**31 - 1)
        if self.clips.seed not in (0, self.seed):
            raise OptionError(f"clips.seed is {self.clips.seed}, which follows seed ({self.seed}); set seed instead")
        if self.segmentation.weight and self.clips.frames < SEGMENTATION_FRAMES:
            raise OptionError(
                f"clips.frames is {self.clips.frames}; the segmentation loss needs {SEGMENTATION_FRAMES} or more "
                "(or segmentation.weight=0)"
            )
        if self.segmentation.weight and self.clips.crop % self.encoder.stride:
            raise OptionError(
                f"clips.crop is {self.clips.crop}; the segmentation loss needs a multiple of {self.encoder.stride} "
                "(or segmentation.weight=0)"
            )
        object.__setattr__(self, "clips", replace(self.clips, seed=self.seed))
        if self.validation_feature not in self.encoder.channels:
            have = ", ".join(self.encoder.channels)
            raise OptionError(
                f"validation.feature is {self.validation_feature!r}; this encoder has: {have}; choose one of them"
            )

    @property
    def validation_feature(self) -> Feature:
        """The map that validation uses."""
        if self.validation.feature != "auto":
            return self.validation.feature
        return "res4" if self.encoder.layer4 else "res3"
