import json

import pytest

from resnet_tf.recipes import get_recipe, override
from resnet_tf.training.schedule import CHECK_EVERY, Schedule


def schedule_of(name, images=45_000, **changes):
    recipe = override(get_recipe(name), **changes)
    return Schedule(recipe, recipe.length(images))


def learning_rates(schedule, *steps):
    return [schedule.learning_rate(step) for step in steps]


def test_he2015_makes_32000_updates_at_a_tenth():
    schedule = schedule_of("he2015")
    assert learning_rates(schedule, 0, 31_998, 31_999) == [0.1, 0.1, 0.1]
    assert learning_rates(schedule, 32_000, 32_001, 47_999) == [0.01, 0.01, 0.01]
    assert learning_rates(schedule, 48_000, 48_001, 63_999) == [0.001, 0.001, 0.001]


def test_he2016_makes_400_updates_at_a_hundredth_first():
    schedule = schedule_of("he2016")
    assert learning_rates(schedule, 0, 398, 399) == [0.01, 0.01, 0.01]
    assert learning_rates(schedule, 400, 401, 31_999, 32_000, 48_000) == [0.1, 0.1, 0.1, 0.01, 0.001]


def test_quarter_and_tutorial_drop_where_they_say():
    assert learning_rates(schedule_of("quarter"), 7_999, 8_000, 11_999, 12_000) == [0.1, 0.01, 0.01, 0.001]
    tutorial = schedule_of("tutorial", images=50_000)
    assert tutorial.iterations == 78_000
    assert learning_rates(tutorial, 31_199, 31_200, 46_799, 46_800, 77_999) == [0.1, 0.01, 0.01, 0.001, 0.001]


@pytest.mark.parametrize("iterations", [64, 100, 6_400, 9_999])
def test_a_shortened_schedule_keeps_its_proportions(iterations):
    schedule = schedule_of("he2015", iterations=iterations)
    all_learning_rates = learning_rates(schedule, *range(iterations))
    assert all_learning_rates.count(0.1) == -(-iterations // 2)
    assert all_learning_rates.count(0.1) + all_learning_rates.count(0.01) == -(-iterations * 3 // 4)
    assert set(all_learning_rates) == {0.1, 0.01, 0.001}


def test_other_drops():
    schedule = schedule_of("he2015", iterations=10, drops=(0.2, 0.7), drop_factor=0.5, learning_rate=0.8)
    assert learning_rates(schedule, *range(10)) == [0.8] * 2 + [0.4] * 5 + [0.2] * 3


def test_one_cycle():
    schedule = schedule_of("quick", images=128 * 20)
    assert schedule.iterations == 400
    assert learning_rates(schedule, 0, 50, 100) == [0.025, pytest.approx((0.025 + 0.25) / 2), 0.25]
    assert learning_rates(schedule, 250, 399) == [pytest.approx(0.125), pytest.approx(0.25 / 300)]
    all_learning_rates = learning_rates(schedule, *range(400))
    assert all_learning_rates[:101] == sorted(all_learning_rates[:101])
    assert all_learning_rates[100:] == sorted(all_learning_rates[100:], reverse=True)
    assert learning_rates(schedule_of("quick", iterations=10, rise=0.0), 0, 5) == [0.25, 0.125]
    assert learning_rates(schedule_of("quick", iterations=10, rise=1.0), 0, 5) == [0.025, pytest.approx(0.1375)]


def test_cosine_and_constant():
    cosine = schedule_of("he2015", iterations=100, schedule="cosine")
    assert learning_rates(cosine, 0, 50) == [0.1, 0.05]
    assert cosine.learning_rate(25) == pytest.approx(0.05 * (1 + 0.5**0.5))
    assert 0 < cosine.learning_rate(99) < 1e-4
    assert set(learning_rates(schedule_of("he2015", iterations=100, schedule="constant"), *range(100))) == {0.1}


def observe(schedule, count, loss=1.0, error=0.5):
    for _ in range(count):
        schedule.observe_batch(loss, error)


def test_warm_up_by_error_ends_below_80_percent_over_100_iterations():
    schedule = schedule_of("he2015", warmup="error")
    assert schedule.needs_batches
    assert learning_rates(schedule, 0, 400, 40_000) == [0.01, 0.01, 0.01]
    observe(schedule, CHECK_EVERY, error=0.9)
    observe(schedule, CHECK_EVERY, error=0.81)
    assert schedule.learning_rate(200) == 0.01
    observe(schedule, CHECK_EVERY - 1, error=0.79)
    assert schedule.learning_rate(299) == 0.01
    observe(schedule, 1, error=0.79)
    assert learning_rates(schedule, 300, 31_999, 32_000) == [0.1, 0.1, 0.01]
    assert not schedule.needs_batches
    observe(schedule, CHECK_EVERY, error=0.95)
    assert schedule.learning_rate(500) == 0.1  # and does not come back


def test_the_error_of_a_warm_up_is_the_mean_of_its_window():
    schedule = schedule_of("he2015", warmup="error")
    observe(schedule, CHECK_EVERY // 2, error=0.98)
    observe(schedule, CHECK_EVERY // 2, error=0.60)
    assert schedule.learning_rate(100) == 0.1


def test_plateau_on_the_validation_accuracy():
    schedule = schedule_of("he2015", schedule="plateau", patience=2)
    assert not schedule.needs_batches
    for accuracy in (0.5, 0.6, 0.6, 0.7, 0.65):
        schedule.observe_validation(accuracy)
    assert schedule.learning_rate(5) == 0.1
    schedule.observe_validation(0.7)  # equal is no gain: the second check without one
    assert schedule.learning_rate(6) == 0.01
    schedule.observe_validation(0.69)
    assert schedule.learning_rate(7) == 0.01
    schedule.observe_validation(0.69)
    assert schedule.learning_rate(8) == 0.001


def test_plateau_on_the_minibatch_loss():
    schedule = schedule_of("he2015", schedule="plateau", monitor="minibatch-loss", patience=1, validation_size=0)
    assert schedule.needs_batches
    observe(schedule, CHECK_EVERY, loss=2.0)
    observe(schedule, CHECK_EVERY, loss=1.5)
    assert schedule.learning_rate(0) == 0.1
    schedule.observe_validation(0.1)  # means nothing to this monitor
    observe(schedule, CHECK_EVERY - 1, loss=1.6)
    assert schedule.learning_rate(0) == 0.1
    observe(schedule, 1, loss=1.6)
    assert schedule.learning_rate(0) == 0.01


def test_schedules_without_feedback_do_not_look():
    schedule = schedule_of("he2016")
    before = json.dumps(schedule.state)
    assert not schedule.needs_batches
    schedule.observe_validation(0.5)
    assert json.dumps(schedule.state) == before


def test_a_saved_state_goes_on_as_if_nothing_had_happened():
    whole = schedule_of("he2015", schedule="plateau", monitor="minibatch-loss", warmup="error", patience=1)
    parts = schedule_of("he2015", schedule="plateau", monitor="minibatch-loss", warmup="error", patience=1)
    for i in range(1_000):
        loss, error = 2 - (i % 37) / 40 + (i > 500), 0.95 - i / 3_000
        whole.observe_batch(loss, error)
        parts.observe_batch(loss, error)
        if i % 53 == 0:
            state = json.loads(json.dumps(parts.state))
            parts = schedule_of("he2015", schedule="plateau", monitor="minibatch-loss", warmup="error", patience=1)
            parts.state = state
        assert parts.learning_rate(i) == whole.learning_rate(i)
    assert parts.state == whole.state
    assert whole.learning_rate(1_000) < 0.1


def test_a_factor_scales_every_rate():
    schedule = schedule_of("he2016")
    schedule.state["factor"] = 0.5
    assert learning_rates(schedule, 0, 400, 32_000) == [0.005, 0.05, 0.005]


def test_another_rate_from_the_switch_on():
    recipe = override(get_recipe("he2015"), iterations=100)
    schedule = Schedule(recipe, 100, 30, 0.02)
    assert [schedule.learning_rate(step) for step in (0, 29, 30, 49, 50, 75)] == [0.1, 0.1, 0.02, 0.02, 0.002, 0.0002]
    assert Schedule(recipe, 100, 30).learning_rate(30) == 0.1


def test_a_linear_warm_up_grows_in_equal_steps():
    """1706.02677, section 2.2: from 0.1 to 0.4 (batch 512 for 128), where the schedule takes over."""
    changes = {"iterations": 1_000, "learning_rate": 0.4, "warmup_learning_rate": 0.1, "warmup_iterations": 100}
    schedule = schedule_of("he2015", warmup="linear", **changes)
    assert learning_rates(schedule, 0, 1, 50, 99, 100, 499, 500) == [0.1, 0.103, 0.25, 0.397, 0.4, 0.4, 0.04]
    assert not schedule.needs_batches
