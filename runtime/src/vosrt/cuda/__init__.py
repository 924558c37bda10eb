"""Everything that needs an NVIDIA GPU. `open_device` is the door; other modules of this package are not for outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from vosrt.errors import VosrtError

if TYPE_CHECKING:
    from vosrt.arrays import DeviceTensor
    from vosrt.bundle import MaskSpec
    from vosrt.core.library import Library
    from vosrt.cuda.device import CudaDevice
    from vosrt.cuda.encoder import EncoderOnGpu
    from vosrt.cuda.memory import CudaMemory
    from vosrt.cuda.network import NetworkOnGpu
    from vosrt.cuda.refine import RefinementOnGpu
    from vosrt.cuda.stream import CudaStream
    from vosrt.encoder import FrameEncoder
    from vosrt.engines.base import DeviceEngine
    from vosrt.types import PropagationOptions


class Gpu:
    """An NVIDIA GPU, and what can be made on it. Modules are imported when they are used.

    Args:
        number: of the GPU, from 0.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    @property
    def library(self) -> Library:
        """libvosrt_cuda.

        Raises:
            OptionError: it is not installed.
        """
        from vosrt.cuda.device import load_cuda_library

        return load_cuda_library()

    def info(self) -> CudaDevice:
        """Return name, architecture, driver and memory.

        Raises:
            OptionError: there is no such GPU, or libvosrt_cuda cannot use it.
        """
        from vosrt.cuda.device import load_cuda_library

        return load_cuda_library().device(self.number)

    def describe(self) -> str:
        """Return one sentence on what runs.

        Raises:
            OptionError: the GPU cannot be used.
        """
        from vosrt.cuda.memory import describe_core

        return describe_core(self.number)

    def memory(self, shape: tuple[int, int, int], options: PropagationOptions, **kept: Any) -> CudaMemory:
        """Make a memory of grids h, w, K; ``kept`` are ``align_corners`` and ``precision`` of `create_memory`.

        Raises:
            OptionError: the GPU cannot be used, has not enough memory, or an option is impossible.
        """
        from vosrt.cuda.memory import CudaMemory

        return CudaMemory(*shape, options, device=self.number, **kept)

    def encoder(self, engine: DeviceEngine) -> EncoderOnGpu:
        """Keep an engine's inputs and outputs on this GPU."""
        from vosrt.cuda.encoder import EncoderOnGpu

        return EncoderOnGpu(engine, self.number)

    def network(self, engine: DeviceEngine, output: str) -> NetworkOnGpu:
        """Run a further network of a bundle between a memory's kernels; ``output`` is what it gives them."""
        from vosrt.cuda.network import NetworkOnGpu

        return NetworkOnGpu(engine, output, self.number)

    def refinement(self, spec: MaskSpec, networks: tuple[NetworkOnGpu, NetworkOnGpu], rounds: int) -> RefinementOnGpu:
        """Refine masks on this GPU, with a mask encoder and a decoder."""
        from vosrt.cuda.refine import RefinementOnGpu

        return RefinementOnGpu(spec, *networks, rounds)

    def stream(self, encoder: FrameEncoder, options: PropagationOptions, **kept: Any) -> CudaStream:
        """Open the core of a stream whose memory is on this GPU; ``kept`` are the further arguments of `CudaStream`."""
        from vosrt.cuda.stream import CudaStream

        return CudaStream(encoder, options, device=self.number, **kept)

    def upload(self, *arrays: NDArray[Any]) -> list[DeviceTensor]:
        """Copy arrays to this GPU; they are the caller's again when this returns.

        Raises:
            OptionError: there is not enough memory.
        """
        from vosrt.cuda.runtime import open_queue

        queue = open_queue(self.number)
        tensors = [queue.allocate(array.shape, array.dtype, "an array") for array in arrays]
        for array, tensor in zip(arrays, tensors, strict=True):
            queue.upload(array, tensor)
        queue.wait()
        return tensors


def open_device(device: str) -> Gpu | None:
    """Return the GPU that a device names, None for ``"cpu"``; nothing of it is looked at before it is used.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises:
        OptionError: it is none of these.
    """
    from vosrt.cuda.device import parse_device

    number = parse_device(device)
    return None if number is None else Gpu(number)


def usable_device() -> tuple[str, str]:
    """Return ``"cuda"`` and what the GPU is, or ``"cpu"`` and why no GPU can be used."""
    try:
        return "cuda", Gpu(0).describe()
    except VosrtError as error:
        return "cpu", error.reason


def download(tensor: DeviceTensor) -> NDArray[Any]:
    """Return an array on a GPU in host memory, once what is queued on its stream is done."""
    from vosrt.cuda import runtime

    return runtime.download(tensor)
