"""One stream's frames on a GPU, each queued at one go: network, match, read-out and labels, as one CUDA graph."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from vosrt.cuda_labels import LabelArrays
from vosrt.cuda_memory import CudaMemory
from vosrt.encoder import FrameEncoder, WorkingFrame
from vosrt.engines.cuda import Recordings
from vosrt.engines.device import DeviceTensor


class WholeFrames:
    """Queues frames of one stream, whose network runs on the same GPU as its memory.

    The network and the memory's work are recorded together once they came twice as they are: for every set of arrays
    that labels are written to (two sets by turns, if results come to the host), and anew when objects or references
    change. The frame's way to the network and the labels' way to the host are queued beside it.

    Args:
        encoder: whose ``takes_sequels`` is true.
        memory: has taken a frame already.
    """

    def __init__(self, encoder: FrameEncoder, memory: CudaMemory) -> None:
        self._encoder, self._memory = encoder, memory
        self._recordings, self._changes = Recordings(), memory.changes

    def queue(self, frame: WorkingFrame) -> LabelArrays:
        """Take the next frame, without waiting for anything.

        Returns:
            Its labels, whole for work that is queued on their stream.

        Raises:
            EngineError: the network or CUDA failed.
            OptionError: there is no memory for the labels.
        """
        if self._memory.changes != self._changes:
            self._recordings.clear()
            self._changes = self._memory.changes
        self._memory.use_stream(self._encoder.stream)
        labels = self._memory.label_arrays(frame.frame_height, frame.frame_width)
        following = _Following(self._memory, self._encoder.spec.output_name, labels, self._recordings)
        self._encoder.encode_with(frame, following)
        return labels


@dataclass(frozen=True)
class _Following:
    """What one memory does behind the network; a `vosrt.engines.base.Sequel`.

    Attributes:
        memory: of the stream.
        output_name: of the embedding among the network's outputs.
        labels: where they are written.
        recordings: of the stream.
    """

    memory: CudaMemory
    output_name: str
    labels: LabelArrays
    recordings: Recordings

    @property
    def kind(self) -> Hashable:
        return tuple((tensor.pointer, tensor.shape) for tensor in self.labels)

    def queue(self, outputs: Mapping[str, DeviceTensor]) -> None:
        self.memory.frame(outputs[self.output_name][0], **self.labels._asdict())

    def launched(self) -> None:
        self.memory.repeated()
