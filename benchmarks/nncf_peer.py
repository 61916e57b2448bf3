"""What NNCF's post-training quantization makes of a float ONNX model; runs in an environment of its own.

    python -m venv runs/nncf && runs/nncf/bin/pip install nncf openvino onnx onnxruntime
    runs/nncf/bin/python benchmarks/nncf_peer.py MODEL.onnx IMAGES.npz OUT.onnx     for ONNX Runtime
    runs/nncf/bin/python benchmarks/nncf_peer.py MODEL.onnx IMAGES.npz OUT.xml      for OpenVINO

IMAGES.npz is golden.npz of a network with one input (N, C, H, W), of which the first 32 estimate ranges. NNCF's own
settings; `--transformer` is its scheme for attention.
"""

import sys

import nncf
import numpy as np
import onnx
import openvino

PREFIX = "input/"
IMAGES = 32


def main(source: str, images: str, out: str, *flags: str) -> None:
    """Quantize and write the model."""
    with np.load(images) as arrays:
        (key,) = [key for key in arrays if key.startswith(PREFIX)]
        inputs = arrays[key][:IMAGES].astype(np.float32)
    for_openvino = out.endswith(".xml")
    model = openvino.Core().read_model(source) if for_openvino else onnx.load(source)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(inputs[:, None], lambda image: {key.removeprefix(PREFIX): image}),
        subset_size=len(inputs),
        model_type=nncf.ModelType.TRANSFORMER if "--transformer" in flags else None,
    )
    if for_openvino:
        openvino.save_model(quantized, out, compress_to_fp16=False)
    else:
        onnx.save(quantized, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
