"""Static quantisation: layers in eight bits with the ranges of real patches, and logits that stay close."""

from itertools import pairwise

import numpy as np
import onnx
import pytest
import SimpleITK as sitk
from onnx import TensorProto, helper, numpy_helper

from nnunet_kd.cli import main
from nnunet_kd.deploy.quantization import CASES, calibration_patches, quantize
from nnunet_kd.runtime.engines import ENGINES, open_engine
from nnunet_kd.runtime.model import Model
from nnunet_kd.runtime.plans import read_pipeline
from tests.runtime.made_model import make_model
from tests.runtime.made_plans import make_dataset_json, make_plans

WIDTHS = (1, 6, 8, 8, 3)
PATCH = (8, 8, 8)


@pytest.fixture
def network(tmp_path):
    """A network of four 3-D convolutions with rectifiers between them; the scales of its channels differ much."""
    generator = np.random.default_rng(0)
    nodes, weights, name = [], [], "image"
    for layer, (channels, width) in enumerate(pairwise(WIDTHS)):
        kernel = generator.normal(size=(width, channels, 3, 3, 3)) / np.sqrt(27 * channels)
        kernel *= 4.0 ** -np.arange(width)[:, None, None, None, None] if layer == 1 else 1
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"kernel{layer}"))
        last = layer == len(WIDTHS) - 2
        out = "logits" if last else f"conv{layer}"
        nodes.append(helper.make_node("Conv", [name, f"kernel{layer}"], [out], name=f"layer{layer}", pads=[1] * 6))
        if not last:
            name = f"relu{layer}"
            nodes.append(helper.make_node("LeakyRelu", [out], [name], alpha=0.01))
    values = [
        helper.make_tensor_value_info(one, TensorProto.FLOAT, ["batch", width, "z", "y", "x"])
        for one, width in (("image", 1), ("logits", WIDTHS[-1]))
    ]
    graph = helper.make_graph(nodes, "network", values[:1], values[1:], weights)
    path = tmp_path / "network.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def patches(scale=1.0, count=6):
    return [scale * one for one in np.random.default_rng(1).normal(size=(count, 1, 1, *PATCH)).astype(np.float32)]


@pytest.mark.parametrize("engine", ENGINES)
def test_logits_stay_close_if_patches_are_like_the_images(network, engine):
    image = np.random.default_rng(2).normal(size=(1, 1, *PATCH)).astype(np.float32)
    exact = open_engine(engine, network, image.shape, 1)(image).copy()
    whole = network.read_bytes()
    errors = []
    for scale in (1.0, 30.0, 0.03):
        network.write_bytes(whole)
        quantize(network, patches(scale))
        found = open_engine(engine, network, image.shape, 1)(image)
        errors.append(np.abs(found - exact).max() / np.abs(exact).max())
    assert 0 < errors[0] < 0.03 and min(errors[1:]) > 5 * errors[0]


def test_inner_layers_have_eight_bits_and_a_scale_per_channel(network):
    quantize(network, patches())
    graph = onnx.load(str(network)).graph
    stored = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    layers = {node.name: node for node in graph.node if node.op_type == "Conv"}
    for name in ("layer0", "layer3"):
        assert stored[layers[name].input[1]].dtype == np.float32
    for name, width in (("layer1", 8), ("layer2", 8)):
        dequantised = made[layers[name].input[1]]
        assert dequantised.op_type == "DequantizeLinear"
        assert stored[dequantised.input[0]].dtype == np.int8 and stored[dequantised.input[1]].shape == (width,)
        assert made[layers[name].input[0]].op_type == "DequantizeLinear"
    fed = {name for node in graph.node if node.op_type == "QuantizeLinear" for name in node.input}
    assert not fed & {name for layer in layers.values() for name in layer.output}


def test_patches_are_windows_of_preprocessed_images(tmp_path):
    """One of each case, from the first to the last; every case has a value of its own."""
    images = tmp_path / "images"
    images.mkdir()
    for case in range(2 * CASES):
        image = sitk.GetImageFromArray(np.full((12, 12, 12), 2 * case + 1, np.int16))
        sitk.WriteImage(image, str(images / f"c{case:02d}_0000.nii.gz"))
    described = make_dataset_json(1, {"background": 0, "one": 1})
    pipeline = read_pipeline(make_plans([0.5, 0.5, 0.5], ["NoNormalization"]), described, "made", tmp_path)
    found = calibration_patches(images, pipeline, (16, 16, 16))
    assert len(found) == CASES and all(one.shape == (1, 1, 16, 16, 16) for one in found)
    values = [float(one.mean()) for one in found]
    assert values == sorted(values) and values[0] == pytest.approx(1) and values[-1] == pytest.approx(4 * CASES - 1)
    again = calibration_patches(images, pipeline, (16, 16, 16))
    np.testing.assert_array_equal(np.stack(found), np.stack(again))


def test_bfloat16_is_computed_or_refused(tmp_path, monkeypatch):
    openvino = pytest.importorskip("openvino")
    folder = make_model(tmp_path / "model", (100, 400), (1, 1, 1))
    image = np.random.default_rng(0).normal(300, 100, (1, 16, 16, 16)).astype(np.float32)
    exact = Model(folder, "openvino", 1).logits(image)
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        found = Model(folder, "openvino", 1, bf16=True).logits(image)
        assert 0 < np.abs(found - exact).max() <= 0.02 * np.abs(exact).max()
    else:
        with pytest.raises(ValueError, match="^this processor does not compute in bfloat16: leave out --bf16$"):
            Model(folder, "openvino", 1, bf16=True)
    with pytest.raises(ValueError, match="^onnxruntime does not compute in bfloat16: choose openvino"):
        Model(folder, "onnxruntime", 1, bf16=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--calibration", "."), "--calibration belongs to --precision int8"),
        (("--calibration", "nowhere", "--precision", "int8"), "there is no folder nowhere"),
    ],
)
def test_wrong_arguments(tmp_path, capsys, words, message):
    assert main(["export", "onnx", "-d", "598", "-o", str(tmp_path / "model"), *words]) == 1
    assert message in capsys.readouterr().err
