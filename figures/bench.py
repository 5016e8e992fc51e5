"""Speed of a training step of the language model beside torch's, interleaved in one process.

`python -m figures.bench --model small --output figures/results/speed` writes language_model-small.json. Needs
torch. Both sides do the same work on the same batches: embedding, two LSTM layers, softmax over 10,000 words,
clipping, plain descent; the losses of the first steps are compared before anything is timed.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from dpq_ref import SGD, trainer
from dpq_ref.compressed import write_atomically
from dpq_ref.environment import environment
from dpq_ref.layers import make_embedding
from dpq_ref.tasks.language_model import SIZES, LanguageModel, Plan, batches
from dpq_ref.tasks.recipe import presets

VOCAB, TRAIN = 10_000, 929_589  # words, and words of text: Penn Treebank
CHECKED = 3  # steps whose losses are compared


def stepper(plan: Plan, settings: dict[str, Any], stream: list[Any]) -> tuple[LanguageModel, Callable]:
    """Language model of this package, and its training step on a batch of the stream."""
    settings = dict(settings)
    layer = make_embedding(settings.pop("kind"), VOCAB, plan.n_hidden, init=plan.init, **settings)
    model = LanguageModel(layer, plan)
    optimizer, history = SGD(model.params, plan.learning_rate), trainer.History()

    def step(i: int) -> float:
        done = len(history.losses) + 1
        trainer.train(
            model, iter([stream[i]]), optimizer, steps=done, clip_norm=plan.clip_norm, history=history
        )
        return history.losses[-1]

    return model, step


def torch_stepper(plan: Plan, model: LanguageModel, stream: list[Any]) -> Callable:
    """Training step of the same model in torch, from the same parameters."""
    import torch

    h, p = plan.n_hidden, model.params
    table, lstm = torch.nn.Embedding(VOCAB, h), torch.nn.LSTM(h, h, plan.n_layers, batch_first=True)
    output = torch.nn.Linear(h, VOCAB)
    with torch.no_grad():
        table.weight.copy_(torch.tensor(p["embedding.table"]))
        output.weight.copy_(torch.tensor(p["output.weight"]))
        output.bias.zero_()
        for i in range(plan.n_layers):
            getattr(lstm, f"weight_ih_l{i}").copy_(torch.tensor(p[f"lstm{i + 1}.input_weight"].T))
            getattr(lstm, f"weight_hh_l{i}").copy_(torch.tensor(p[f"lstm{i + 1}.hidden_weight"].T))
            getattr(lstm, f"bias_ih_l{i}").zero_()
            getattr(lstm, f"bias_hh_l{i}").zero_().requires_grad_(False)
    parameters = [q for m in (table, lstm, output) for q in m.parameters() if q.requires_grad]
    optimizer, state = torch.optim.SGD(parameters, lr=plan.learning_rate), None

    def step(i: int) -> float:
        nonlocal state
        batch = stream[i]
        if batch.fresh:
            state = None
        x, state = lstm(table(torch.tensor(batch.inputs).long()), state)
        state = tuple(s.detach() for s in state)
        logits, labels = output(x).reshape(-1, VOCAB), torch.tensor(batch.targets.ravel()).long()
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / plan.batch_size
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, plan.clip_norm)
        optimizer.step()
        return float(loss.detach())

    return step


def zipf(n: int, rng: np.random.Generator) -> np.ndarray:
    """Words with the frequencies of text: the k-th comes 1 / k as often as the first."""
    weights = 1 / np.arange(1, VOCAB + 1)
    return rng.choice(VOCAB, n, p=weights / weights.sum()).astype(np.int32)


@click.command()
@click.option("--model", type=click.Choice(list(SIZES)), default="small", show_default=True)
@click.option("--runs", type=click.IntRange(1), default=15, show_default=True, help="Timed steps of each.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("results/speed"), show_default=True)
def main(model: str, runs: int, output: Path) -> None:
    """Time training steps of the language model: full and DPQ embeddings, and torch's full one."""
    import torch
    from threadpoolctl import threadpool_limits

    plan = SIZES[model]
    steps = CHECKED + runs
    text = zipf(plan.batch_size * (steps * plan.n_steps + 1), np.random.default_rng(0))
    stream = [
        batch for batch, _ in zip(batches(text, plan.batch_size, plan.n_steps), range(steps), strict=False)
    ]
    torch.set_num_threads(1)
    with threadpool_limits(1):
        plain = Plan(**{**plan.__dict__, "keep": 1.0})  # dropouts draw other numbers in torch
        full, mine = stepper(plain, {"kind": "full"}, stream)
        sides = {"torch": torch_stepper(plain, full, stream), "full": mine}
        for kind in ("sx", "vq"):
            sides[f"dpq-{kind}"] = stepper(plain, presets()[f"ptb-{model}-{kind}"]["embedding"], stream)[1]
        losses = {name: [step(i) for i in range(CHECKED)] for name, step in sides.items()}
        np.testing.assert_allclose(losses["full"], losses["torch"], rtol=1e-4)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for i in range(CHECKED, steps):
            for name, step in sides.items():
                start = time.perf_counter()
                step(i)
                seconds[name].append(time.perf_counter() - start)
    per_epoch = (TRAIN // plan.batch_size - 1) // plan.n_steps
    median = {name: float(np.median(s)) for name, s in seconds.items()}
    record = {
        "model": model,
        "milliseconds": {name: 1e3 * s for name, s in median.items()},
        "ratio_to_torch": {
            name: float(np.median(np.divide(seconds["torch"], s))) for name, s in seconds.items()
        },
        "minutes_per_epoch": {name: per_epoch * s / 60 for name, s in median.items()},
        "steps_per_epoch": per_epoch,
        "runs": runs,
        "threads": 1,
        "environment": environment() | {"torch": torch.__version__},
    }
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / f"language_model-{model}.json", json.dumps(record, indent=1).encode())
    click.echo(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
