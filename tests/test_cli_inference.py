import numpy as np
import pytest

from resnet_tf.cli.evaluate import main as evaluate
from resnet_tf.inference import compiled_inference
from resnet_tf.models.resnet import cifar_resnet

pytestmark = pytest.mark.usefixtures("small_data")


def convolutions(function):
    """Types of the operations that do most of the work, in the graph that runs."""
    graph = function.get_concrete_function().graph
    return [operation.type for operation in graph.get_operations()]


@pytest.fixture(scope="module")
def network():
    model = cifar_resnet(8, version=1, classes=10, input_shape=(8, 8, 3))
    rng = np.random.default_rng(0)
    for variable in model.non_trainable_variables:
        variable.assign(variable + rng.uniform(0.0, 0.5, variable.shape))
    return model


def test_folding_takes_the_normalizations_out_and_leaves_the_outputs(network):
    images = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    as_it_is, folded = compiled_inference(network), compiled_inference(network, fold_bn=True)
    expected = network.predict_on_batch(images.astype(np.float32))
    np.testing.assert_allclose(as_it_is(images), expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(folded(images), expected, atol=1e-4 * np.abs(expected).max())
    assert sum(kind.startswith("FusedBatchNorm") for kind in convolutions(as_it_is)) == 7
    assert not any(kind.startswith("FusedBatchNorm") for kind in convolutions(folded))


def test_16_bits_are_computed_and_32_put_out(network):
    images = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    expected = compiled_inference(network)(images).numpy()
    found = compiled_inference(network, "mixed_bfloat16")(images).numpy()
    assert found.dtype == np.float32
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    # Eight bits of mantissa, and some of that added up over the layers.
    assert 1e-4 < difference < 0.05


def test_evaluate_takes_the_flags(finished_run):
    folder, _, report = finished_run
    folded = evaluate([str(folder), "--fold-bn"])
    assert folded["loss"] == pytest.approx(report["test"]["loss"], rel=1e-4)
    assert folded["loss"] != report["test"]["loss"]
    rounded = evaluate([str(folder), "--precision", "mixed_bfloat16"])
    assert rounded["loss"] == pytest.approx(report["test"]["loss"], rel=0.05)
    assert rounded["loss"] != report["test"]["loss"]
