"""What a run says of itself while it trains."""

import sys
import types

import numpy as np
import pytest

from resnet_tf.training.logs import TrainLogger
from resnet_tf.training.run_dir import RunDir

METRICS = {
    "iteration": 3000,
    "epoch": 10.0,
    "train_loss": 0.5,
    "train_accuracy": 0.8,
    "validation_loss": None,
    "validation_accuracy": None,
    "learning_rate": 0.1,
}


@pytest.mark.parametrize(("pace", "left"), [(1000.0, "0:08:32"), (0.0, "59 days, 6:13:20")])
def test_the_time_that_is_left_goes_by_the_latest_pace(tmp_path, capsys, pace, left):
    """4,000 iterations of 128 images are left: 512 s at 1,000 images/s, whatever the first 3,000 took elsewhere."""
    logger = TrainLogger(RunDir(tmp_path), iterations=7000, steps_per_epoch=300, batch_size=128)
    logger.evaluated({**METRICS, "images_per_second": pace, "seconds": 36_000.0})
    logger.close()
    assert capsys.readouterr().out.rstrip().endswith(f"10:00:00 elapsed, {left} left")


def test_a_notebook_has_a_bar(tmp_path, monkeypatch):
    """Its standard error is no terminal."""
    logger = TrainLogger(RunDir(tmp_path), iterations=10, steps_per_epoch=5, batch_size=8)
    assert logger._bar.disable
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    logger = TrainLogger(RunDir(tmp_path), iterations=10, steps_per_epoch=5, batch_size=8)
    logger.progress(3, np.ones((3, 3), np.float32), 0.1)
    assert logger._bar.n == 3
    assert logger._bar.desc == "epoch 1/2: "
    logger.close()
