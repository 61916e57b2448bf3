# sbs-deploy for desktops and data centres: builds, validates and measures engines from a bundle (docs/bundle.md).
#
#   docker build -t sbs-deploy .                                       ONNX Runtime, and TensorRT-RTX engines
#   docker build -t sbs-deploy --build-arg EXTRAS=cpu,rtx,openvino .   OpenVINO as well
#   docker run --rm -v "$PWD:/work" sbs-deploy build NAME.sbs.zip --engine int8
#   docker run --rm --gpus all -v "$PWD:/work" sbs-deploy bench NAME.sbs.zip      (NVIDIA Container Toolkit)
#
# A Jetson does without: JetPack brings TensorRT, see docs/jetson.md.
ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS build
ARG EXTRAS=cpu,rtx
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/sbs
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY calib ./calib
COPY sbs_train ./sbs_train
COPY sbs_deploy ./sbs_deploy
# cuda-python runs engines on a GPU without the compiler that pycuda needs.
RUN /opt/sbs/bin/pip install -c constraints.txt ".[${EXTRAS}]" cuda-python==13.4.4 nvidia-ml-py==13.615.71

FROM python:${PYTHON}
RUN useradd --create-home --uid 1000 sbs
COPY --from=build /opt/sbs /opt/sbs
ENV PATH=/opt/sbs/bin:$PATH PYTHONUNBUFFERED=1
USER 1000
WORKDIR /work
ENTRYPOINT ["sbs-deploy"]
CMD ["doctor"]
