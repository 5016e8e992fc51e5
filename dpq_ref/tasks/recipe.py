"""From a few settings to a trained model: what the command line and the presets have in common."""

import os
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dpq_ref.layers import make_embedding

PRESETS = Path(__file__).with_name("presets.toml")
SETTINGS = {  # what a task has beside its embedding, its plan and its seed
    "lm": ("model", "output"),
    "classify": (),
    "translate": ("model", "languages", "network"),
}


@dataclass(frozen=True)
class Recipe:
    """What to train.

    Attributes
    ----------
    task : {"lm", "classify", "translate"}
    model : str
        "small", "medium" or "large" of language models, "attention" or "transformer" of translators; by
        default the first.
    embedding : dict
        kind, and the parameters of `make_embedding`.
    output : str or dict or None
        Of language models, the matrix of the softmax: None for one of its own, "tied" for the embedding of
        the input, or an embedding as above.
    languages : two str
        From and to, of translators.
    network : dict
        Parameters of a translator that differ from its default; dim is the width of its embeddings.
    plan : dict
        Fields of the task's plan that differ from its default.
    seed : int
    backend : {"numba", "numpy", "cupy"}, optional
    """

    task: str
    embedding: dict[str, Any]
    model: str | None = None
    output: Any = None
    languages: Sequence[str] = ("en", "vi")
    network: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    backend: str | None = None

    def __post_init__(self) -> None:  # noqa: D105
        if self.task not in SETTINGS:
            raise ValueError(f"task={self.task!r}; it takes one of {', '.join(SETTINGS)}")
        if self.model is None:
            object.__setattr__(self, "model", {"lm": "small", "translate": "attention"}.get(self.task))

    @property
    def config(self) -> dict[str, Any]:
        """All that decides on the numbers, but the data; JSON-able."""
        names = ("task", "embedding", "seed", *SETTINGS[self.task])
        config = {name: getattr(self, name) for name in names} | {"plan": asdict(whole_plan(self))}
        return config if self.backend is None else config | {"backend": self.backend}


def whole_plan(recipe: Recipe) -> Any:
    """Plan of the task, with the changes of the recipe.

    Raises
    ------
    ValueError
        If there is no such model, or field of the plan.

    Examples
    --------
    >>> whole_plan(Recipe("lm", {"kind": "full"}, plan={"epochs": 3})).epochs
    3
    """
    from dpq_ref.tasks import classify, language_model, translate

    plans: dict[str, dict[Any, Any]] = {
        "lm": language_model.SIZES,
        "classify": {None: classify.Plan(steps=5000)},
        "translate": translate.PLANS,
    }
    plan = _choose(recipe.model, plans[recipe.task])
    unknown = recipe.plan.keys() - asdict(plan).keys()
    if unknown:
        raise ValueError(f"plan has no {', '.join(sorted(unknown))}; it takes {', '.join(asdict(plan))}")
    return replace(plan, **recipe.plan)


def presets() -> dict[str, dict[str, Any]]:
    """Read the settings of each preset by name; "folder" is the data that it is meant for.

    Examples
    --------
    >>> presets()["ptb-medium-sx"]["embedding"]
    {'kind': 'dpq-sx', 'n_groups': 25, 'n_codes': 32, 'shared': True}
    """
    return tomllib.loads(PRESETS.read_text(encoding="utf8"))


def preset(name: str, **changes: Any) -> Recipe:
    """Recipe of a preset.

    Raises
    ------
    ValueError
        If there is none of that name.

    Examples
    --------
    >>> preset("ptb-small-full", seed=1).seed
    1
    """
    if name not in presets():
        raise ValueError(f"preset={name!r}; it takes one of {', '.join(presets())}")
    settings = {k: v for k, v in presets()[name].items() if k != "folder"}
    return Recipe(**settings | changes)


def run(
    recipe: Recipe,
    data: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    **options: Any,
) -> dict[str, Any] | None:
    """Train by a recipe in a folder, or go on there.

    Parameters
    ----------
    recipe : Recipe
    data : path or "builtin"
        Folder of the data, or the built-in corpus.
    folder : path
        Of the training; see `dpq_ref.job`.
    **options
        patience, max_minutes, on_start and on_step of `dpq_ref.job.fit`.

    Returns
    -------
    dict or None
        What is in result.json; None if time was up before.
    """
    tasks = {"lm": _language_model, "classify": _classifier, "translate": _translator}
    return tasks[recipe.task](recipe, data, folder, config=recipe.config, **options)


def load_data(task: str, path: str | os.PathLike[str], languages: Sequence[str] = ("en", "vi")) -> Any:
    """Load the data of a task: a `LanguageDataset`, `TextDataset` or `TranslationDataset`.

    Parameters
    ----------
    task : {"lm", "classify", "translate"}
    path : path or "builtin"
    languages : two str
        From and to, of translations.
    """
    from dpq_ref import datasets
    from dpq_ref.datasets.language import load_builtin_language, load_language
    from dpq_ref.datasets.translation import load_translation

    if task == "classify":
        return datasets.load(path)
    if task == "lm":
        return load_builtin_language() if path == "builtin" else load_language(path)
    if path == "builtin":
        raise ValueError("data='builtin' has no translations; it takes a folder of sentence pairs")
    return load_translation(path, *languages)


def _generators(seed: int) -> tuple[np.random.Generator, np.random.Generator]:
    """For the embedding, and for the rest: with another embedding the rest starts the same."""
    return np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])


def _choose(model: str | None, models: dict[Any, Any]) -> Any:
    if model not in models:
        raise ValueError(f"model={model!r}; it takes one of {', '.join(map(str, models))}")
    return models[model]


def _language_model(recipe: Recipe, path: Any, folder: Any, **options: Any) -> dict[str, Any] | None:
    from dpq_ref.tasks.language_model import LanguageModel, train

    plan, corpus = whole_plan(recipe), load_data("lm", path)
    first, rest = _generators(recipe.seed)
    shape = (len(corpus.vocabulary), plan.n_hidden)

    def make(settings: dict[str, Any]) -> Any:
        settings = dict(settings)
        settings |= {"init": plan.init, "rng": first, "backend": recipe.backend}
        return make_embedding(settings.pop("kind"), *shape, **settings)

    embedding = make(recipe.embedding)
    table = embedding if recipe.output == "tied" else recipe.output and make(recipe.output)
    model = LanguageModel(embedding, plan, table=table, rng=rest)
    return train(folder, corpus, model, plan, **options)


def _classifier(recipe: Recipe, path: Any, folder: Any, **options: Any) -> dict[str, Any] | None:
    from dpq_ref.tasks.classify import PADDING, TextClassifier, fit

    plan, data = whole_plan(recipe), load_data("classify", path)
    first, rest = _generators(recipe.seed)
    settings = recipe.embedding | {"backend": recipe.backend}
    kind = settings.pop("kind")
    embedding = make_embedding(kind, len(data.vocabulary), 300, padding_id=PADDING, rng=first, **settings)
    model = TextClassifier(embedding, len(data.label_names), rng=rest)
    return fit(folder, data, model, plan, seed=recipe.seed, **options)


def _translator(recipe: Recipe, path: Any, folder: Any, **options: Any) -> dict[str, Any] | None:
    from dpq_ref.tasks.seq2seq import AttentionTranslator, TransformerTranslator
    from dpq_ref.tasks.translate import train

    data = load_data("translate", path, recipe.languages)
    models = {"attention": (AttentionTranslator, 0.1), "transformer": (TransformerTranslator, None)}
    network = {"dim": 512} | recipe.network
    dim = network.pop("dim")
    make, init = _choose(recipe.model, models)
    if init is None:
        init = (3 / dim) ** 0.5  # variance 1 / dim, as the target's
    else:
        network["n_hidden"] = dim
    first, rest = _generators(recipe.seed)
    settings = recipe.embedding | {"backend": recipe.backend}
    kind = settings.pop("kind")
    embedding = make_embedding(kind, len(data.source_vocabulary), dim, init=init, rng=first, **settings)
    model = make(embedding, len(data.target_vocabulary), rng=rest, **network)
    return train(folder, data, model, whole_plan(recipe), seed=recipe.seed, **options)
