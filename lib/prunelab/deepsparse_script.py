"""Runs an ONNX network through DeepSparse: a script for the environment that has it, which `deepsparse` starts.

Without arguments it runs a network of one layer, to see whether the engine works here. Else it takes the network, its
inputs, where the outputs go, the size of batches and the number of cores. It prints one line of JSON.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from deepsparse import Engine
from onnx import helper, numpy_helper


def run(network, images, batch_size, n_cores):
    """Returns the outputs of a network, and the seconds that they took, without those of compiling it."""
    lower(network)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        onnx.save(network, path)
        engine = Engine(model=str(path), batch_size=batch_size, num_cores=n_cores)
    filled = np.concatenate([images, np.repeat(images[-1:], -len(images) % batch_size, axis=0)])
    batches = np.split(filled, len(filled) // batch_size)
    engine.run([batches[0]])
    started = time.perf_counter()
    outputs = [engine.run([batch])[0].copy() for batch in batches]
    seconds = time.perf_counter() - started
    return np.concatenate(outputs)[: len(images)], seconds


def lower(network):
    """Writes a network in operators of version 17, the newest that DeepSparse 1.8 runs itself, from version 18 on.

    Of those in a convolutional network two have changed: means took their axes as an attribute, pads of all axes.
    """
    network.ir_version = 8
    network.opset_import[0].version = 17
    constants = {constant.name: numpy_helper.to_array(constant) for constant in network.graph.initializer}
    for node in network.graph.node:
        if node.op_type == "ReduceMean" and len(node.input) > 1:
            axes = constants[node.input.pop()].tolist()
            kept = [attribute for attribute in node.attribute if attribute.name == "keepdims"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("axes", axes)])


def tiny_network():
    """Returns a network that doubles 1 x 1 images of one channel."""
    before, after = (helper.make_tensor_value_info(name, 1, ["b", 1, 1, 1]) for name in ("images", "logits"))
    weight = numpy_helper.from_array(np.full((1, 1, 1, 1), 2, "float32"), "weight")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["images", "weight"], ["logits"])], "tiny", [before], [after], [weight]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


if __name__ == "__main__":
    if len(sys.argv) == 1:
        outputs, seconds = run(tiny_network(), np.ones((1, 1, 1, 1), "float32"), 1, 1)
        print(json.dumps({"twice": float(outputs.item())}))
    else:
        network, images, features, batch_size, n_cores = sys.argv[1:]
        outputs, seconds = run(onnx.load(network), np.load(images), int(batch_size), int(n_cores))
        np.save(features, outputs)
        print(json.dumps({"seconds": seconds}))
