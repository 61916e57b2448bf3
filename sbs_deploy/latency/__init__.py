"""What a target charges for the layers of a network, measured by its own profiler: device.json."""
