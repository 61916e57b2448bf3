"""Memory of an engine's inputs and outputs: page-locked on the host, and as much on the device."""

import numpy as np

from sbs_deploy.backends.tensorrt.device import Device
from sbs_deploy.graph.names import FloatArray


class TensorMemory:
    """One float32 tensor on both sides. A shape that needs more memory gets new memory, any other reuses it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pinned = np.zeros(0, np.uint8)
        self.address = 0
        """On the device."""
        self.host: FloatArray = np.zeros(0, np.float32)
        """The tensor on the host, in its shape."""

    def resize(self, shape: tuple[int, ...]) -> None:
        """Take a shape; what was in it is lost. The device must not be at work on it."""
        size = 4 * int(np.prod(shape))
        if size > self._pinned.nbytes:
            self.close()
            self.address = self._device.allocate(size)
            self._pinned = self._device.pin(size)
        self.host = self._pinned[:size].view(np.float32).reshape(shape)

    def upload(self) -> None:
        """Put the copy to the device on its stream."""
        self._device.upload(self.address, self.host)

    def download(self) -> None:
        """Put the copy to the host on the stream."""
        self._device.download(self.host, self.address)

    def close(self) -> None:
        """Give both back."""
        if self._pinned.nbytes:
            self._device.unpin(self._pinned)
        if self.address:
            self._device.free(self.address)
        self._pinned, self.address, self.host = np.zeros(0, np.uint8), 0, np.zeros(0, np.float32)
