"""One stream's frames on a GPU, each queued at one go: network, match, read-out and labels, as one CUDA graph."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from vosrt.arrays import DeviceTensor
from vosrt.bundle import EncoderSpec
from vosrt.cuda.graph import Graphs
from vosrt.cuda.memory import CudaMemory
from vosrt.cuda.transfer import LabelArrays
from vosrt.encoder import FrameEncoder, WorkingFrame


class WholeFrames:
    """Queues frames of one stream, whose network runs on the same GPU as its memory.

    The network and the memory's work are recorded together once they came twice as they are: for every set of arrays
    that labels are written to (two sets in turn, if results come to the host). The frame's way to the network and the
    labels' way to the host are queued beside it. When objects or references change, another `WholeFrames` is needed.

    Args:
        encoder: whose ``takes_sequels`` is true.
        memory: has taken a frame already.
    """

    def __init__(self, encoder: FrameEncoder, memory: CudaMemory) -> None:
        self._encoder, self._memory = encoder, memory
        self._graphs: Graphs = OrderedDict()

    def queue(self, frame: WorkingFrame) -> LabelArrays:
        """Take the next frame, without waiting for anything.

        Returns:
            Its labels, whole for work that is queued on their stream.

        Raises:
            EngineError: the network or CUDA failed.
            OptionError: there is no memory for the labels.
        """
        self._memory.use_stream(self._encoder.stream)
        labels = self._memory.label_arrays(frame.frame_height, frame.frame_width)
        work = _FrameWork(self._memory, self._encoder.spec, labels, self._graphs)
        self._encoder.encode_with(frame, work)
        return labels


@dataclass(frozen=True)
class _FrameWork:
    """What one memory does behind the network; a `vosrt.engines.base.Sequel`."""

    memory: CudaMemory
    spec: EncoderSpec
    labels: LabelArrays
    graphs: Graphs

    @property
    def kind(self) -> Hashable:
        return tuple((tensor.pointer, tensor.shape) for tensor in self.labels)

    def queue(self, arrays: Mapping[str, DeviceTensor]) -> None:
        stream = self.memory.queue.stream
        embedding, frame = arrays[self.spec.output_name][0], arrays[self.spec.input_name][0]
        self.memory.frame(embedding, frame=frame, **self.labels._asdict())
        self.memory.use_stream(stream)  # a capture's is used for the capture alone

    def replayed(self) -> None:
        self.memory.replayed()
