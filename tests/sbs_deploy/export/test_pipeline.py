"""The whole export of a small run: files, names, opset, hashes, skipping, damage."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file

from sbs_deploy.export.codes import load_arrays, load_codes
from sbs_deploy.export.pipeline import export_run
from sbs_deploy.graph.model_file import load_onnx
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import load_plan
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.corruption import signed

MODELS = ("model_fp32", "model_slim", "model_trt", "model_ort")


def steps(run: RunDir) -> list[str]:
    lines: list[str] = []
    export_run(run, progress=lines.append)
    return lines


def logits(path, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["output"], {"x_NCHW": images})[0]


@pytest.mark.parametrize("name", MODELS)
def test_every_graph_is_opset_21_with_a_dynamic_batch(exported: RunDir, name: str) -> None:
    model = load_onnx(getattr(exported, name))
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 21)]
    (image,), (output,) = model.graph.input, model.graph.output
    assert (image.name, output.name) == ("x_NCHW", "output")
    batch, *rest = image.type.tensor_type.shape.dim
    assert batch.dim_param and [d.dim_value for d in rest] == [1, 16, 16]
    assert "/work" not in str(model) and ".py" not in str(model), "the exporter's stack traces name local files"


def test_weights_keep_their_names_and_batchnorm_is_gone(exported: RunDir) -> None:
    model, plan = load_onnx(exported.model_slim), load_plan(exported.plan)
    shapes = {t.name: list(t.dims) for t in model.graph.initializer}
    for row in plan.layers:
        assert shapes[f"{row.name}.weight"][:2] == [row.kept_out, row.kept_in]
    assert "BatchNormalization" not in [n.op_type for n in model.graph.node]
    assert any(len(group.kept) < group.size for group in plan.groups)


def test_slim_weights_are_codes_times_scale(exported: RunDir) -> None:
    arrays = {t.name: numpy_helper.to_array(t) for t in load_onnx(exported.model_slim).graph.initializer}
    for name, layer in load_codes(exported.codes).layers.items():
        scale_O = layer.scale_O.reshape(-1, *[1] * (layer.codes.ndim - 1))
        np.testing.assert_array_equal(arrays[f"{name}.weight"], layer.codes.astype(np.float32) * scale_O)


def test_codes_come_from_the_weights_file(exported: RunDir) -> None:
    plan, weights, codes = load_plan(exported.plan), load_file(exported.weights), load_codes(exported.codes).layers
    for row in plan.layers:
        kept_out, kept_in = plan.group(row.group_out).kept, plan.group(row.group_in).kept
        expected = plan.level_w(row).quantize(weights[f"{row.name}.weight"], row.clip_w)[kept_out][:, kept_in]
        norm = (
            row.name.replace("conv", "bn") if "conv" in row.name else row.name.replace("downsample.0", "downsample.1")
        )
        if norm != row.name:
            expected = expected * np.sign(weights[f"{norm}.weight"][kept_out])[:, None, None, None]
        np.testing.assert_array_equal(codes[row.name].codes, expected)


@pytest.mark.parametrize("name", ["model_trt", "model_ort"])
def test_no_float_weights_are_left(exported: RunDir, name: str) -> None:
    model, plan = load_onnx(getattr(exported, name)), load_plan(exported.plan)
    layers = {f"{row.name}.weight" for row in plan.layers}
    types = {t.name: t.data_type for t in model.graph.initializer}
    assert all(types[layer] == onnx.TensorProto.INT8 for layer in layers)
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert all(len(t.dims) <= 1 for t in floats), "a bias or a scale, nothing larger"
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata["sbs.plan_sha256"] == rundir.sha256_of(exported.plan)


def test_trt_rules(exported: RunDir) -> None:
    model = load_onnx(exported.model_trt)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    zero_points = [a for name, a in arrays.items() if name.endswith("zero_point")]
    assert zero_points and all(a.dtype == np.int8 and not a.any() for a in zero_points)
    assert all((a > 0).all() for name, a in arrays.items() if name.endswith("_scale"))
    assert not any(name.endswith("bias_codes") for name in arrays)
    clips = [n for n in model.graph.node if n.op_type == "Clip"]
    assert all(arrays[n.input[1]].dtype == np.float32 for n in clips)


def test_snapped_biases_are_integers_for_onnxruntime(exported: RunDir) -> None:
    arrays = {t.name: numpy_helper.to_array(t) for t in load_onnx(exported.model_ort).graph.initializer}
    codes = {name: value for name, value in arrays.items() if name.endswith("bias_codes")}
    assert len(codes) == len(load_plan(exported.plan).layers) and all(c.dtype == np.int32 for c in codes.values())


def test_dense_model_is_the_float_network(exported: RunDir) -> None:
    import torch

    from sbs_train.stages.weights import restore

    images = load_arrays(exported.golden)["input/x_NCHW"][:16]
    network, _ = restore(exported, "fp32")
    with torch.no_grad():
        expected = network.model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(logits(exported.model_fp32, images), expected, atol=1e-4)


def test_golden_holds_the_test_set(exported: RunDir) -> None:
    from sbs_train.inputs.data import load_dataset

    golden, data, plan = load_arrays(exported.golden), load_dataset("digits"), load_plan(exported.plan)
    assert golden["input/x_NCHW"].shape == (360, 1, 16, 16) and golden["input/x_NCHW"].dtype == np.float32
    np.testing.assert_array_equal(golden["labels"], data.test.labels.numpy())
    assert golden["output/output"].shape == (360, 10)
    assert golden["exact/output"].shape == (256, 10) and golden["exact/output"].dtype == np.float64
    np.testing.assert_allclose(golden["exact/output"], golden["output/output"][:256], atol=0.5)
    assert np.median(np.abs(golden["exact/output"] - golden["output/output"][:256])) < 1e-5
    taps = {key.removeprefix("tap/"): value for key, value in golden.items() if key.startswith("tap/")}
    assert list(taps) == [row.name for row in plan.layers]
    assert all(taps[row.name].shape[:2] == (4, row.kept_out) for row in plan.layers)
    np.testing.assert_allclose(taps["fc"], golden["output/output"][:4], atol=1e-5)


def test_tensorrt_rtx_builds_the_graph(exported: RunDir) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    from sbs_deploy.backends.tensorrt import log as trt_log

    logger = trt_log.recording_logger(trt)  # one logger per process: the first one counts
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(exported.model_trt.read_bytes())
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("x_NCHW", (1, 1, 16, 16), (8, 1, 16, 16), (32, 1, 16, 16))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    assert builder.build_serialized_network(network, config) is not None


def test_a_second_export_does_nothing(run_copy: RunDir) -> None:
    before = {path: path.stat().st_mtime_ns for path in run_copy.deploy.iterdir()}
    assert all(line.endswith("is current") for line in steps(run_copy))
    assert {path: path.stat().st_mtime_ns for path in run_copy.deploy.iterdir()} == before


def test_only_what_is_stale_is_made_again(run_copy: RunDir) -> None:
    expected = run_copy.model_ort.read_bytes()
    run_copy.model_ort.write_bytes(b"damaged")
    assert steps(run_copy)[-1] == "export: quantized models"
    assert run_copy.model_ort.read_bytes() == expected, "the export is deterministic"


@pytest.mark.parametrize("name", ["plan", "weights"])
@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_damaged_inputs_are_refused(run_copy: RunDir, name: str, damage: str) -> None:
    path = getattr(run_copy, name)
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SbsError, match=f"{path.name}.*(sbs-train|make it again)") as error:
        steps(run_copy)
    assert "\n" not in str(error.value)


def test_a_damaged_model_is_named(run_copy: RunDir) -> None:
    run_copy.model_slim.write_bytes(run_copy.model_slim.read_bytes()[:5000])
    with pytest.raises(SbsError, match=r"model\.slim\.onnx changed.*sbs-deploy export"):
        load_onnx(run_copy.model_slim)
    signed(run_copy.model_slim)
    with pytest.raises(SbsError, match=r"model\.slim\.onnx is damaged.*sbs-deploy export"):
        load_onnx(run_copy.model_slim)
