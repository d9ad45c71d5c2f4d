"""Import of a ResNet-152-sized checkpoint (241 MB): memory and time against reading the file and building the model.

    python -m benchmarks.weights_import [--repeats 3]

Makes the checkpoint itself, in the layout of torch.save, with the shapes of torchvision's ResNet-152 and random
numbers. Each part runs in a process of its own; the times leave out importing TensorFlow.
"""

import argparse
import collections
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from resnet_tf.process import load_tensorflow

MEASURE = """
import json, resource, sys, time
from pathlib import Path
from resnet_tf.process import load_tensorflow
load_tensorflow()
import resnet_tf.models.resnet, resnet_tf.pretrained.keras_file, resnet_tf.cli.import_weights
what, path, output = sys.argv[1:]
began = time.perf_counter()
if what == "read":
    Path(path).read_bytes()
elif what == "build":
    resnet_tf.build_model("resnet152")
elif what == "fill":
    resnet_tf.build_model("resnet152", weights=path)
else:
    resnet_tf.cli.import_weights.main([path, "--model", "resnet152", "--output", output])
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"seconds": seconds, "peak": peak}))
"""


def make_checkpoint(path):
    """A zip archive as torch.save writes it, from a model's own shapes."""
    import numpy as np

    from resnet_tf.models.registry import build_model
    from resnet_tf.pretrained.torch_mapping import TORCHVISION, torch_shape, variables_by_torch_name
    from tests.test_pretrained_torch import pickled, tensor

    variables = variables_by_torch_name(build_model("resnet152"), TORCHVISION)
    rng = np.random.default_rng(0)
    description = collections.OrderedDict()
    with zipfile.ZipFile(path, "w") as archive:
        for key, (name, variable) in enumerate(variables.items()):
            shape = torch_shape(variable)
            strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
            numel = int(np.prod(shape))
            description[name] = tensor(shape, strides, numel=numel, key=str(key))
            archive.writestr(f"archive/data/{key}", rng.random(numel, np.float32).tobytes())
        archive.writestr("archive/data.pkl", pickled(description))
    print(f"{path.stat().st_size / 1e6:.0f} MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    load_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet152.pth"
        make_checkpoint(path)
        best = {}
        for _ in range(arguments.repeats):
            for what in ("read", "build", "fill", "import"):
                argv = [sys.executable, "-c", MEASURE, what, path, f"{folder}/out.keras"]
                lines = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
                found = json.loads(lines[-1])
                known = best.setdefault(what, found)
                best[what] = {
                    "seconds": min(known["seconds"], found["seconds"]),
                    "peak": max(known["peak"], found["peak"]),
                }
    for what, found in best.items():
        print(f"{what:>6}: {found['seconds']:6.2f} s, peak {found['peak']:.2f} GB")
    bound = best["read"]["seconds"] + best["build"]["seconds"]
    for what in ("fill", "import"):
        print(f"{what} / (read + build) = {best[what]['seconds'] / bound:.2f}")


if __name__ == "__main__":
    main()
