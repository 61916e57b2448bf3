"""Rules for what makes a Q/DQ ONNX file slow or refused, and repairs that keep its outputs."""
