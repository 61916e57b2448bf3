"""What would make a QDQ ONNX file slow or refused on a target, whoever made it; and repairs that change nothing."""
