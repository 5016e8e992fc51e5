"""The training loop on models small enough to follow by hand."""

import numpy as np
import pytest

from dpq_ref import SGD, RowSparse
from dpq_ref.trainer import train


class Line:
    """Loss g x + h y for a batch (g, h): constant gradients."""

    def __init__(self):
        self.params = {"x": np.zeros((1, 1)), "y": np.zeros((2, 1))}

    def loss_and_gradients(self, batch):
        g, h = batch
        self.grads = {"x": np.full((1, 1), g), "y": RowSparse(np.array([1]), np.full((1, 1), h), 2)}
        return float(g * self.params["x"][0, 0] + h * self.params["y"][1, 0])


def run(batches, rate=1.0, **options):
    model = Line()
    history = train(model, iter(batches), SGD(model.params, rate), steps=len(batches), **options)
    return model, history


def test_losses_and_parameters_by_hand():
    model, history = run([(1.0, 2.0), (3.0, 0.0)])
    assert history.losses == [0.0, -3.0]
    assert model.params["x"][0, 0] == -4 and list(model.params["y"][:, 0]) == [0, -2]
    assert history.seconds > 0


def test_a_schedule_gives_the_rate_of_each_step_counted_from_one():
    model, _ = run([(1.0, 0.0)] * 3, rate=9.0, schedule=lambda step: 10.0**-step)
    assert model.params["x"][0, 0] == pytest.approx(-0.111)


@pytest.mark.parametrize(("limit", "moved"), [(1.0, (-0.6, -0.8)), (5.0, (-3, -4)), (100.0, (-3, -4))])
def test_clipping_is_by_the_norm_of_all_gradients(limit, moved):
    model, _ = run([(3.0, 4.0)], clip_norm=limit)
    assert (model.params["x"][0, 0], model.params["y"][1, 0]) == pytest.approx(moved, rel=1e-15)


def test_evaluations_come_on_time_with_the_mean_loss_since_the_last():
    seen, steps = [], []
    _, history = run(
        [(1.0, 0.0)] * 5,
        evaluate_every=2,
        evaluate=lambda step, loss: seen.append((step, loss)),
        on_step=steps.append,
    )
    assert history.losses == [0, -1, -2, -3, -4]
    assert seen == [(2, -0.5), (4, -2.5), (5, -4.0)]
    assert steps == [1, 2, 3, 4, 5]
    seen.clear()
    run([(1.0, 0.0)] * 3, evaluate=lambda step, loss: seen.append((step, loss)))
    assert seen == [(3, -1.0)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("batch", "message"), [((1.0, "bad"), "step 2: .*'y'"), (("bad", "bad"), "step 2: .*'x'")]
)
def test_what_is_not_finite_stops_before_it_moves_anything(bad, batch, message):
    model = Line()
    batches = iter([(1.0, 1.0), tuple(bad if b == "bad" else b for b in batch)])
    with pytest.raises(FloatingPointError, match=message):
        train(model, batches, SGD(model.params, 1.0), steps=2, clip_norm=1.0)
    assert np.isfinite(model.params["x"]).all() and np.isfinite(model.params["y"]).all()


def test_a_loss_that_is_not_finite_stops_though_its_gradients_are():
    class Broken(Line):
        def loss_and_gradients(self, batch):
            super().loss_and_gradients(batch)
            return float("nan")

    model = Broken()
    with pytest.raises(FloatingPointError, match="step 1: the loss is nan$"):
        train(model, iter([(1.0, 1.0)]), SGD(model.params, 1.0), steps=1)
    assert model.params["x"][0, 0] == 0


def test_no_steps_change_nothing():
    model, history = run([], evaluate=lambda *_: pytest.fail("nothing to evaluate"))
    assert history.losses == [] and model.params["x"][0, 0] == 0


@pytest.mark.parametrize("option", [{"steps": -1}, {"steps": 1, "evaluate_every": 0}])
def test_bad_numbers_are_refused_by_name(option):
    model = Line()
    with pytest.raises(ValueError, match=list(option)[-1]):
        train(model, iter([]), SGD(model.params, 1.0), **option)
