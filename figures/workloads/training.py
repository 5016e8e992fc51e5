"""Training steps of the classifier and of the language model, beside those of the same models in torch.

Both sides do all the work of a step on the same batches, from the same parameters: look-up, network, loss,
gradients, clipping where there is any, update. The first losses are compared before anything is timed.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from dpq_ref import SGD, Adam, FullEmbedding, trainer
from dpq_ref.backend import to_numpy
from dpq_ref.layers import make_embedding
from dpq_ref.tasks.classify import PADDING, TextClassifier
from dpq_ref.tasks.language_model import SIZES, Batch, LanguageModel, Plan, batches
from dpq_ref.tasks.recipe import presets
from figures.speed import Call, Work
from figures.workloads.zipf import VOCAB, zipf

CHECKED = 2  # steps whose losses are compared: that of the second has seen gradients and update
Step = Callable[[], float]


def classifier(texts: int, training: bool = True) -> Work:
    """Step of a text classifier with the full embedding, or its forward alone; 10 to 70 words a text."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 71, texts)
    ids = np.zeros((texts, lengths.max()), np.int32)
    inside = np.arange(ids.shape[1]) < lengths[:, None]
    ids[inside] = 1 + zipf(lengths.sum(), rng)
    labels = rng.integers(0, 4, texts)
    model = TextClassifier(FullEmbedding(VOCAB + 1, 300, rng=rng), 4, rng=rng)
    h, dim, words = 300, 300, len(np.unique(ids[inside]))
    forward, step = _torch_classifier(model, ids, lengths, labels)
    ours = stepper(model, Adam(model.params), iter(lambda: (ids, labels), None))

    def agree() -> None:
        if training:
            mine, theirs = first_losses(ours, step)
            np.testing.assert_allclose(mine, theirs, rtol=1e-3)
        else:
            np.testing.assert_allclose(model.forward(ids), forward().detach(), rtol=1e-3, atol=1e-4)

    rows = (1 + 7 * training) * words  # read once; then its gradient, parameter and two moments moved
    return Work(
        f"{texts:,} texts, dim {dim}{'' if training else ', forward'}",
        ours if training else lambda: model.forward(ids),
        {"torch": step if training else forward},
        agree,
        operations=(6 if training else 2) * texts * (dim * h + 4 * h),
        traffic=4 * dim * rows,
    )


def first_losses(*steps: Step) -> list[list[float]]:
    """Losses of the first steps, by each side."""
    return [[step() for _ in range(CHECKED)] for step in steps]


def _torch_classifier(model: TextClassifier, ids: Any, lengths: Any, labels: Any) -> tuple[Call, Step]:
    """Forward and training step of the same classifier; padding is left out rather than looked up."""
    import torch

    def dense(name: str) -> Any:
        weight, bias = (torch.tensor(model.params[f"{name}.{key}"]) for key in ("weight", "bias"))
        layer = torch.nn.Linear(*weight.shape)
        layer.weight, layer.bias = torch.nn.Parameter(weight.T.contiguous()), torch.nn.Parameter(bias)
        return layer

    def norm(name: str) -> Any:
        return torch.nn.BatchNorm1d(len(model.params[f"{name}.gamma"]), eps=1e-3)

    table = torch.tensor(model.params["embedding.table"])
    bag = torch.nn.EmbeddingBag.from_pretrained(table, freeze=False, mode="mean", sparse=True)
    relu = torch.nn.ReLU()
    head = torch.nn.Sequential(norm("norm1"), relu, dense("dense1"), norm("norm2"), relu, dense("dense2"))
    optimizers = torch.optim.SparseAdam(bag.parameters()), torch.optim.Adam(head.parameters())
    words, target = torch.tensor(ids[ids != PADDING]).long(), torch.tensor(labels)
    offsets = torch.tensor(np.cumsum(lengths) - lengths)

    def forward() -> Any:
        return head(bag(words, offsets))

    def step() -> float:
        loss = torch.nn.functional.cross_entropy(forward(), target)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return float(loss.detach())

    return forward, step


def language_model(model: str, n_steps: int, embedding: str = "full") -> Work:
    """Step of a language model: embedding, two LSTM layers, softmax over all words, clipping, plain descent.

    `embedding`: "full", or that of a preset of the model: "sx" or "vq". torch's is the full one.
    """
    plan = replace(SIZES[model], n_steps=n_steps, keep=1.0)  # dropouts draw other numbers in torch
    text = zipf(plan.batch_size * (4 * n_steps + 1), np.random.default_rng(0))
    settings = {"kind": "full"} if embedding == "full" else presets()[f"ptb-{model}-{embedding}"]["embedding"]
    full, ours = language_stepper(plan, {"kind": "full"}, text)
    theirs = torch_language_model(plan, full, batches(text, plan.batch_size, n_steps))
    if embedding != "full":
        ours = language_stepper(plan, settings, text)[1]

    def agree() -> None:
        losses, expected = first_losses(ours, theirs)
        np.testing.assert_allclose(losses, expected, rtol=1e-4 if embedding == "full" else 0.02)

    h, tokens = plan.n_hidden, plan.batch_size * n_steps
    return Work(
        f"{model} (2 x {h}), {n_steps} steps, {embedding}",
        ours,
        {"torch, full": theirs},
        agree,
        operations=6.0 * tokens * h * (VOCAB + 8 * h * plan.n_layers),
    )


def language_stepper(
    plan: Plan, settings: dict[str, Any], text: Any, backend: str | None = None
) -> tuple[LanguageModel, Step]:
    """Language model of this package, and its training step on the next batch of a text."""
    settings = dict(settings)
    settings |= {"init": plan.init, "backend": backend}
    layer = make_embedding(settings.pop("kind"), VOCAB, plan.n_hidden, **settings)
    model = LanguageModel(layer, plan)
    stream = batches(text, plan.batch_size, plan.n_steps)
    optimizer = SGD(model.params, plan.learning_rate, backend=model.kernels)
    return model, stepper(model, optimizer, stream, plan.clip_norm)


def stepper(model: Any, optimizer: Any, stream: Iterator[Any], clip_norm: float | None = None) -> Step:
    """Training step of a model on the next batch of a stream; returns its loss."""
    history = trainer.History()

    def step() -> float:
        steps = len(history.losses) + 1
        trainer.train(model, stream, optimizer, steps=steps, clip_norm=clip_norm, history=history)
        return history.losses[-1]

    return step


def torch_language_model(
    plan: Plan, model: LanguageModel, stream: Iterator[Batch], device: str = "cpu"
) -> Step:
    """Training step of the same model in torch, from the same parameters."""
    import torch

    h, p = plan.n_hidden, {name: to_numpy(array) for name, array in model.params.items()}
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
    for module in (table, lstm, output):
        module.to(device)
    parameters = [q for m in (table, lstm, output) for q in m.parameters() if q.requires_grad]
    optimizer, state = torch.optim.SGD(parameters, lr=plan.learning_rate), None

    def step() -> float:
        nonlocal state
        batch = next(stream)
        if batch.fresh:
            state = None
        x, state = lstm(table(torch.tensor(batch.inputs, device=device).long()), state)
        state = tuple(s.detach() for s in state)
        logits, labels = (
            output(x).reshape(-1, VOCAB),
            torch.tensor(batch.targets.ravel(), device=device).long(),
        )
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / plan.batch_size
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, plan.clip_norm)
        optimizer.step()
        return float(loss.detach())

    return step
