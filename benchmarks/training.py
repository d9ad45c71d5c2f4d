"""Training speed of our loop, of Keras and of PyTorch, side by side.

    python -m benchmarks.training [--models resnet20_v2,resnet50] [--rounds 5] [--json FILE]

Forward, backward and update on a constant batch of 128 (ResNet-50: 16 images of 224 pixels); `loop` is the whole
training loop on augmented images, with its log, evaluations and checkpoints not counted. Nothing else should run.
"""

import argparse
import importlib.util

from benchmarks.rounds import Contender, as_dict, measure, ratio, table, write_json

OURS = ("ours float32", "ours bfloat16")
KERAS = ("model.fit", "tutorial loop")
TORCH = ("torch float32", "torch channels_last", "torch bfloat16", "torch bfloat16 compiled")
MODULE = "benchmarks.training_contenders"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet20_v2,resnet20_v1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out even where it is installed")
    arguments = parser.parse_args()
    torch = () if arguments.no_torch or importlib.util.find_spec("torch") is None else TORCH
    results = {}
    for model in arguments.models.split(","):
        loop = ("loop bfloat16",) if model.startswith("resnet20") else ()
        names = (*OURS, *loop, *KERAS, *torch)
        contenders = [Contender(MODULE, name, {"model": model}) for name in names]
        measure(contenders, arguments.rounds)
        base = next(c for c in contenders if c.name == "model.fit")
        print(f"\n{model}\n{table(contenders, base, 'images/s')}", flush=True)
        results[model] = as_dict(contenders, base)
        by_name = {c.name: c for c in contenders}
        if loop:
            share = ratio(by_name["loop bfloat16"], by_name["ours bfloat16"])
            print(f"the whole loop runs at {100 * share:.1f} % of the bare step")
            results[model]["loop share"] = share
        if torch:
            best = max((by_name[name] for name in torch), key=lambda c: c.rate)
            ours = max((by_name[name] for name in OURS), key=lambda c: c.rate)
            print(f"{ours.name} against {best.name}: {ratio(ours, best):.2f}×")
    peak = [Contender(MODULE, name, {}) for name in ("matmul float32", "matmul bfloat16")]
    measure(peak, arguments.rounds)
    for contender in peak:
        print(f"{contender.name}: {contender.rate / 1e9:.0f} GFLOP/s")
        results[contender.name] = contender.rate
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
