"""What would make a QDQ ONNX file slow or refused, whoever made it; and repairs that change nothing."""
