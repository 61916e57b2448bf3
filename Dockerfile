# sbs-train and sbs-deploy on a CPU: training, export, ONNX Runtime, TensorRT-RTX engines built ahead of time.
# No CUDA runtime for an NVIDIA driver is set up and no image has been built from this file in CI (no Docker there).
FROM python:3.11-slim
WORKDIR /opt/sbs
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY calib calib
COPY sbs_train sbs_train
COPY sbs_deploy sbs_deploy
RUN pip install --no-cache-dir -c constraints.txt '.[train,cpu,rtx]'
# Runs are written to the current directory: docker run -v "$PWD:/work" IMAGE sbs-train
WORKDIR /work
CMD ["sbs-train", "--help"]
