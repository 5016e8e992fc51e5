"""Layers by name, as a model or as a larger layer: what optimizers, checkpoints and training need of them."""

from collections.abc import Collection
from typing import Any

import numpy as np

from dpq_ref import backend as backends
from dpq_ref.kernels.reference import Array


class Network:
    """Layers by name; itself a layer, if it has `forward` and `backward`.

    A layer has `params` and `grads`. It may have `buffers`, arrays by name that training changes without a
    gradient (running statistics), and `rng`, the generator that it draws from.

    Parameters
    ----------
    layers : dict

    Attributes
    ----------
    params, grads, buffers : dict
        Those of all layers, as "layer.name".

    Examples
    --------
    >>> from dpq_ref.layers import BatchNorm, Dropout
    >>> network = Network({"norm": BatchNorm(2), "dropout": Dropout(0.5)})
    >>> sorted(network.state())
    ['norm.beta', 'norm.gamma', 'norm.mean', 'norm.variance']
    >>> list(network.generators)
    ['dropout']
    """

    def __init__(self, layers: dict[str, Any]):
        self.layers = layers

    def _named(self, kind: str) -> dict[str, Any]:
        return {
            f"{name}.{key}": array
            for name, layer in self.layers.items()
            for key, array in getattr(layer, kind, {}).items()
        }

    def loss_and_gradients(self, batch: Any) -> Any:
        """Loss of a batch in training mode, a scalar; fills the `grads` of the layers."""
        raise NotImplementedError

    def move(self, backend: Any) -> None:
        """Move parameters and buffers of layers that know no back end, as `Dense`, to where one has them."""
        asarray = backends.get(backend).xp.asarray
        for layer in self.layers.values():
            if isinstance(layer, Network):
                layer.move(backend)
                continue
            for arrays in (layer.params, getattr(layer, "buffers", {})):
                arrays.update({name: asarray(array) for name, array in arrays.items()})

    @property
    def params(self) -> dict[str, Array]:  # noqa: D102
        return self._named("params")

    @property
    def grads(self) -> dict[str, Any]:  # noqa: D102
        return self._named("grads")

    @property
    def buffers(self) -> dict[str, Array]:  # noqa: D102
        return self._named("buffers")

    @property
    def generators(self) -> dict[str, np.random.Generator]:
        """Generators that training draws from, by layer; of a layer made of layers, theirs."""
        found = {name: layer.rng for name, layer in self.layers.items() if hasattr(layer, "rng")}
        return found | self._named("generators")

    def state(self) -> dict[str, Array]:
        """Copy all parameters and buffers to the host, by name."""
        return {name: backends.to_numpy(a).copy() for name, a in (self.params | self.buffers).items()}

    def load_state(self, state: dict[str, Array], *, without: Collection[str] = ()) -> None:
        """Set parameters and buffers from a `state`.

        Parameters
        ----------
        state : dict of arrays
        without : collection of str
            Layers that stay as they are; `state` need not have them.

        Raises
        ------
        ValueError
            If an array is missing or does not fit; nothing has changed then.
        """
        wanted = {
            name: array
            for name, array in (self.params | self.buffers).items()
            if name.partition(".")[0] not in without
        }
        for name, array in wanted.items():
            shape = state[name].shape if name in state else "none"
            if shape != array.shape:
                raise ValueError(f"state[{name!r}] has shape {shape}; it takes {array.shape}")
        for name, array in wanted.items():
            array[...] = backends.array_module(array).asarray(state[name])
