"""What a run says of itself while it trains."""

import pytest

from resnet_tf.training.logs import Progress
from resnet_tf.training.run_dir import RunDir

ROW = {
    "iteration": 3000,
    "epoch": 10.0,
    "train_loss": 0.5,
    "train_accuracy": 0.8,
    "validation_loss": None,
    "validation_accuracy": None,
    "learning_rate": 0.1,
}


@pytest.mark.parametrize(("rate", "left"), [(1000.0, "0:08:32"), (0.0, "59 days, 6:13:20")])
def test_the_time_that_is_left_goes_by_the_latest_pace(tmp_path, capsys, rate, left):
    """4,000 iterations of 128 images are left: 512 s at 1,000 images/s, whatever the first 3,000 took elsewhere."""
    progress = Progress(RunDir(tmp_path), iterations=7000, steps_per_epoch=300, batch_size=128)
    progress.evaluated({**ROW, "images_per_second": rate, "seconds": 36_000.0})
    progress.close()
    assert capsys.readouterr().out.rstrip().endswith(f"10:00:00 elapsed, {left} left")
