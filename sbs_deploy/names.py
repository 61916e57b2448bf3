"""Names that every ONNX file of a run uses."""

INPUT = "input"
"""x_NCHW, float32, normalised; N is dynamic."""
OUTPUT = "logits"
"""(N, classes), float32."""
