# %% [markdown]
# # Differentiable product quantization, by hand
#
# An embedding table is often most of a model. **DPQ** learns to replace each of its rows by a few small
# integers while the task trains. Here it is built from nothing, in NumPy, and every gradient is checked on
# the spot; then it meets the classical methods, at equal bits.
#
# Each part ends with an exercise: change a line, run the cells below it, and see. No result in the text was
# typed: what is claimed is computed, and asserted.
#
# The method is that of T. Chen, L. Li, Y. Sun, *Differentiable Product Quantization for End-to-End
# Embedding Compression*, ICML 2020. Names are those of the code: `dpq_ref/quantize.py` is the next thing to
# read.

# %%
# %config InlineBackend.figure_formats = ["retina"]
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt

import baselines
import dpq_ref
from figures.style import RC, STYLES

notebook = "inline" in matplotlib.get_backend()
matplotlib.use(matplotlib.get_backend() if notebook else "agg")
plt.rcParams.update(RC | {"figure.dpi": 100, "figure.constrained_layout.use": True, "savefig.bbox": None})

# %% [markdown]
# Two helpers for pictures, and then to work.


# %%
def show(name):
    """Show the picture in a notebook; as a script, write it to results/study."""
    if notebook:
        plt.show()
    else:
        Path("results/study").mkdir(parents=True, exist_ok=True)
        plt.savefig(f"results/study/{name}.png", dpi=150)
        plt.close()


def tiles(axes, array, title, marked=None, **labels):
    """Draw a matrix as tiles with its numbers, the entry marked[row] of each row framed."""
    axes.imshow(array, cmap="Blues", vmin=array.min(), vmax=array.min() + 1.6 * np.ptp(array), aspect="auto")
    for (row, column), number in np.ndenumerate(array):
        text = f"{number}" if array.dtype.kind == "i" else f"{round(number, 1) + 0:.1f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8)
    for row, column in enumerate([] if marked is None else marked):
        axes.add_patch(plt.Rectangle((column - 0.45, row - 0.45), 0.9, 0.9, fill=False, lw=1.8))
    axes.set(xticks=range(array.shape[1]), yticks=range(len(array)), title=title, **labels)
    axes.grid(False)


# %% [markdown]
# ## 1. What is a code?
#
# Cut each row of a table into $D$ **groups** of width $s$. For each group keep $K$ short vectors, its
# **values**; all of them together are the **codebook**. A word is then $D$ small integers, its **code**:
# which value stands in which group. Values side by side make the row again:
#
# $$\mathrm{output}_i = \big[\,\mathrm{values}_{1,c_{i1}},\ \ldots,\ \mathrm{values}_{D,c_{iD}}\,\big]$$

# %%
rng = np.random.default_rng(0)
n, D, K, s = 8, 3, 4, 2
codes = rng.integers(0, K, (n, D))
values = rng.standard_normal((D, K, s))
picked = values[np.arange(D), codes]  # (n, D, s): for each word and group, one value
table = picked.reshape(n, D * s)

print(f"word 0 has the code {codes[0]}; its row is {table[0].round(1)}")
print(f"stored: {codes.size} codes and {D * K} values; with them {K**D} different rows could be written")

# %%
figure, axes = plt.subplots(1, 3, figsize=(8, 3.2), width_ratios=[1, 2, 2])
tiles(axes[0], codes, "codes", xlabel="group", ylabel="word")
tiles(axes[1], values.transpose(1, 0, 2).reshape(K, D * s), "values", xlabel="column", ylabel="k")
tiles(axes[2], table, "table that they make", xlabel="column", ylabel="word")
for axis in axes[1:]:
    for j in range(1, D):
        axis.axvline(j * s - 0.5, color="black")
show("1-code")

# %% [markdown]
# What does it cost? A code takes $\lceil\log_2 K\rceil$ bits a group, a number of the codebook 32:
#
# $$\mathrm{bits} = n\,D\,\lceil\log_2 K\rceil + 32\,K\,s\,D \quad\text{in place of}\quad 32\,n\,s\,D$$


# %%
def bits(n, dim, D, K):
    """Bits of the codes and of the codebook."""
    return n * D * int(np.ceil(np.log2(K))), 32 * K * dim


def ratio(n, dim, D, K):
    """How many times smaller than the full table."""
    return 32 * n * dim / sum(bits(n, dim, D, K))


stored = dpq_ref.ProductTable.from_codes(codes, values.astype(np.float32))
assert tuple(stored.bits().values()) == bits(n, D * s, D, K)
print(f"{n} words: codes and codebook have {bits(n, D * s, D, K)} bits, ratio {ratio(n, D * s, D, K):.1f}")
print(f"{10**5:,} words of width 300 in 50 groups of 32 codes: ratio {ratio(10**5, 300, 50, 32):.1f}")

# %% [markdown]
# All words share the codebook. So it weighs on a small table, and on a large one nearly nothing: there the
# codes alone count (dashed).

# %%
sizes = np.logspace(1, 6, 100)
figure, axes = plt.subplots(figsize=(5.5, 3))
for (D, K), line in zip([(25, 8), (50, 32), (100, 256)], ["-", "--", ":"], strict=True):
    (curve,) = axes.plot(sizes, [ratio(n, 300, D, K) for n in sizes], line, label=f"D = {D}, K = {K}")
    axes.axhline(32 * 300 / (D * np.log2(K)), color=curve.get_color(), lw=0.7, dashes=(8, 4))
axes.set(xscale="log", yscale="log", xlabel="words n (width 300)", ylabel="compression ratio")
axes.yaxis.set_major_formatter("{x:g}")
axes.legend()
show("1-ratio")

# %% [markdown]
# **Exercises.** Take $K = 5$: how many bits does a code have now, and how many of them are wasted? For how
# many words is the codebook of $D = 50$, $K = 32$ just as large as the codes?

# %% [markdown]
# ## 2. DPQ-SX in ten lines
#
# Where do codes come from? DPQ lets the task find them. Each word has a trained row as always, only now it
# is cut into **queries**. In each group a query meets $K$ **keys**, and the key that answers best, by dot
# product, gives the code:
#
# $$\mathrm{responses}_{ijk} = \langle \mathrm{query}_{ij}, \mathrm{keys}_{jk}\rangle, \qquad
# c_{ij} = \mathrm{argmax}_k\ \mathrm{responses}_{ijk}, \qquad
# \mathrm{output}_{ij} = \mathrm{values}_{j,c_{ij}}$$
#
# Here $i$ is a word of the batch, $j$ a group, $k$ a code. After training, codes and values stay; queries
# and keys go. The softmax of the responses is not needed for the output. The backward pass will want it.

# %%
rng = np.random.default_rng(5)
b, D, K, s = 4, 2, 3, 2
query = rng.standard_normal((b, D, s))
keys = rng.standard_normal((D, K, s))
values = rng.standard_normal((D, K, s))

responses = np.einsum("ijc,jkc->ijk", query, keys)
codes = responses.argmax(axis=2)
picked = values[np.arange(D), codes]
output = picked.reshape(b, D * s)
softmax = np.exp(responses) / np.exp(responses).sum(axis=2, keepdims=True)
print("codes of the four words:", codes.tolist())

# %%
figure, axes = plt.subplots(D, 4, figsize=(8, 4), width_ratios=[2, 3, 3, 2])
for j in range(D):
    of = f", group {j}"
    tiles(axes[j, 0], query[:, j], "query" + of, ylabel="word")
    tiles(axes[j, 1], responses[:, j], "responses", codes[:, j])
    tiles(axes[j, 2], softmax[:, j], "softmax", codes[:, j])
    tiles(axes[j, 3], picked[:, j], "output" + of)
for axis, name in zip(axes[-1], ["c", "k", "k", "c"], strict=True):
    axis.set_xlabel(name)
show("2-batch")

# %% [markdown]
# From here on the layer of the package can stand in for these lines: with the same numbers in it, it gives
# the same output, to the last bit.


# %%
def layer_with(method="sx", **options):
    """Layer of the package that holds our query, keys and values."""
    layer = dpq_ref.DPQEmbedding(
        b, D * s, n_groups=D, n_codes=K, method=method, dtype=np.float64, backend="numpy", **options
    )
    ours = {"query": query.reshape(b, D * s), "keys": keys, "values": values}
    for name, array in layer.params.items():
        array[:] = ours[name]
    return layer


layer = layer_with(batch_norm=False)
theirs = layer.forward(np.arange(b))
assert np.array_equal(theirs, output)
print("the layer of the package gives the same output")

# %% [markdown]
# **Exercises.** Multiply all keys of one group by ten: which of the pictures change, and which do not? Make
# one key alone ten times as long: what happens to the codes? (Part 5 has a cure.)

# %% [markdown]
# ## 3. Why the gradient is what it is
#
# Training needs $\partial L/\partial\,\mathrm{query}$. Say the loss is $L = \sum g\cdot\mathrm{output}$,
# where $g$ comes from the layers above. Move one number of a key, and look at $L$: a **staircase**. On a
# step nothing changes; at its edge another value is picked. The derivative is 0 wherever it exists, and no
# use to anyone.
#
# The cure is to look at a smooth neighbour, the **surrogate**: the mean of *all* values, weighted by the
# softmax at a temperature $\tau$:
#
# $$\mathrm{soft}_{ij} = \sum_k \mathrm{softmax}_{ijk}\,\mathrm{values}_{jk}, \qquad
# \mathrm{softmax}_{ijk} = \frac{e^{\mathrm{responses}_{ijk}/\tau}}
# {\sum_l e^{\mathrm{responses}_{ijl}/\tau}}$$


# %%
def soften(responses, tau=1.0):
    """Softmax over the codes."""
    e = np.exp((responses - responses.max(axis=2, keepdims=True)) / tau)
    return e / e.sum(axis=2, keepdims=True)


def soft_loss(query, keys, tau=1.0):
    """Surrogate: the loss if the output were the mean of all values."""
    p = soften(np.einsum("ijc,jkc->ijk", query, keys), tau)
    return (g * np.einsum("ijk,jkc->ijc", p, values)).sum()


def hard_loss(query, keys, values):
    """Loss of the forward pass."""
    codes = np.einsum("ijc,jkc->ijk", query, keys).argmax(axis=2)
    return (g * values[np.arange(D), codes]).sum()


g = rng.standard_normal((b, D, s))  # the gradient from above, cut into groups like the output

# %%
moves = np.linspace(-6, 6, 400)
figure, axes = plt.subplots(figsize=(6.5, 3))
direction = np.zeros_like(keys)
direction[0, 0, 0] = 1
axes.plot(moves, [hard_loss(query, keys + t * direction, values) for t in moves], "black", label="hard")
for tau, line in zip([0.1, 0.5, 1.0], [":", "--", "-"], strict=True):
    losses = [soft_loss(query, keys + t * direction, tau) for t in moves]
    axes.plot(moves, losses, line, color=STYLES["dpq-sx"][1], label=f"soft, τ = {tau}")
axes.set(xlabel="added to one number of a key", ylabel="loss")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show("3-staircase")

# %% [markdown]
# **Straight through** means: forward takes the hard output, backward the derivative of the surrogate. It is
# not the gradient of what was computed, but it is the exact gradient of *something*, so it can be checked.
# We need one tool, the slope of a function entry by entry.


# %%
def slope(f, x, h=1e-5):
    """Gradient of f at x by central differences."""
    gradient = np.empty_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        gradient[i] = (f(x + step) - f(x - step)) / (2 * h)
    return gradient


def check(name, gradient, f, x):
    """Hold a gradient against the slope of what it is the gradient of."""
    error = np.abs(gradient - slope(f, x)).max()
    assert error < 1e-8, name
    print(f"{name:<12} shape {gradient.shape!s:<10} agrees with the slope to {error:.0e}")


# %% [markdown]
# **Nothing passes the codes.** First the evidence: the slope of the hard loss along queries and keys.

# %%
for name, f, x in [
    ("query", lambda x: hard_loss(x, keys, values), query),
    ("keys", lambda x: hard_loss(query, x, values), keys),
]:
    assert not slope(f, x).any()
    print(f"largest slope of the hard loss along {name}: {np.abs(slope(f, x)).max()}")

# %% [markdown]
# **Values** need no trick. With the codes held, the output is a plain look-up, and the gradient of a
# look-up adds up where it was read. A value that nobody picked gets 0:
#
# $$\mathrm{d\_values}_{jk} = \sum_{i:\ c_{ij}=k} g_{ij}$$

# %%
d_values = np.zeros_like(values)
np.add.at(d_values, (np.arange(D), codes), g)
check("d_values", d_values, lambda v: hard_loss(query, keys, v), values)

# %% [markdown]
# **Down the surrogate, one step at a time.** The loss is linear in the softmax. So its gradient says how
# much each value would change the loss, if it were picked:
#
# $$\mathrm{d\_softmax}_{ijk} = \langle g_{ij}, \mathrm{values}_{jk}\rangle$$

# %%
d_softmax = np.einsum("ijc,jkc->ijk", g, values)
check("d_softmax", d_softmax, lambda p: (g * np.einsum("ijk,jkc->ijc", p, values)).sum(), softmax)

# %% [markdown]
# The softmax has the derivative $\partial p_k/\partial r_l = p_k(\delta_{kl} - p_l)/\tau$. Summed over its
# outputs: each value is compared with the mean of all. What is worse than the mean gets a positive
# gradient, so descent lowers its response:
#
# $$\mathrm{d\_responses}_{ijk} = \tfrac{1}{\tau}\,\mathrm{softmax}_{ijk}\Big(\mathrm{d\_softmax}_{ijk} -
# \sum_l \mathrm{softmax}_{ijl}\,\mathrm{d\_softmax}_{ijl}\Big)$$

# %%
mean = (softmax * d_softmax).sum(axis=2, keepdims=True)
d_responses = softmax * (d_softmax - mean)  # τ = 1
check("d_responses", d_responses, lambda r: (soften(r) * d_softmax).sum(), responses)
print(f"they sum to 0 over k, up to {np.abs(d_responses.sum(axis=2)).max():.0e}")

# %% [markdown]
# A dot product hands each side the other one:
#
# $$\mathrm{d\_keys}_{jk} = \sum_i \mathrm{d\_responses}_{ijk}\,\mathrm{query}_{ij}, \qquad
# \mathrm{d\_query}_{ij} = \sum_k \mathrm{d\_responses}_{ijk}\,\mathrm{keys}_{jk}$$

# %%
d_keys = np.einsum("ijk,ijc->jkc", d_responses, query)
d_query = np.einsum("ijk,jkc->ijc", d_responses, keys)
check("d_keys", d_keys, lambda k: soft_loss(query, k), keys)
check("d_query", d_query, lambda q: soft_loss(q, keys), query)

# %% [markdown]
# That is the whole backward pass. The layer of the package has the same gradients:

# %%
layer = layer_with(batch_norm=False)
layer.forward(np.arange(b))
layer.backward(g.reshape(b, D * s))
theirs = {**layer.grads, "query": layer.grads["query"].to_dense().reshape(b, D, s)}
for name, ours in {"query": d_query, "keys": d_keys, "values": d_values}.items():
    assert np.allclose(theirs[name], ours, rtol=1e-12, atol=1e-14)
    print(f"d_{name}: the layer agrees to {np.abs(theirs[name] - ours).max():.0e}")

# %% [markdown]
# **What is connected, and what is cut.** The hard path gives the output, and its gradient stops at the
# codes. The soft path gives the gradient of queries and keys, and is never seen in the output. One more cut
# is easy to miss: values do *not* learn through the soft path, though they are in it.

# %%
figure, axes = plt.subplots(figsize=(8, 2.7))
spots = {"query": (0, 1), "keys": (0, 0), "responses": (1.1, 0.5), "codes": (2.2, 1), "softmax": (2.2, 0)}
spots |= {"values": (3.3, 0.5), "output": (4.4, 1), "soft": (4.4, 0), "loss, g": (5.4, 0.5)}
backward = ["loss, g>soft", "soft>softmax", "softmax>responses", "responses>query", "responses>keys"]
cut = ["output>codes", "codes>responses", "soft>values"]
for edge in [*backward, "loss, g>output", "output>values", *cut]:
    start, end = (spots[name] for name in edge.split(">"))
    look = {"linestyle": ":", "color": "gray"} if edge in cut else {"color": STYLES["dpq-sx"][1], "lw": 1.6}
    arrow = {"arrowstyle": "-|>", "shrinkA": 27, "shrinkB": 27, **look}
    axes.annotate("", end, start, arrowprops=arrow)
    if edge in cut:
        axes.text(*np.mean([start, end], axis=0), "cut", ha="center", va="center", backgroundcolor="white")
for name, spot in spots.items():
    axes.text(*spot, name, ha="center", va="center", bbox={"boxstyle": "round", "fc": "white"})
axes.set(xlim=(-0.5, 5.9), ylim=(-0.35, 1.35), title="where gradients flow, from the loss on the right")
axes.axis("off")
show("3-graph")

# %% [markdown]
# **Temperature** is a trade. A cold softmax is close to the hard choice, so the surrogate is honest; but it
# is flat, and the gradient dies. A hot one is flat in another way: all values weigh the same, whatever the
# query.

# %%
temperatures = np.logspace(-2.5, 2.5, 80)
gaps, sizes = [], []
for tau in temperatures:
    p = soften(responses, tau)
    d = p * (d_softmax - (p * d_softmax).sum(axis=2, keepdims=True)) / tau
    gaps.append(np.linalg.norm(np.einsum("ijk,jkc->ijc", p, values) - picked))
    sizes.append(np.linalg.norm(np.einsum("ijk,jkc->ijc", d, keys)))
assert np.all(np.diff(gaps) > -1e-9)
assert sizes[0] < 0.1 * max(sizes) > sizes[-1]
figure, axes = plt.subplots(figsize=(5.5, 3))
axes.plot(temperatures, gaps / max(gaps), "--", color="black", label="distance of soft and hard output")
axes.plot(temperatures, sizes / max(sizes), color=STYLES["dpq-sx"][1], label="size of d_query")
axes.set(xscale="log", xlabel="temperature τ", ylabel="share of its largest", ylim=(0, 1.35))
axes.legend(loc="upper left", ncols=2)
show("3-temperature")

# %% [markdown]
# **Exercises.** Let values learn through the soft path, too: what is their gradient then, and what is it
# the slope of? Leave out the mean in `d_responses`: which check fails first?

# %% [markdown]
# ## 4. DPQ-VQ: the nearest key
#
# The other form has one codebook for both: the picked *key* is the output, so `values` is `keys`, and the
# code is that of the nearest:
#
# $$\mathrm{responses}_{ijk} = -\,|\mathrm{query}_{ij} - \mathrm{keys}_{jk}|^2$$
#
# Query and output now live in the same space, and are close. So backward simply pretends that the query was
# the output: the gradient goes **straight through**, as it is. Keys get nothing from the task. They have a
# loss of their own, over all $M = b\,D\,s$ numbers of the batch; $\mathrm{sg}$ holds its argument still:
#
# $$\mathrm{codebook\_loss} =
# \frac{\alpha}{M}\sum_{ij}\big|\mathrm{keys}_{j,c_{ij}} - \mathrm{sg}(\mathrm{query}_{ij})
# \big|^2 + \frac{\beta}{M}\sum_{ij}\big|\mathrm{sg}(\mathrm{keys}_{j,c_{ij}}) - \mathrm{query}_{ij}\big|^2$$
#
# The first part moves keys to their queries; the second, **commitment**, queries to their keys.

# %%
alpha, beta, M = 1.0, 0.25, b * D * s
distances = ((query[:, :, None] - keys) ** 2).sum(axis=3)
codes = distances.argmin(axis=2)
residual = keys[np.arange(D), codes] - query

d_query = g - beta * 2 / M * residual
d_keys = np.zeros_like(keys)
np.add.at(d_keys, (np.arange(D), codes), alpha * 2 / M * residual)

picked_by = (np.arange(D), codes)  # held, as sg says
check("d_keys", d_keys, lambda k: alpha * np.mean((k[picked_by] - query) ** 2), keys)
check("d_query", d_query, lambda q: (g * q).sum() + beta * np.mean((keys[picked_by] - q) ** 2), query)

# %%
layer = layer_with("vq", batch_norm=False, commitment_weight=beta)
theirs = layer.forward(np.arange(b))
assert np.array_equal(theirs, keys[picked_by].reshape(b, D * s))
layer.backward(g.reshape(b, D * s))
assert np.allclose(layer.grads["keys"], d_keys)
assert np.allclose(layer.grads["query"].to_dense().reshape(b, D, s), d_query)
print("the layer agrees: output, d_query, d_keys")

# %% [markdown]
# What does the codebook loss do to keys? Hold some queries of one group still, and let only the keys move.
# Each goes to the mean of the queries that picked it: **k-means**, by gradient, and where it ends depends
# on where it starts.

# %%
rng = np.random.default_rng(3)
centres = np.array([[-2, -1], [0, 2], [2, -1], [2, 2]])
points = centres[rng.integers(0, 4, 120)] + 0.5 * rng.standard_normal((120, 2))
books = [rng.standard_normal((4, 2))]
for _ in range(600):
    nearest = ((points[:, None] - books[-1]) ** 2).sum(axis=2).argmin(axis=1)
    gradient = np.zeros((4, 2))
    np.add.at(gradient, nearest, 2 / points.size * (books[-1][nearest] - points))
    books.append(books[-1] - gradient)
means = np.array([points[nearest == k].mean(axis=0) for k in range(4)])
assert np.allclose(books[-1], means, atol=1e-3)
print(f"keys are the means of their queries, up to {np.abs(books[-1] - means).max():.0e}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharex=True, sharey=True)
for axis, book, title in zip(axes, [books[0], books[-1]], ["before", "after"], strict=True):
    nearest = ((points[:, None] - book) ** 2).sum(axis=2).argmin(axis=1)
    for k, marker in enumerate("ovsD"):
        axis.plot(*points[nearest == k].T, marker, ms=3.5, alpha=0.6)
    axis.plot(*book.T, "*", color="black", ms=12, mec="white", mew=0.6, label="keys")
    axis.set(title=f"{title} training of the keys", xlabel="query, c = 0")
axes[1].plot(*np.array(books).transpose(2, 0, 1), color="black", lw=0.9)
axes[0].set_ylabel("query, c = 1")
axes[0].legend(loc="upper left")
show("4-keys")

# %% [markdown]
# **Exercises.** Start three of the four keys far away, near (9, 9): what becomes of those that nobody
# picks? Set $\beta$ to 10 in the checks above: do they still hold?

# %% [markdown]
# ## 5. Batch norm keeps the load even
#
# A code that is never picked is paid for and not used. How many are in use is told by the **perplexity** of
# the codes, the exponential of their entropy: 1 if all words have the same, $K$ if all codes are equally
# frequent.
#
# Queries whose mean is not 0 like some keys, whoever asks. Batch norm takes that away: for each code $k$ it
# subtracts the mean of its responses over the batch, and divides by their spread. One mean and one variance
# a code, over words and groups, no learned scale:
#
# $$\mathrm{normalised}_{ijk} = \frac{\mathrm{responses}_{ijk} - \mathrm{mean}_k}
# {\sqrt{\mathrm{variance}_k + \epsilon}}$$


# %%
def normalise(responses, epsilon=1e-3):
    """Batch norm over words and groups, for each code."""
    return (responses - responses.mean(axis=(0, 1))) / np.sqrt(responses.var(axis=(0, 1)) + epsilon)


def perplexity(codes, K):
    """Exponential of the entropy of codes."""
    share = np.bincount(codes.ravel(), minlength=K) / codes.size
    return np.exp(-(share[share > 0] * np.log(share[share > 0])).sum())


def draw(rng, K=16, s=4):
    """Responses of many queries that are off centre, and of K keys."""
    return np.einsum("ijc,kc->ijk", rng.standard_normal((500, 1, s)) + 1, rng.standard_normal((K, s)))


draws = [draw(np.random.default_rng(seed)) for seed in range(20)]
without, with_ = ([perplexity(f(r).argmax(axis=2), 16) for r in draws] for f in (np.array, normalise))
assert all(a < b for a, b in zip(without, with_, strict=True))
print(f"perplexity of 16 codes, mean of 20 draws: {np.mean(without):.1f} without batch norm")
print(f"{np.mean(with_):.1f} with it, and more in every draw")

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 2.9), width_ratios=[3, 2])
for f, name, colour, hatch in [(np.array, "without", "#BBBBBB", ""), (normalise, "with", "#0072B2", "//")]:
    share = np.bincount(f(draws[0]).argmax(axis=2).ravel(), minlength=16) / len(draws[0])
    places = np.arange(16) + (0.2 if name == "with" else -0.2)
    axes[0].bar(
        places, 100 * np.sort(share)[::-1], 0.4, color=colour, hatch=hatch, ec="black", lw=0.4, label=name
    )
axes[0].set(xlabel="codes, by rank", ylabel="words with this code (%)", title="first draw")
axes[0].legend(title="batch norm")
axes[1].plot([1, 16], [1, 16], "--", color="gray", lw=0.8)
axes[1].plot(without, with_, "o", color="#0072B2", ms=4)
axes[1].set(xlabel="perplexity without", ylabel="with batch norm", title="all draws")
axes[1].set(xlim=(0, 16.5), ylim=(0, 16.5), xticks=range(0, 17, 4), yticks=range(0, 17, 4))
show("5-batch-norm")

# %% [markdown]
# It has a backward, too, since mean and variance depend on every response. With $N = b\,D$ responses a
# code:
#
# $$\mathrm{d\_responses}_{ijk} =
# \frac{\mathrm{d\_normalised}_{ijk} - m_{1k} - \mathrm{normalised}_{ijk}\,m_{2k}}
# {\sqrt{\mathrm{variance}_k + \epsilon}}, \qquad
# m_{1k} = \frac1N\sum_{ij}\mathrm{d\_normalised}_{ijk}, \quad
# m_{2k} = \frac1N\sum_{ij}\mathrm{d\_normalised}_{ijk}\,\mathrm{normalised}_{ijk}$$

# %%
normalised = normalise(responses)
p = soften(normalised)
d_normalised = p * (d_softmax - (p * d_softmax).sum(axis=2, keepdims=True))
m1, m2 = d_normalised.mean(axis=(0, 1)), (d_normalised * normalised).mean(axis=(0, 1))
d_responses = (d_normalised - m1 - normalised * m2) / np.sqrt(responses.var(axis=(0, 1)) + 1e-3)
check("d_responses", d_responses, lambda r: (soften(normalise(r)) * d_softmax).sum(), responses)

layer = layer_with(batch_norm=True)
layer.forward(np.arange(b))
layer.backward(g.reshape(b, D * s))
assert np.allclose(layer.grads["keys"], np.einsum("ijk,ijc->jkc", d_responses, query))
print("the layer with batch norm agrees")

# %% [markdown]
# Two things to know. In evaluation there is no batch, so running statistics of training are used. And with
# batch norm the code of DPQ-VQ is not always that of the nearest key.
#
# **Exercises.** Centre the queries in `draw`: how much is left for batch norm to do? Make them narrower,
# with `s=1`: why does the perplexity stay low now?

# %% [markdown]
# ## 6. Train both
#
# A small world. Each word has a **topic**, and a text is a handful of words, of its own topic or of any.
# The task: name the topic of a text. Each word also has a **kind**, which the task does not care about. The
# table that training starts from shows both: the kind loudly, the topic quietly. A table of general use is
# like that: much of what is in it is not what the task at hand needs.

# %%
n, dim, n_topics, n_kinds = 240, 16, 6, 4


def make_words(rng, n, dim):
    """Vectors (n, dim), topics and kinds of n words."""
    topic, kind = np.arange(n) % n_topics, rng.integers(0, n_kinds, n)
    loud, quiet = rng.standard_normal((n_kinds, dim)), 0.4 * rng.standard_normal((n_topics, dim))
    return loud[kind] + quiet[topic] + 0.3 * rng.standard_normal((n, dim)), topic, kind


def make_texts(rng, size, length=8):
    """Texts (size, length) of words, most of them frequent words, and their topics."""
    labels = rng.integers(0, n_topics, size)
    often = 1 / (1 + np.arange(n // n_topics))
    rank = rng.choice(n // n_topics, (size, length), p=often / often.sum())
    own = rng.random((size, length)) < 0.5
    of_topic = np.where(own, labels[:, None], rng.integers(0, n_topics, (size, length)))
    return rank * n_topics + of_topic, labels


# %%
rng = np.random.default_rng(0)
X, topic, kind = make_words(rng, n, dim)
train_texts, train_labels = make_texts(rng, 2000)
test_texts, test_labels = make_texts(rng, 4000)
counts = np.bincount(train_texts.ravel(), minlength=n)

plane = (X - X.mean(axis=0)) @ np.linalg.svd(X - X.mean(axis=0))[2][:2].T
figure, axes = plt.subplots(1, 2, figsize=(8, 3.3), sharey=True)
for axis, of, name in zip(axes, [kind, topic], ["kind", "topic"], strict=True):
    for group, marker in zip(range(of.max() + 1), "osD^vP", strict=False):
        axis.plot(*plane[of == group].T, marker, ms=4, label=f"{group}")
    axis.set(title=f"words by {name}", xlabel="first direction")
    axis.legend(title=name, ncols=2, loc="best")
axes[0].set_ylabel("second direction")
show("6-words")

# %% [markdown]
# The model is the plainest that there is: the mean of the embeddings, and a linear layer. Its backward is
# two lines. Adam is a gradient step with a rate of its own for each number; the rate falls to 0.


# %%
def train(layer, seed=0, steps=250, rate=0.03, size=64):
    """Train a layer and the linear one above it; that one's weight, all losses, codes on the way."""
    rng, weight = np.random.default_rng(seed), np.zeros((dim, n_topics))
    optimizers = [dpq_ref.Adam(p, rate, backend="numpy") for p in (layer.params, {"weight": weight})]
    losses, history = [], []
    for step in range(steps):
        batch = rng.integers(0, len(train_texts), size)
        texts, labels = train_texts[batch], train_labels[batch]
        pooled = layer.forward(texts).mean(axis=1)
        p = soften((pooled @ weight)[:, None])[:, 0]
        losses.append(-np.log(p[np.arange(size), labels]).mean())
        d_logits = (p - np.eye(n_topics)[labels]) / size
        d_words = np.repeat((d_logits @ weight.T)[:, None] / texts.shape[1], texts.shape[1], axis=1)
        layer.backward(d_words)
        for optimizer, grads in zip(optimizers, [layer.grads, {"weight": pooled.T @ d_logits}], strict=True):
            optimizer.learning_rate = rate * (1 - step / steps)
            optimizer.step(grads)
        if hasattr(layer, "all_codes") and step % 5 == 4:
            history.append(layer.all_codes())
    return weight, losses, np.array(history)


# %%
def accuracy(lookup, weight):
    """Share of the test texts that get the right topic, in percent."""
    return 100 * np.mean((lookup(test_texts).mean(axis=1) @ weight).argmax(axis=1) == test_labels)


def dpq(method, D, K, seed=0):
    """Layer that starts from the table of words."""
    return dpq_ref.DPQEmbedding(
        n, dim, n_groups=D, n_codes=K, method=method, init=X, temperature=0.5, rng=seed, backend="numpy"
    )


full = dpq_ref.FullEmbedding(n, dim, init=X, backend="numpy")
trained = {"full": (full, *train(full))}
for method in ("sx", "vq"):
    layer = dpq(method, D=2, K=4)
    trained[f"dpq-{method}"] = (layer, *train(layer))
for name, (layer, weight, *_) in trained.items():
    table = layer.export()
    print(f"{name:<7} {accuracy(table.lookup, weight):.1f} % right, ratio {table.compression_ratio:.0f}")

# %% [markdown]
# Loss on the left. On the right the share of codes that differ from five steps earlier: a storm at first,
# then they settle, as the rate falls and the task has what it wants.

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3))
for (name, (_, _, losses, history)), line in zip(trained.items(), ["-", "--", ":"], strict=True):
    label, colour, _ = STYLES[name]
    smooth = np.convolve(losses, np.ones(15) / 15, "valid")
    axes[0].plot(np.arange(len(smooth)) + 15, smooth, line, color=colour, label=label)
    if len(history):
        changed = 100 * (history[1:] != history[:-1]).mean(axis=(1, 2))
        axes[1].plot(np.arange(len(changed)) * 5 + 10, changed, line, color=colour, label=label)
        assert changed[-5:].mean() < changed[:5].mean() / 4
axes[0].set(xlabel="step", ylabel="loss", ylim=(0, None), title="training loss")
axes[1].set(xlabel="step", ylabel="codes that changed (%)", ylim=(0, None), title="codes settle")
axes[0].legend()
axes[1].legend()
show("6-training")

# %% [markdown]
# The same as a picture. A line is a word, a shade its code in the first group, time runs to the right.
# Words are sorted by topic, and within a topic the frequent ones come first. In the end a topic has a
# shade. There are more topics than shades, so some share one, and the other group tells them apart.
# Frequent words follow their topic more often than rare ones, which the task hardly ever sees.

# %%
history = trained["dpq-sx"][3]
order = np.argsort(topic, kind="stable")
figure, axes = plt.subplots(figsize=(5.5, 4.2))
picture = axes.imshow(
    history[:, order, 0].T, cmap=plt.get_cmap("viridis", 4), aspect="auto", interpolation="nearest"
)
picture.set_extent((5, 5 * len(history), n, 0))
axes.set(
    xlabel="step",
    yticks=(np.arange(n_topics) + 0.5) * n / n_topics,
    yticklabels=range(n_topics),
    ylabel="topic",
)
for t in range(1, n_topics):
    axes.axhline(t * n / n_topics, color="white", lw=1.5)
figure.colorbar(picture, ticks=0.375 + 0.75 * np.arange(4), label="code").set_ticklabels(range(4))
axes.grid(False)
show("6-codes")

final = history[-1][:, 0]
follows = final == np.array([np.bincount(final[topic == t]).argmax() for t in range(n_topics)])[topic]
print(f"{100 * follows.mean():.0f} % of words have the code of most words of their topic")
print(f"{100 * follows @ counts / counts.sum():.0f} % if each counts as often as it comes")
assert follows @ counts / counts.sum() > follows.mean()

# %% [markdown]
# Did the codes learn the quiet topic, or the loud kind? Guess a word's topic from its code alone, as that
# of most words with this code; each word counts as often as it comes.


# %%
def told(codes, of):
    """Share of words, by frequency, whose class is that of most words with the same code, in percent."""
    name = codes @ 4 ** np.arange(codes.shape[1])
    table = np.zeros((name.max() + 1, of.max() + 1))
    np.add.at(table, (name, of), counts)
    return 100 * table.max(axis=1).sum() / counts.sum()


for name in ("dpq-sx", "dpq-vq"):
    start, end = dpq(name[4:], D=2, K=4).all_codes(), trained[name][3][-1]
    assert told(end, topic) > told(start, topic)
    for what, of in {"topic": topic, "kind": kind}.items():
        before, after = told(start, of), told(end, of)
        print(f"{name}: codes tell the {what} of {before:.0f} % before training, {after:.0f} % after")

# %% [markdown]
# **Exercises.** Give DPQ-SX a temperature of 5, and one of 0.05: which trains, and which part said so?
# Train DPQ-VQ without batch norm. How many of its codes are in use in the end?

# %% [markdown]
# ## 7. What $K$ and $D$ do
#
# More codes a group, or more groups? Both cost bits, $D\lceil\log_2 K\rceil$ a word, and for the same bits
# a word there are equally many different rows, $K^D$. But the codebook grows with $K$, and does not with
# $D$. On the other hand one large group can hold any rows, while many small ones have to be put together.


# %%
def judge(method, D, K, seed=0):
    """Train once; ratio of the table, and accuracy with it."""
    layer = dpq(method, D, K, seed)
    weight = train(layer, seed)[0]
    table = layer.export()
    return table.compression_ratio, accuracy(table.lookup, weight)


sweep = {(K, D): judge("sx", D, K) for K in (2, 4, 16) for D in (1, 2, 4, 8)}
reference = accuracy(full.export().lookup, trained["full"][1])
for (K, D), (times, right) in sweep.items():
    print(f"K = {K:<2} D = {D}: {D * np.log2(K):>4.0f} bits a word, ratio {times:>5.1f}, {right:.1f} % right")

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
for K, marker, line in zip((2, 4, 16), "o^s", ["-", "--", ":"], strict=True):
    right = [sweep[K, D][1] for D in (1, 2, 4, 8)]
    axes[0].plot([D * np.log2(K) for D in (1, 2, 4, 8)], right, line, marker=marker, label=f"K = {K}")
    axes[1].plot([sweep[K, D][0] for D in (1, 2, 4, 8)], right, line, marker=marker, label=f"K = {K}")
for axis, what in zip(
    axes, ["bits of the codes of a word", "compression ratio, codebook and all"], strict=True
):
    axis.axhline(reference, color="black", lw=0.8, dashes=(8, 4))
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel(what)
axes[0].set_ylabel("accuracy (%)")
axes[1].legend()
show("7-sweep")

assert all(sweep[K, 8][1] > sweep[K, 1][1] + 5 for K in (2, 4))  # more groups help where codes are few
assert max(right for _, right in sweep.values()) > reference - 2

# %% [markdown]
# The full table is the dashed line. From a few bits a word on there is little left to gain on this task: a
# handful of topics does not take more. Below that, each bit counts. With so few words the codebook of the
# largest $K$ costs most of the bits, as in part 1.
#
# **Exercises.** A codebook can be shared by all groups: give `DPQEmbedding` the option `shared=True`. What
# does it do to bits, and to accuracy? Cut the words into 16 groups of width 1.

# %% [markdown]
# ## 8. The classical methods, on a plane
#
# All of them start from a table that is already trained. In two dimensions each can be seen: dots are
# words, lines lead to where a method puts them. The words lie on a grid of kinds (the long way) and topics,
# turned by some angle. The error is the mean square length of the lines, beside that of putting all words
# in the middle.

# %%
rng = np.random.default_rng(0)
turn = np.deg2rad(30)
axes_of_words = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
cells = np.stack([rng.integers(0, 4, 300) * 1.0, rng.integers(0, 3, 300) * 0.7], axis=1)
P = (cells + 0.08 * rng.standard_normal(cells.shape)) @ axes_of_words
P -= P.mean(axis=0)


def error(decoded):
    """Mean square error on the plane, relative to that of the mean."""
    return ((P - decoded) ** 2).sum() / (P**2).sum()


def compare(name, decoded):
    """Draw what methods make of the plane, side by side, with their errors."""
    figure, axes = plt.subplots(1, len(decoded), figsize=(8, 3.4), sharex=True, sharey=True)
    for axis, (title, Q) in zip(axes, decoded.items(), strict=True):
        axis.plot(*np.stack([P, Q, np.full_like(P, np.nan)], axis=1).reshape(-1, 2).T, color="gray", lw=0.5)
        axis.plot(*P.T, ".", ms=3, color="#56B4E9")
        axis.plot(*Q.T, "s", ms=3.5, color="black")
        axis.set(title=f"{title}\nerror {100 * error(Q):.1f} %", aspect="equal")
        print(f"{title:<32} error {100 * error(Q):5.1f} %")
    show(name)


# %% [markdown]
# **Scalar quantization** rounds each number by itself, here to two bits: four levels for all columns.
# **k-means** takes each row as a whole: sixteen rows to choose from, four bits a word as well. Alternate:
# each row to its nearest centre, each centre to the mean of its rows. No half of a step can raise the
# error.


# %%
def lloyd(X, K, rng, steps=30):
    """One run of k-means; centres and codes."""
    centres = X[rng.choice(len(X), K, replace=False)]
    for _ in range(steps):
        codes = ((X[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
        for k in set(codes):
            centres[k] = X[codes == k].mean(axis=0)
    return centres, ((X[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)


def kmeans(X, K, runs=20):
    """Best of several runs."""
    tries = [lloyd(X, K, np.random.default_rng(seed)) for seed in range(runs)]
    return min(tries, key=lambda found: ((X - found[0][found[1]]) ** 2).sum())


step = 2 * np.abs(P).max() / 4
rounded = step * (np.clip(np.floor(P / step), -2, 1) + 0.5)
centres, codes = kmeans(P, 16)
compare("8-kmeans", {"scalar, 2 bits a number": rounded, "k-means of rows, K = 16": centres[codes]})
assert error(centres[codes]) < error(rounded)

# %% [markdown]
# k-means with 32 bits a row would need $2^{32}$ centres. **Product quantization** (PQ) cuts rows into
# groups and runs k-means in each, so few centres make many rows: this is the code of part 1, learned from
# the table alone. But here groups are columns, and columns lie across the structure. **OPQ** turns the
# table first, by the best rotation: again by halves, PQ of the turned table, and the rotation that brings
# it nearest to that (Procrustes, one SVD).


# %%
def pq(X, K):
    """Product quantization with a group a column."""
    return np.hstack([centres[codes] for centres, codes in (kmeans(c[:, None], K) for c in X.T)])


def opq(X, K, steps=5):
    """PQ in the best rotation, from the principal axes."""
    R = np.linalg.svd(X, full_matrices=False)[2].T
    for _ in range(steps):
        left, _, right = np.linalg.svd(X.T @ pq(X @ R, K))
        R = left @ right
    return pq(X @ R, K) @ R.T


compare("8-product", {"PQ, D = 2, K = 4": pq(P, 4), "OPQ, D = 2, K = 4": opq(P, 4)})
assert error(opq(P, 4)) < error(pq(P, 4)) / 2

# %% [markdown]
# **Low rank** keeps fewer columns: words fall onto a line, the best one by the singular value
# decomposition, and each keeps one number of 32 bits. **GroupReduce** has the idea that frequent words
# deserve more: blocks by frequency, each with a rank and directions of its own. Here the frequent fifth
# keeps both columns, and the others a line.


# %%
def low_rank(X, rank):
    """Best approximation of this rank."""
    left, values, right = np.linalg.svd(X, full_matrices=False)
    return left[:, :rank] * values[:rank] @ right[:rank]


often = 1 / (1 + np.arange(len(P)))  # word 0 is the most frequent
top = len(P) // 5
blocks = np.vstack([low_rank(P[:top], 2), low_rank(P[top:], 1)])
compare("8-low-rank", {"low rank, rank 1": low_rank(P, 1), "GroupReduce, ranks 2 and 1": blocks})


def weighted(decoded):
    """Square error of a word times how often it comes, as a share."""
    return (often * ((P - decoded) ** 2).sum(axis=1)).sum() / (often * (P**2).sum(axis=1)).sum()


assert error(blocks) < error(low_rank(P, 1))
for name, decoded in {"low rank": low_rank(P, 1), "GroupReduce": blocks}.items():
    print(f"by frequency: {name} {100 * weighted(decoded):.1f} %")

# %% [markdown]
# **Signs** keep one bit a column, and one length for the whole table. **ITQ** turns the table before, so
# that signs fit it better: signs of the turned table, then the rotation that brings it nearest to them, in
# turn. The distance between the two never rises.


# %%
def signs(X):
    """Signs, at the length with the smallest error."""
    return np.sign(X) * np.abs(X).mean()


R = np.linalg.svd(P, full_matrices=False)[2].T
objective = []
for _ in range(30):
    B = np.sign(P @ R)
    left, _, right = np.linalg.svd(P.T @ B)
    R = left @ right
    objective.append(((B - P @ R) ** 2).sum())
assert all(np.diff(objective) <= 1e-9)
compare("8-signs", {"signs, 2 bits a word": signs(P), "ITQ, 2 bits a word": signs(P @ R) @ R.T})

# %% [markdown]
# **Exercises.** Give PQ more codes: how many does it need to match OPQ? Turn the words by 0 degrees: who
# gains, who does not? Draw the third method of one bit, signs of random directions.

# %% [markdown]
# ## 9. At equal bits
#
# Now all of them on a table with more words and columns, the same world as in part 6, by the package: its
# classes do what was just done by hand, and count bits. Each is given the same budget, a ratio, and comes
# as close as it can. The error is judged twice, for all words alike and by frequency.

# %%
rng = np.random.default_rng(0)
X_large, _, _ = make_words(rng, 1200, 16)
often = 1 / (1 + np.arange(len(X_large)) // n_topics)
methods = ["product", "optimized-product", "low-rank", "group-reduce", "uniform", "itq"]
weights = {"all words alike": np.ones(len(often)), "by frequency": often}


def relative_error(decoded, weight):
    """Weighted square error in percent of that of 0."""
    return 100 * (weight @ ((X_large - decoded) ** 2).sum(axis=1)) / (weight @ (X_large**2).sum(axis=1))


errors = {}
for method in methods:
    for budget in (7.8, 15.6, 31):  # just below what low rank has
        seeded = {} if method in ("low-rank", "group-reduce", "uniform") else {"random_state": 0}
        for name, weight in weights.items():
            try:
                quantizer = baselines.REGISTRY[method](ratio=budget, **seeded)
                table = quantizer.fit(X_large, sample_weight=weight).compress()
            except ValueError:  # no size of this method is within the budget
                continue
            errors[name, method, budget] = (
                table.compression_ratio,
                relative_error(table.reconstruct(), weight),
            )

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True)
for axis, name in zip(axes, weights, strict=True):
    for method in methods:
        points = [point for (which, m, _), point in errors.items() if (which, m) == (name, method)]
        label, colour, marker = STYLES[method]
        axis.plot(*np.array(points).T, marker=marker, color=colour, label=label)
    axis.set(xscale="log", yscale="log", xlabel="compression ratio", title=name)
    axis.set(xticks=[8, 16, 32], xticklabels=[8, 16, 32])
    axis.yaxis.set_major_formatter("{x:g}")
    axis.xaxis.minorticks_off()
axes[0].set_ylabel("relative error (%)")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
show("9-table")

for budget in (7.8, 31):
    for name in weights:
        ranking = sorted((errors[name, m, budget][1], m) for m in methods if (name, m, budget) in errors)
        print(f"smallest errors at ratio {budget}, {name}:", ", ".join(STYLES[m][0] for _, m in ranking[:2]))

# %% [markdown]
# And the task of part 6. *After training*: the full table is trained, then compressed, and the linear layer
# stays as it was; or is trained again above the compressed table, which is the fairest thing to do. *End to
# end*: DPQ trains with the codes in place. DPQ and PQ of the same $D$ and $K$ store things of exactly the
# same size; what differs is who chose the codes.

# %%
settings = [(2, 1), (2, 2), (2, 4), (2, 8), (4, 8), (16, 4)]  # K, D
results = {"dpq-sx": [sweep[setting] for setting in settings]}
results["dpq-vq"] = [judge("vq", D, K) for K, D in settings]
trials = {
    "product": [{"n_codes": K, "n_groups": D, "random_state": 0} for K, D in settings],
    "optimized-product": [{"n_codes": K, "n_groups": D, "random_state": 0} for K, D in settings],
    "low-rank": [{"rank": rank} for rank in (1, 2, 3)],
    "uniform": [{"n_bits": n_bits} for n_bits in (1, 2, 4)],
}
results |= {method: [] for method in trials} | {"again": []}
for method, choices in trials.items():
    for choice in choices:
        quantizer = baselines.REGISTRY[method](**choice)
        table = quantizer.fit(full.params["table"], sample_weight=counts + 1e-3).compress()
        right = accuracy(table.lookup, trained["full"][1])
        results[method].append((table.compression_ratio, right))
        if method == "product":
            right = accuracy(table.lookup, train(dpq_ref.FixedEmbedding(table))[0])
            results["again"].append((table.compression_ratio, right))

# %%
figure, axes = plt.subplots(figsize=(8, 3.8))
for method, points in results.items():
    label, colour, marker = STYLES.get(method, ("PQ, linear layer trained again", "#009E73", "x"))
    line = {"dpq-sx": "-", "dpq-vq": "-.", "again": ":"}.get(method, "--")
    fill = colour if method.startswith("dpq") else "white"
    axes.plot(*np.array(points).T, marker=marker, color=colour, label=label, ls=line, mfc=fill)
axes.axhline(reference, color="black", lw=0.8, dashes=(8, 4))
axes.set(xscale="log", xlabel="compression ratio", ylabel="accuracy (%)")
axes.set(xticks=[4, 8, 16, 32, 64], xticklabels=[4, 8, 16, 32, 64])
axes.minorticks_off()
axes.legend(title="filled: trained end to end", loc="center left", bbox_to_anchor=(1, 0.5))
show("9-task")

# %%
columns = ("dpq-sx", "dpq-vq", "product", "again")
for i, (K, D) in enumerate(settings):
    (times, sx), (_, vq), (_, after), (_, again) = (results[column][i] for column in columns)
    assert len({results[column][i][0] for column in columns}) == 1  # equal bits
    print(f"K = {K:<2} D = {D}: SX {sx:.1f}, VQ {vq:.1f}, PQ {after:.1f}, trained again {again:.1f} %")
    if 4 <= K**D <= 16:
        assert min(sx, vq) > max(after, again)  # a few bits: end to end is ahead
    if K**D == 2:
        assert max(sx, vq, after, again) < 50 < reference  # one bit: nobody does well
    if times < 16:
        assert max(abs(sx - after), abs(vq - after)) < 4  # many bits: hardly a difference

rotation = baselines.OptimizedProductQuantizer(n_groups=4, n_codes=2, random_state=0).fit(X).compress().bits()
print(f"bits of OPQ with K = 2, D = 4: {rotation}")
assert rotation["basis"] > rotation["codes"]

# %% [markdown]
# PQ spends its few bits on what is loud in the table; DPQ on what the loss asks for. A linear layer trained
# again gets some of it back, but what the codes do not tell apart stays lost. With many bits there is room
# for everything, and the difference is gone; with a single bit a word nobody does well. OPQ stores a
# rotation, which on so small a table costs more than all codes.
#
# This world was made for the difference to be seen. How much of it is there on real tasks is measured, not
# argued: the README has the figures.
#
# **To take home**
#
# * A code is an argmax. It has no gradient, so a neighbour's is taken: the softmax mean for DPQ-SX, the
#   query itself for DPQ-VQ. Say which, and it can be checked like any other.
# * Count all bits: codes, codebooks, rotations, scales. On small tables the rest outweighs the codes.
# * Look at the perplexity of the codes. A codebook that is not in use is paid for all the same.
# * A small error of the table is not a small loss of the task. It is, if bits are plenty.
# * The methods of part 8 need no training data and no task. Where the task is known and bits are few, train
#   with the codes in place.
#
# **Exercises.** Make the topic as loud as the kind in `make_words`: where is DPQ ahead now? Draw another
# world in part 6, by another seed: which of the claims stand? (In the world of seed 2 the linear layer,
# trained again, makes up for PQ even at a few bits.)
