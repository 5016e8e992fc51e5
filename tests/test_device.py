"""The whole program on arrays of a device, by a stand-in for CuPy: NumPy's numbers, bit by bit.

Where host and device mix, the stand-in raises. `waits` are what the host waited for: nothing, in a step of
training.
"""

import shutil
import sys

import numpy as np
import pytest
import stand_in_cupy
from stand_in_gpu import compiled, install, same

import baselines
from dpq_ref import SGD, Adagrad, Adam, backend, metrics, trace, trainer
from dpq_ref.layers import (
    LSTM,
    BatchNorm,
    BidirectionalLSTM,
    BlockEmbedding,
    Decoder,
    Dense,
    DPQEmbedding,
    Dropout,
    Encoder,
    FixedEmbedding,
    FullEmbedding,
    LowRankEmbedding,
    LuongAttention,
    MultiHeadAttention,
    Relu,
    SoftmaxOutput,
    softmax_cross_entropy,
)
from dpq_ref.layers.norm import LayerNorm
from dpq_ref.network import Network
from dpq_ref.optim import clip_global_norm
from dpq_ref.tasks import classify, language_model

N, DIM = 30, 12
IDS = np.random.default_rng(1).integers(0, N, (4, 7))
MASK = IDS % 5 > 0

EMBEDDINGS = {
    "full": {},
    "sx": {"method": "sx"},
    "sx-gumbel": {"method": "sx", "gumbel": True, "temperature": 0.7},
    "sx-additive": {"method": "sx", "additive": True, "shared": True},
    "sx-padding": {"method": "sx", "padding_id": 3},
    "sx-kmeans": {"method": "sx", "kmeans": True},
    "vq": {"method": "vq", "commitment_weight": 0.3},
    "vq-plain": {"method": "vq", "batch_norm": False, "shared": True},
    "vq-average": {"method": "vq", "ema_decay": 0.8, "padding_id": 3},
    "vq-restart": {"method": "vq", "restart_after": 1, "kmeans": True},
    "low-rank": {"rank": 5},
    "blocks": {},
    "fixed": {},
}
WAITING = {
    "vq-restart",
    "blocks",
}  # which codes nobody picks, and which rows are whose, the host wants to know


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    kernels = install(monkeypatch)
    stand_in_cupy.waits.clear()
    return kernels


def embedding(kind, name, n=N, dim=DIM):
    rng, options = np.random.default_rng(0), EMBEDDINGS[kind]
    if kind == "full":
        return FullEmbedding(n, dim, rng=rng, backend=name)
    if kind == "low-rank":
        return LowRankEmbedding.random(n, dim, rank=5, rng=rng, backend=name)
    if kind == "blocks":
        few = n // 3
        blocks = [
            LowRankEmbedding.random(n - few, dim, rank=2, rng=rng, backend=name),
            FullEmbedding(few, dim, rng=rng, backend=name),
        ]
        return BlockEmbedding((rng.permutation(n) < few).astype(int), blocks)
    if kind == "fixed":
        return FixedEmbedding(FullEmbedding(n, dim, rng=rng).export(), backend=name)
    return DPQEmbedding(n, dim, n_groups=3, n_codes=4, rng=rng, backend=name, **options)


def on_both(run):
    """What a function of the name of a back end leaves, on the device and on the host."""
    device, cpu = run("cupy"), run("numpy")
    same(device, cpu)
    return device


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_embedding_layers(kind, masked):
    def run(name):
        layer, left = embedding(kind, name), []
        asarray, rng = layer.kernels.xp.asarray, np.random.default_rng(2)
        optimizer = Adam(layer.params, 0.1, backend=name)
        stand_in_cupy.waits.clear()
        for _ in range(3):
            output = layer.forward(IDS, mask=MASK if masked else None)
            layer.backward(asarray(rng.standard_normal(output.shape)))
            optimizer.step(layer.grads)
            left.append([output, dict(layer.grads), getattr(layer, "codebook_loss", 0.0)])
        if name == "cupy" and kind not in WAITING:
            assert stand_in_cupy.waits == []
        left += [layer.params, getattr(layer, "buffers", {}), layer.forward(IDS, train=False)]
        table = layer.export()
        same(layer.forward(np.arange(N), train=False), table.reconstruct())
        return [left, table.arrays()]

    on_both(run)


LAYERS = {
    "dense": lambda rng, name: Dense(DIM, 5, rng=rng),
    "relu": lambda rng, name: Relu(),
    "dropout": lambda rng, name: Dropout(0.5, rng=rng),
    "batch-norm": lambda rng, name: BatchNorm(DIM, backend=name),
    "rectified-norm": lambda rng, name: BatchNorm(DIM, rectified=True, backend=name),
    "layer-norm": lambda rng, name: LayerNorm(DIM),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_of_a_network(kind):
    def run(name):
        layer = LAYERS[kind](np.random.default_rng(0), name)
        network, asarray = Network({"layer": layer}), backend.get(name).xp.asarray
        network.move(name)
        x, g = (np.random.default_rng(i).standard_normal((6, DIM)).astype(np.float32) for i in (1, 2))
        left = []
        for _ in range(2):
            output = layer.forward(asarray(x))
            left += [output, layer.backward(asarray(g[:, : output.shape[1]])), dict(layer.grads)]
        assert stand_in_cupy.waits == []
        return [left, layer.forward(asarray(x), False), network.buffers]

    on_both(run)


@pytest.mark.parametrize("both_ways", [False, True])
def test_recurrent_layers(both_ways):
    def run(name):
        layer = (BidirectionalLSTM if both_ways else LSTM)(3, 5, rng=0, backend=name)
        asarray, rng = backend.get(name).xp.asarray, np.random.default_rng(1)
        x = asarray(rng.standard_normal((4, 6, 3)).astype(np.float32))
        left = []
        for lengths in (None, np.array([6, 0, 3, 1])):
            output = layer.forward(x, lengths=lengths)
            g = asarray(rng.standard_normal(output.shape).astype(np.float32))
            left += [output, layer.backward(g), dict(layer.grads)]
        assert stand_in_cupy.waits == []
        return [left, layer.states if both_ways else [layer.state, layer.d_state]]

    on_both(run)


def test_attention_and_transformer():
    def run(name):
        asarray, rng = backend.get(name).xp.asarray, np.random.default_rng(1)

        def real(*shape):
            return asarray(rng.standard_normal(shape).astype(np.float32))

        lengths, left = np.array([5, 0, 3]), []
        for tanh in (False, True):
            luong = LuongAttention(4, 8, tanh=tanh, rng=np.random.default_rng(0))
            Network({"luong": luong}).move(name)
            luong.set_memory(real(3, 5, 8), lengths)
            left += [luong.forward(real(3, 1, 4)) for _ in range(2)]
            left += [luong.backward(real(3, 1, 4)) for _ in range(2)]
            left += [luong.backward_memory(), dict(luong.grads)]
        heads = MultiHeadAttention(8, 2, rng=np.random.default_rng(0))
        Network({"heads": heads}).move(name)
        x = real(3, 5, 8)
        left += [heads.forward(x, x, lengths, causal=True), heads.backward(real(3, 5, 8)), dict(heads.grads)]
        encoder, decoder = (make(2, 8, 2, 16, keep=0.5) for make in (Encoder, Decoder))
        for part in (encoder, decoder):
            part.move(name)
        memory = encoder.forward(x, lengths)
        left += [decoder.forward(real(3, 4, 8), memory, lengths), *decoder.backward(real(3, 4, 8))]
        left += [encoder.backward(memory), encoder.grads, decoder.grads]
        assert stand_in_cupy.waits == []
        state = decoder.start(memory, lengths).select(np.array([2, 0]))
        for _ in range(2):
            output, state = decoder.forward_step(real(2, 1, 8), state)
            left.append(output)
        return left

    on_both(run)


def test_losses():
    def run(name):
        kernels, rng = backend.get(name), np.random.default_rng(0)
        layer = SoftmaxOutput(N, DIM, smoothing=0.1, backend=name)
        x = kernels.xp.asarray(rng.standard_normal((9, DIM)).astype(np.float32))
        labels = rng.integers(0, N, 9)
        left = [*layer.loss(x, labels, np.ones(9)), layer.grads, layer.losses(x, labels)]
        left += softmax_cross_entropy(layer.logits(x), labels)
        assert stand_in_cupy.waits == []
        return left

    on_both(run)
    with pytest.raises(IndexError, match="labels must lie in"):
        softmax_cross_entropy(stand_in_cupy.zeros((1, 3)), np.array([3]))


@pytest.mark.parametrize("make", [SGD, Adagrad, Adam])
def test_optimizers_and_clipping(make):
    def run(name):
        layer = embedding("full", name)
        output = Dense(DIM, 3, rng=np.random.default_rng(0))
        network = Network({"embedding": layer, "output": output})
        network.move(name)
        optimizer = make(network.params, 0.1, backend=name)
        for limit in (0.01, 1e9, np.inf):
            x = layer.forward(IDS[0])
            layer.backward(output.backward(output.forward(x)))
            norm = clip_global_norm(network.grads, limit, backend=name)
            optimizer.step(network.grads)
        if name == "cupy":
            assert stand_in_cupy.waits == []
        return [network.params, optimizer.state, norm]

    on_both(run)


# --- Tasks --------------------------------------------------------------------------------------------------

TEXT = np.random.default_rng(3).integers(0, N, 200)
PLAN = language_model.Plan(n_hidden=DIM, keep=0.8, batch_size=4, n_steps=5, epochs=1)


def steps_of(model, stream, optimizer, steps, **options):
    """Train; on the device nothing may be waited for in a step."""
    found = []

    def after(step):
        if step < steps:  # the last step looks at all losses
            found.append(list(stand_in_cupy.waits))
        stand_in_cupy.waits.clear()

    stand_in_cupy.waits.clear()
    history = trainer.train(model, stream, optimizer, steps=steps, on_step=after, **options)
    assert not any(found), found
    return [history.losses, model.params, model.buffers, optimizer.state]


@pytest.mark.parametrize("kind", ["full", "sx", "vq", "sx-gumbel", "vq-average", "low-rank"])
@pytest.mark.parametrize("table", [None, "same", "tied"])
def test_language_model(kind, table):
    def run(name):
        layer = embedding(kind, name)
        other = {None: None, "same": embedding(kind, name), "tied": layer}[table]
        model = language_model.LanguageModel(layer, PLAN, table=other, rng=1)
        optimizer = SGD(model.params, 1.0, backend=name)
        stream = language_model.batches(TEXT, PLAN.batch_size, PLAN.n_steps)
        left = steps_of(model, stream, optimizer, 12, clip_norm=0.5, schedule=lambda step: 1 / step)
        vectors = layer.export().reconstruct()
        return [*left, model.perplexity(TEXT), model.losses(TEXT, batch_size=3, vectors=vectors)]

    on_both(run)


@pytest.mark.parametrize("kind", ["full", "sx-padding", "vq", "low-rank", "vq-average"])
def test_classifier(kind):
    def run(name):
        model = classify.TextClassifier(embedding(kind, name), 3, hidden=6, rng=1)
        rng = np.random.default_rng(4)
        stream = iter(lambda: (rng.integers(0, N, (8, 5)), rng.integers(0, 3, 8)), None)
        return [
            *steps_of(model, stream, Adam(model.params, 0.01, backend=name), 5),
            model.forward(IDS, False),
        ]

    on_both(run)


def test_what_is_not_finite_is_seen_at_the_next_look(monkeypatch):
    monkeypatch.setattr(trainer, "LOOK", 4)
    model = classify.TextClassifier(embedding("full", "cupy"), 3, hidden=6)
    batch = IDS, np.array([0, 1, 2, 0])

    def stream():
        yield batch
        model.params["dense1.weight"][0, 0] = np.nan
        while True:
            yield batch

    seen = []
    with pytest.raises(FloatingPointError, match="step 2: the loss is nan"):
        trainer.train(model, stream(), SGD(model.params, 0.1, backend="cupy"), steps=9, on_step=seen.append)
    assert seen == [1, 2, 3]


# --- Artefacts, metrics and baselines -----------------------------------------------------------------------

TABLE = np.random.default_rng(5).standard_normal((60, DIM)).astype(np.float32)
WEIGHTS = np.random.default_rng(6).random(60)
METHODS = {
    "product": {"n_groups": 3, "n_codes": 4, "backend": True},
    "product-ragged": {"n_groups": 5, "n_codes": 4, "backend": True},
    "optimized-product": {"n_groups": 3, "n_codes": 4, "max_iter": 2, "backend": True},
    "residual": {"n_groups": 3, "n_codes": 4, "backend": True},
    "additive": {"n_groups": 3, "n_codes": 4, "max_iter": 2, "backend": True},
    "compositional": {"n_groups": 3, "n_codes": 4, "steps": 20, "refit": True, "backend": True},
    "kd-codes": {"n_groups": 3, "n_codes": 4, "code_width": 5, "steps": 20, "refit": True, "backend": True},
    "dpq": {"n_groups": 3, "n_codes": 4, "steps": 20, "backend": True},
    "low-rank": {"rank": 4},
    "group-reduce": {"ratio": 2},
    "uniform": {"n_bits": 3, "scale": "row"},
    "kmeans-scalar": {"n_bits": 2},
    "half": {"format": "bfloat16"},
    "pruning": {"density": 0.3, "n_codes": 4, "huffman": True},
    "sign": {"scale": "column"},
    "hyperplanes": {"n_bits": 16},
    "itq": {"n_bits": 8},
    "iiq": {"n_bits": 8},
    "near-lossless": {"n_bits": 8, "epochs": 2},
}


def fitted(name, method):
    parameters = dict(METHODS[method])
    if parameters.pop("backend", False):
        parameters["backend"] = name
    estimator = baselines.REGISTRY[method.removesuffix("-ragged")](**parameters)
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=0)
    asarray = backend.get(name).xp.asarray
    return estimator.fit(asarray(TABLE), sample_weight=asarray(WEIGHTS)), asarray


@pytest.mark.parametrize("method", METHODS)
def test_baselines(method):
    """Tables of a device in, arrays of the host out, whatever the kernels run on."""

    def run(name):
        estimator, asarray = fitted(name, method)
        learned = {k: v for k, v in vars(estimator).items() if k.endswith("_")}
        codes = estimator.transform(asarray(TABLE[:7]))
        rows = estimator.inverse_transform(asarray(codes) if method != "half" else codes)
        assert not any(isinstance(x, stand_in_cupy.ndarray) for x in (*learned.values(), codes, rows))
        learned = {k: v for k, v in learned.items() if isinstance(v, (np.ndarray, float, dict, list))}
        return [learned, codes, rows, estimator.compress().arrays()]

    on_both(run)


def test_every_baseline_is_tried():
    assert {method.removesuffix("-ragged") for method in METHODS} == baselines.METHODS.keys()


@pytest.mark.parametrize("method", METHODS)
def test_compressed_tables_on_the_device(method, tmp_path):
    table = fitted("numpy", method)[0].compress().on("numpy")
    there = table.on("cupy")
    ids = np.array([[3, 0, 59], [3, 3, 7]])
    stand_in_cupy.waits.clear()
    for given in (ids, stand_in_cupy.asarray(ids)):
        rows = there.lookup(given)
        assert isinstance(rows, stand_in_cupy.ndarray)
        same(rows, table.lookup(ids))
    queries = TABLE[:2].astype(table.dtype)
    same([there.reconstruct(), there.scores(queries)], [table.reconstruct(), table.scores(queries)])
    same(there.lookup(np.zeros(0, int)), table.lookup(np.zeros(0, int)))
    assert there.most_similar(queries[0], 3) == table.most_similar(queries[0], 3)
    assert there.bits() == table.bits()
    out = stand_in_cupy.empty((2, 3, DIM), table.dtype)
    assert there.lookup(ids, out=out) is out
    same(out, rows)
    there.save(tmp_path / "there")
    table.save(tmp_path / "here")
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    same(there.on("numpy").lookup(ids), rows)
    for wrong in (ids + 60, stand_in_cupy.asarray(-ids)):
        with pytest.raises(IndexError, match="ids must lie in"):
            there.lookup(wrong)
    with pytest.raises(TypeError, match="table.on"):
        table.lookup(stand_in_cupy.asarray(ids))


def test_metrics_take_arrays_of_the_device():
    def run(name):
        asarray = backend.get(name).xp.asarray
        codes = (np.abs(TABLE) * 2).astype(int) % 4
        return [
            metrics.judge(asarray(TABLE), asarray(TABLE + 0.1), asarray(WEIGHTS)),
            metrics.accuracy(asarray(codes[0]), asarray(codes[1])),
            metrics.code_changes(asarray(codes), asarray(codes[::-1]), 4),
        ]

    on_both(run)


# --- The kernels for a GPU themselves -----------------------------------------------------------------------

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@needs_compiler
@pytest.mark.parametrize("kind", ["full", "sx-padding", "vq", "vq-average"])
@pytest.mark.parametrize("task", ["language model", "classifier"])
def test_training_on_the_kernels_of_a_gpu(task, kind, monkeypatch):
    """Their CUDA compiled by g++: the losses of the host but for rounding, and no step waits for anything."""
    monkeypatch.setitem(sys.modules, "dpq_ref.kernels.gpu", compiled())

    def run(name):
        layer, rng = embedding(kind, name), np.random.default_rng(4)
        if task == "classifier":
            model = classify.TextClassifier(layer, 3, hidden=6, rng=1)
            stream = iter(lambda: (rng.integers(0, N, (8, 5)), rng.integers(0, 3, 8)), None)
            return steps_of(model, stream, Adam(model.params, 0.01, backend=name), 4)[0]
        model = language_model.LanguageModel(layer, PLAN, rng=1)
        stream = language_model.batches(TEXT, PLAN.batch_size, PLAN.n_steps)
        return steps_of(model, stream, SGD(model.params, 1.0, backend=name), 6, clip_norm=0.5)[0]

    np.testing.assert_allclose(run("cupy"), run("numpy"), rtol=2e-5)


def test_a_trace_wants_a_layer_of_the_host():
    layer = DPQEmbedding(N, DIM, n_groups=3, n_codes=4, dtype=np.float64, backend="cupy")
    with pytest.raises(TypeError, match="a trace takes one of the host"):
        list(trace.sx(layer, IDS[0], np.ones((7, DIM))))
