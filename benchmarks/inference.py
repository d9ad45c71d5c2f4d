"""Inference speed of the fused view, of stock Keras and of PyTorch, side by side.

    python -m benchmarks.inference [--models resnet20_v2,resnet50] [--rounds 5] [--json FILE]

A constant batch of 500 uint8 images (ResNet-50: 16 of 224 pixels), normalization included in ours. Nothing else should
run.
"""

import argparse
import importlib.util
import json
import sys

from benchmarks.networks import build, data, torch_inputs
from benchmarks.rounds import Contender, as_dict, measure, ratio, serve, table, timed, write_json

OURS = ("stock float32", "fused float32", "folded float32", "fused bfloat16", "folded bfloat16")
TORCH = ("torch float32", "torch channels_last", "torch bfloat16", "torch bfloat16 compiled")
BATCH = 500


def keras_contender(model: str, kind: str, precision: str) -> None:
    import tensorflow as tf

    from resnet_tf import fused_view
    from resnet_tf.folding import fold_batch_norm
    from resnet_tf.inference import compiled_forward

    network = build(model)
    if kind == "folded":
        network = fold_batch_norm(network)
    if kind != "stock":
        network = fused_view(network, "mixed_bfloat16" if precision == "bfloat16" else precision)
    forward = compiled_forward(network)
    images = tf.constant(data(model, None if model == "resnet50" else BATCH)[0])
    serve(timed(lambda: forward(images).numpy()), len(images))


def torch_contender(model: str, how: str) -> None:
    import torch

    network, x, _ = torch_inputs(model, how, None if model == "resnet50" else BATCH)
    network.eval()
    forward = torch.compile(network) if "compiled" in how else network

    def work():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in how):
            forward(x)

    serve(timed(work), len(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet20_v2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    torch = TORCH if importlib.util.find_spec("torch") else ()
    results = {}
    for model in arguments.models.split(","):
        contenders = [Contender("benchmarks.inference", name, {"model": model}) for name in (*OURS, *torch)]
        measure(contenders, arguments.rounds)
        print(f"\n{model}\n{table(contenders, contenders[0], 'images/s')}", flush=True)
        results[model] = as_dict(contenders, contenders[0])
        if torch:
            ours, theirs = (max(group, key=lambda c: c.rate) for group in (contenders[:5], contenders[5:]))
            print(f"{ours.name} against {theirs.name}: {ratio(ours, theirs):.2f}×")
    write_json(arguments.json, results)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[2].startswith("{"):
        kind, _, rest = sys.argv[1].partition(" ")
        chosen = json.loads(sys.argv[2])["model"]
        torch_contender(chosen, rest) if kind == "torch" else keras_contender(chosen, kind, rest)
    else:
        main()
