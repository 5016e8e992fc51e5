"""Checkpoints, and trainings that are stopped and go on."""

import json

import numpy as np
import pytest

from dpq_ref import SGD, Adam, checkpoint, job
from dpq_ref.layers import BatchNorm, Dense, DPQEmbedding, Dropout
from dpq_ref.network import Network


class Noisy(Network):
    """Least squares through batch norm and dropout: parameters, running statistics and a generator."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        super().__init__(
            {
                "norm": BatchNorm(3, dtype=np.float64),
                "dropout": Dropout(0.7, rng=rng),
                "dense": Dense(3, 1, rng=rng, dtype=np.float64),
            }
        )

    def loss_and_gradients(self, batch):
        x, y = batch
        for layer in self.layers.values():
            x = layer.forward(x)
        d = x - y
        for layer in reversed(self.layers.values()):
            d = layer.backward(d)
        return float(((x - y) ** 2).sum() / 2)


def batches(start):
    step = start
    while True:
        rng = np.random.default_rng([5, step])
        yield rng.standard_normal((8, 3)), rng.standard_normal((8, 1))
        step += 1


class Killed(Exception):
    pass


def run(folder, *, kill_at=None, optimizer=Adam, steps=12, metric="validation_perplexity", **options):
    """Train; the metric is a sum that depends on all parameters."""
    model = Noisy()

    def on_step(step):
        if step == kill_at:
            raise Killed

    arguments = {
        "config": {"rate": 0.1},
        "steps": steps,
        "evaluate": lambda: {metric: float(sum(np.abs(p).sum() for p in model.params.values()))},
        "metric": metric,
        "evaluate_every": 5,
        "schedule": lambda step: 0.1 / step,
        "on_step": on_step,
    } | options
    progress = job.fit(folder, model, optimizer(model.params, 0.1), batches, **arguments)
    return model, progress


def numbers(progress):
    """All but times."""
    evaluations = [{k: v for k, v in e.items() if k != "minutes"} for e in progress.evaluations]
    return evaluations, progress.history.losses, progress.best_step, progress.done


@pytest.mark.parametrize("optimizer", [SGD, Adam])
@pytest.mark.parametrize("kill_at", [1, 4, 5, 6, 11, 12])
@pytest.mark.parametrize("checkpoint_minutes", [0, 5])
def test_killed_and_resumed_equals_unbroken_bitwise(tmp_path, optimizer, kill_at, checkpoint_minutes):
    """Killed after any step, with a checkpoint at every step or at evaluations only."""
    options = {"optimizer": optimizer, "checkpoint_minutes": checkpoint_minutes}
    whole, expected = run(tmp_path / "whole", **options)
    with pytest.raises(Killed):
        run(tmp_path / "broken", kill_at=kill_at, **options)
    model, progress = run(tmp_path / "broken", **options)
    assert numbers(progress) == numbers(expected)
    for name, array in whole.state().items():
        assert model.state()[name].tobytes() == array.tobytes(), name
    for name, array in job.best(tmp_path / "whole").items():
        assert job.best(tmp_path / "broken")[name].tobytes() == array.tobytes(), name
    lines = [
        [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        for folder in ("whole", "broken")
    ]
    assert [e["step"] for e in lines[1]] == [e["step"] for e in lines[0]] == [5, 10, 12]


def test_a_finished_training_does_nothing_more(tmp_path):
    _, expected = run(tmp_path)
    model, progress = run(tmp_path, evaluate=lambda: pytest.fail("nothing to do"))
    assert numbers(progress) == numbers(expected)
    assert model.params["dense.weight"].tobytes() != Noisy().params["dense.weight"].tobytes()


def test_damaged_checkpoint_is_refused_and_the_one_before_it_used(tmp_path):
    _, expected = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "broken", kill_at=8, checkpoint_minutes=0)
    files = sorted((tmp_path / "broken/checkpoints").iterdir())
    assert [f.name for f in files] == ["step-000000007.npz", "step-000000008.npz"]
    content = bytearray(files[-1].read_bytes())
    content[len(content) // 2] ^= 1
    files[-1].write_bytes(content)
    with pytest.warns(UserWarning, match="step-000000008.npz is damaged"):
        _, progress = run(tmp_path / "broken", checkpoint_minutes=0)
    assert numbers(progress) == numbers(expected)


def test_any_damage_is_found(tmp_path):
    """Every byte changed, one at a time, and every way to cut the end off."""
    arrays, meta = {"x": np.arange(3.0), "y.z": np.array([7])}, {"step": 3}
    path = tmp_path / "step-000000003.npz"
    checkpoint.write(path, arrays, meta)
    assert checkpoint.read(path)[1] == meta
    content = path.read_bytes()
    for i in range(len(content)):
        for damaged in (content[:i] + bytes([content[i] ^ 255]) + content[i + 1 :], content[:i]):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="damaged"):
                checkpoint.read(path)


def test_all_checkpoints_damaged_is_an_error_not_a_new_start(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step-000000001.npz").write_bytes(b"PK")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match="all checkpoints are damaged"),
    ):
        run(tmp_path)


def test_another_configuration_does_not_go_on(tmp_path):
    run(tmp_path, steps=2)
    with pytest.raises(ValueError, match=r"rate 0\.1 there, 0\.2 here.*choose another folder"):
        run(tmp_path, config={"rate": 0.2})


def test_time_is_up(tmp_path):
    """It stops after the step at hand, with a checkpoint, and goes on from there."""
    _, progress = run(tmp_path / "slow", max_minutes=0)
    assert len(progress.history.losses) == 1
    assert not progress.done
    for _ in range(11):
        _, progress = run(tmp_path / "slow", max_minutes=0)
    assert numbers(progress) == numbers(run(tmp_path / "whole")[1])


@pytest.mark.parametrize(("metric", "best"), [("validation_perplexity", 15), ("validation_accuracy", 10)])
def test_best_evaluation_and_patience(tmp_path, metric, best):
    """Lower or higher is better as the metric says; equal is not better."""
    values = iter([4.0, 5.0, 3.0, 3.0, 4.0, 9.0])
    _, progress = run(tmp_path, steps=100, metric=metric, evaluate=lambda: {metric: next(values)}, patience=2)
    assert progress.best_step == best
    assert progress.done
    assert progress.evaluations[-1]["step"] == best + 10


def test_best_state_is_that_of_the_best_step(tmp_path):
    values = iter([1.0, 2.0, 3.0])
    model, _ = run(tmp_path, steps=15, evaluate=lambda: {"validation_perplexity": next(values)})
    early, _ = run(tmp_path / "early", steps=5)
    for name, array in early.state().items():
        np.testing.assert_array_equal(job.best(tmp_path)[name], array)
    assert (model.state()["dense.weight"] != early.state()["dense.weight"]).any()


class Coded(Network):
    """DPQ embedding drawn towards zero."""

    def __init__(self):
        self.embedding = DPQEmbedding(9, 4, n_groups=2, n_codes=4, method="sx", rng=0)
        super().__init__({"embedding": self.embedding})

    def loss_and_gradients(self, batch):
        x = self.embedding.forward(np.arange(9))
        self.embedding.backward(np.sign(x))
        return float(np.abs(x).sum())


def test_evaluations_tell_how_codes_change_and_are_used(tmp_path):
    """The change against codes that the test keeps itself, also over a break."""
    model, seen = Coded(), []

    def fit(model, steps):
        seen.append(model.embedding.all_codes())
        return job.fit(
            tmp_path,
            model,
            SGD(model.params, 0.1),
            lambda start: iter(int, 1),
            config={},
            steps=20,
            evaluate=lambda: seen.append(model.embedding.all_codes()) or {"validation_perplexity": 1.0},
            metric="validation_perplexity",
            evaluate_every=5,
            on_step=lambda step: (_ for _ in ()).throw(Killed) if step == steps else None,
        )

    with pytest.raises(Killed):
        fit(model, 12)
    before = len(seen)
    found = fit(Coded(), None).evaluations
    codes = seen[:before] + seen[before + 1 :]
    assert len(found) == 4
    for evaluation, earlier, later in zip(found, codes, codes[1:], strict=False):
        assert evaluation["codes_changed"] == (earlier != later).mean()
        assert evaluation["codes_used"] == np.mean([len(set(group)) / 4 for group in later.T])
    assert any(evaluation["codes_changed"] > 0 for evaluation in found[2:])
