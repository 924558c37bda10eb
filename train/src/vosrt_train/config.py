"""Configurations: frozen dataclasses, one per table of a configuration file.

`EncoderConfig` travels in the metadata of a checkpoint. Reading and writing files is `vosrt_train.config_file`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from vosrt.bundle import Feature
from vosrt.errors import OptionError
from vosrt_train.data.config import CacheConfig, ClipConfig
from vosrt_train.masks.config import (
    SEGMENTATION_FRAMES,
    ForegroundConfig,
    MaskNetworkConfig,
    PseudoMaskConfig,
    SegmentationConfig,
)
from vosrt_train.ranges import Checked, limited

Decay = Literal["halving", "cosine", "hold"]
Device = Literal["auto", "cpu", "cuda"]
Arithmetic = Literal["auto", "fp32", "bf16"]
BatchNormMode = Literal["train", "eval"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Checked, table="encoder"):
    """The shape of the encoder (Araslanov et al. 2021, ResNet-18 at stride 8).

    Attributes:
        layer4: False leaves out layer4 and the key head: faster, and feature res3 only.
        width: channels of layer1; layer2, 3 and 4 have 2, 4 and 8 times as many.
        key_channels: channels of the key head.
    """

    layer4: bool = True
    width: int = limited(64, 1, 1024, "channels")
    key_channels: int = limited(128, 1, 1024, "channels")

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
class LossConfig(Checked, table="loss"):
    """The losses of correspondence: those of the paper, and two of other methods to compare or to add.

    Attributes:
        anchors: anchors per side of the grid on the reference frame of each clip.
        points: points per side of the grid for the cross-view loss.
        temperature: of every softmax.
        space_time: weight of the space-time loss.
        cross_view: weight of the cross-view loss.
        walk: weight of the palindromes of random walks (`vosrt_train.walk`), which see how errors add up from frame to
            frame; needs ``clips.order="time"``.
        walk_dropout: share of the edges that a walk may not take.
        reconstruction: weight of the reconstruction of colours (`vosrt_train.reconstruction`). The main branch then
            sees frames without one of their two colour channels.
        reconstruction_radius: cells around a place in which its colour is looked for in the frame before.
    """

    anchors: int = limited(8, 1, 64, "a side")
    points: int = limited(4, 1, 64, "a side")
    temperature: float = limited(0.05, 1e-4, 1e4)
    space_time: float = limited(1.0, 0, 100)
    cross_view: float = limited(0.1, 0, 100)
    walk: float = limited(0.0, 0, 100)
    walk_dropout: float = limited(0.1, 0, 0.9)
    reconstruction: float = limited(0.0, 0, 100)
    reconstruction_radius: int = limited(12, 1, 1024, "cells")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.space_time + self.cross_view + self.walk + self.reconstruction:
            raise OptionError(
                "all weights of the table loss are 0; expected one of space_time, cross_view, walk and reconstruction "
                "to be larger"
            )


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig(Checked, table="optimiser"):
    """Adam (Kingma and Ba 2015), with weight decay added to the gradient.

    Attributes:
        learning_rate: peak of the learning rate.
        betas: decay of the two moments.
        weight_decay: of all weights but those of the mask networks; biases have none.
        mask_weight_decay: of the weights of mask encoder and decoder. Adam adds decay to the gradient, and their
            gradient stays small for long: at 5e-4, nearly all weights of a residual decoder were 0 after 200 steps.
        bias_rate: learning rate of biases as a multiple of ``learning_rate``.
        mask_rate: learning rate of mask encoder and decoder as a multiple of ``learning_rate``. They have no
            batch-norm, and learnt at 1e-4 to 2.5e-4, but not at 6e-4.
        clip_gradient: largest norm of the whole gradient; 0 does not clip.
        average: share of the running average of the weights that a step keeps; the average is validated and saved.
            0 validates and saves the weights of the last step.
    """

    learning_rate: float = limited(1e-4, 0, 10)
    betas: tuple[float, float] = limited((0.5, 0.999), 0, 0.999999)
    weight_decay: float = limited(5e-4, 0, 10)
    mask_weight_decay: float = limited(0.0, 0, 10)
    bias_rate: float = limited(2.0, 0, 100)
    mask_rate: float = limited(1.0, 0, 100)
    clip_gradient: float = limited(0.0, 0, 1e6)
    average: float = limited(0.0, 0, 0.999999)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Checked, table="schedule"):
    """Length of the training, and the learning rate over time.

    Attributes:
        epochs: length in epochs (an epoch has one clip per video); 0 takes ``steps``.
        steps: length in steps; 0 takes ``epochs``.
        warmup: steps over which the learning rate rises from 0 to its peak.
        decay: ``"halving"`` halves it at even intervals, ``"cosine"`` lowers it to ``final`` along half a cosine,
            ``"hold"`` keeps it until ``cooldown`` steps before the end and then lowers it linearly to ``final``. Only a
            training with ``"hold"`` can be extended by ``--resume``: its first steps do not depend on its length.
        halvings: how often ``"halving"`` halves.
        final: end of ``"cosine"`` and ``"hold"``, as a share of the peak.
        cooldown: steps at the end over which ``"hold"`` lowers the rate.
    """

    epochs: int = limited(500, 0, 10**9)
    steps: int = limited(0, 0, 10**9)
    warmup: int = limited(0, 0, 10**7, "steps")
    decay: Decay = "halving"
    halvings: int = limited(4, 0, 64)
    final: float = limited(0.01, 0, 1)
    cooldown: int = limited(0, 0, 10**7, "steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.epochs > 0) == (self.steps > 0):
            raise OptionError(
                f"schedule.epochs is {self.epochs} and schedule.steps {self.steps}; expected one of them to be 0 and "
                "the other the length of the training"
            )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Length of the training in steps."""
        return self.steps or self.epochs * steps_per_epoch


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Checked, table="compute"):
    """Device and arithmetic.

    Attributes:
        device: ``"auto"`` takes a GPU where PyTorch finds one.
        precision: of the convolutions; ``"bf16"`` is automatic mixed precision, ``"auto"`` is bf16 where the GPU or the
            processor has it natively, else fp32: emulated bf16 takes many times as long. Losses are always in fp32.
        channels_last: memory format of the feature maps.
        compile: run the encoder through ``torch.compile``; needs a C++ compiler and minutes at the start.
        threads: threads of PyTorch on the CPU; 0 is one per processor.
        sync_batch_norm: batch-norm statistics over all processes; GPUs only.
        batch_norm: statistics in the main branch: of its own batch, or the running ones (``"eval"``), for fine-tuning
            on few clips.
        regular_batch_norm: statistics in the regularising branch: of its own batch (the released program), or the
            running ones (``"eval"``, the paper).
    """

    device: Device = "auto"
    precision: Arithmetic = "auto"
    channels_last: bool = True
    compile: bool = False
    threads: int = limited(0, 0, 1024)
    sync_batch_norm: bool = False
    batch_norm: BatchNormMode = "train"
    regular_batch_norm: BatchNormMode = "train"


@dataclass(frozen=True, kw_only=True)
class ValidationConfig(Checked, table="validation"):
    """Segmentation of annotated sequences by the runtime.

    Attributes:
        folder: annotated sequences in the layout of DAVIS; ``""`` skips validation.
        every: steps between validations; 0 validates at the end only.
        sequences: names of the sequences; none is all of them.
        size: short side of the working frame, in pixels; 0 keeps the size of the frames.
        cycles: training videos on which cycle consistency of the first and the last network is compared at the end;
            the better network is kept. 0 skips it, and so does validation on annotated sequences.
        cycle_frames: frames of each of these videos; their short side is that of the crops.
        feature: the map to validate and to export; ``"auto"`` is res4, or res3 without layer4.
    """

    folder: str = ""
    every: int = limited(500, 0, 10**9, "steps")
    sequences: tuple[str, ...] = ()
    size: int = limited(240, 16, 4096, "pixels", zero="for the frames' own size")
    cycles: int = limited(0, 0, 1000, "videos")
    cycle_frames: int = limited(12, 2, 1000, "frames")
    feature: Feature | Literal["auto"] = "auto"


@dataclass(frozen=True, kw_only=True)
class LogConfig(Checked, table="log"):
    """Log and checkpoints.

    Attributes:
        every: steps between two lines of scalars, which are means over these steps.
        pictures: steps between pictures; 0 draws none.
        checkpoint: steps between two states for ``--resume``; the last step is always saved.
    """

    every: int = limited(10, 1, 10**9, "steps")
    pictures: int = limited(500, 0, 10**9, "steps")
    checkpoint: int = limited(100, 1, 10**9, "steps")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """All settings; the defaults are those of the paper.

    Attributes:
        seed: seed of the weights, the clips, the views and the anchors.
        licence: licence of the weights, written into the checkpoints.
        teacher: bundle, checkpoint or run whose matching is learnt; ``""`` learns from the clips alone.
    """

    seed: int = limited(0, 0, 2**31 - 1)
    licence: str = "not stated"
    teacher: str = ""
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
        super().__post_init__()
        if self.clips.seed not in (0, self.seed):
            raise OptionError(f"clips.seed is {self.clips.seed}, which follows seed ({self.seed}); set seed instead")
        if self.loss.walk and self.clips.order != "time":
            raise OptionError(
                f'clips.order is "{self.clips.order}"; loss.walk follows the frames of a clip in their order, '
                'so set clips.order="time"'
            )
        if self.teacher and self.segmentation.weight:
            raise OptionError("a teacher is named, and segmentation.weight is not 0; expected one of them")
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
