"""What ONNX Runtime raises, and its reason in one line."""

from types import ModuleType

QUOTED_CHARACTERS = 400


def refusals(ort: ModuleType) -> tuple[type[Exception], ...]:
    """What onnxruntime raises; it has no common base but Exception."""
    state = ort.capi.onnxruntime_pybind11_state
    return (
        state.InvalidProtobuf,
        state.InvalidGraph,
        state.InvalidArgument,
        state.NotImplemented,
        state.Fail,
        state.RuntimeException,
        state.NoSuchFile,
        UnicodeDecodeError,  # its reason quotes bytes of a damaged file
    )


def words(error: Exception) -> str:
    """The reason without its source file, on one line."""
    text = " ".join(str(error).split())
    return text.rpartition("Status Message: ")[2][:QUOTED_CHARACTERS]
