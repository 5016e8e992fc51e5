"""Rows of the paper (Chen, Li, Sun, ICML 2020), and results of ours that belong to them.

The paper's rows are in paper.toml, each number with a mark of how well it is known. Ours are in a folder::

  <preset>-seed<seed>.json  result.json of `dpq-ref train --preset`, as it is (`add`)
  <start>-compressed.json   the model of preset <start>-full, compressed after training: a list of records of
                            method, parameters, retrained, compression_ratio, seed, one metric of RELEASED
                            (`add` takes it from a `dpq-ref compress-lm`)
  grid-<data>.json          DPQ of many K and D: a list of records of method, n_groups, n_codes, shared, one
                            metric of RELEASED (`add` makes it of a `dpq-ref compare`)
  cost-<model>.json         what a training step costs (figures/cost.py)
  words-<name>.json         words with their codes and neighbours (`dpq-ref neighbours`)
"""

import json
import os
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dpq_ref.compressed import write_atomically
from dpq_ref.tasks.recipe import preset
from dpq_ref.tasks.recipe import presets as read_presets
from figures.records import read_records

Row = dict[str, Any]
Result = dict[str, Any]

PAPER = Path(__file__).with_name("paper.toml")
# Metric by the best validation: the same by the protocol of the released code. A translator has a perplexity,
# too, so it comes last.
RELEASED = {
    "test_bleu": "test_bleu_last",
    "test_accuracy": "test_accuracy_best",
    "test_perplexity": "test_perplexity_last",
}


presets = cache(read_presets)


@cache
def paper() -> dict[str, Any]:
    """Read paper.toml: `data` and `tables`."""
    return tomllib.loads(PAPER.read_text(encoding="utf8"))


def lines() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Parts of all tables of the paper, with each of their rows."""
    for table in paper()["tables"].values():
        for part in table["parts"]:
            for line in part["rows"]:
                yield part, line


def strict_ratio(n: int, dim: int, *, n_groups: int, n_codes: int, shared: bool = False) -> float:
    """32 n d over n D ceil(log2 K) + 32 K d bits; K d / D numbers if shared.

    Examples
    --------
    >>> round(strict_ratio(10_000, 650, n_groups=25, n_codes=32, shared=True), 2)
    162.93
    >>> round(strict_ratio(10_000, 650, n_groups=50, n_codes=128), 2)
    33.75
    """
    codes = n * n_groups * (n_codes - 1).bit_length()
    values = 32 * n_codes * dim // (n_groups if shared else 1)
    return 32 * n * dim / (codes + values)


def preset_of(result: Result) -> str:
    """Name the preset that a result is of, by its configuration and its data.

    Raises
    ------
    ValueError
        If there is none; the message says what differs from the nearest.
    """
    if not {"config", "data", "environment", "evaluations"} <= result.keys() or not RELEASED.keys() & result:
        raise ValueError("that is no result of dpq-ref train")
    differences = {name: list(_differences(result["config"], _config(name))) for name in presets()}
    nearest = min(differences, key=lambda name: len(differences[name]))
    if differences[nearest]:
        raise ValueError(
            f"no preset has this configuration; {nearest} but for {'; '.join(differences[nearest])}"
        )
    same = [name for name, found in differences.items() if not found]
    counts = {name: paper()["data"].get(place(name)[0], {}).get("counts", {}) for name in same}
    differences = {name: list(_differences(result["data"], counts[name])) for name in same}
    fitting = [name for name in same if not differences[name]]
    if not fitting:
        raise ValueError(f"the data is not that of {same[0]}: {'; '.join(differences[same[0]])}")
    if len(fitting) > 1:
        raise ValueError(f"configuration and data are those of {' and of '.join(fitting)}")
    return fitting[0]


@cache
def _config(name: str) -> dict[str, Any]:
    """Make the configuration of a preset, as `dpq-ref train` writes it but for the seed."""
    config = json.loads(json.dumps(preset(name).config))
    return {key: value for key, value in config.items() if key != "seed"}


def _differences(there: Any, wanted: Any, name: str = "") -> Iterator[str]:
    """Name what of `wanted` is not so `there`; parameters of layers may have nothing else."""
    if isinstance(wanted, dict) and isinstance(there, dict):
        extra = set(there) - set(wanted) if name in ("embedding", "network") else set()
        for key in [*wanted, *sorted(extra)]:
            yield from _differences(there.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))
    elif there != wanted:
        yield f"{name} {there!r}, not {wanted!r}"


def add(folder: str | os.PathLike, results: str | os.PathLike, *, force: bool = False) -> Path:
    """Add what a folder holds to the results of the paper.

    Of a training by a preset its result, of a comparison the DPQ runs, of a compressed language model all.

    Parameters
    ----------
    folder : path
        Of a finished `dpq-ref train`, `compare` or `compress-lm`.
    results : path
    force : bool
        Replace what is there.

    Returns
    -------
    Path
        Of what was written.

    Raises
    ------
    FileNotFoundError
        If the training has no result.json.
    FileExistsError
        If there is another result of that preset and seed, or grid of that data.
    ValueError
        If it is that of no preset, or the comparison has no DPQ.
    """
    source = Path(folder, "result.json")
    if source.is_file():
        content = source.read_bytes()
        name, result = _read(source)
        path = Path(results, f"{name}-seed{result['config']['seed']}.json")
    elif Path(folder, "compressed.json").is_file():
        content = Path(folder, "compressed.json").read_bytes()
        name = json.loads(content)[0]["preset"]
        if name is None:
            raise ValueError(f"the model that {folder} compresses is that of no preset")
        path = Path(results, f"{name.removesuffix('-full')}-compressed.json")
    elif Path(folder, "runs").is_dir():
        records = grid_of(read_records(folder))
        content = json.dumps(records, indent=1).encode()
        path = Path(results, f"grid-{records[0]['data']}.json")
    else:
        raise FileNotFoundError(f"no {source}: the training has not come to its end")
    if path.exists() and path.read_bytes() != content and not force:
        raise FileExistsError(f"{path} is there, with another result; --force replaces it")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return path


def grid_of(records: list[Row]) -> list[Row]:
    """DPQ runs of a comparison, as the heat maps take them.

    Raises
    ------
    ValueError
        If there is none.
    """
    found = []
    for record in records:
        run = record["specification"]
        if run["method"] in ("dpq-sx", "dpq-vq"):
            layer = {"shared": False} | run["parameters"]
            metrics = {name: record["metrics"][name] for name in RELEASED if name in record["metrics"]}
            own = {"data": run["dataset"], "method": run["method"], "seed": run["seed"]}
            own |= {"compression_ratio": record["compression_ratio"], "environment": record["environment"]}
            found.append(own | layer | metrics)
    if not found:
        raise ValueError("no run of DPQ in this comparison")
    return found


def read_results(folder: str | os.PathLike) -> dict[str, list[Result]]:
    """Read the results of trainings by preset, in the order of presets, each by seed.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If a file is not named after what is in it, or no preset has its configuration any more.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    found: dict[str, list[Result]] = {name: [] for name in presets()}
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith(("grid-", "cost-", "words-")) or path.name.endswith("-compressed.json"):
            continue
        name, result = _read(path)
        if path.stem != (stem := f"{name}-seed{result['config']['seed']}"):
            raise ValueError(f"{path} has the result of {stem}")
        found[name].append(result)
    return {k: sorted(v, key=lambda r: r["config"]["seed"]) for k, v in found.items() if v}


def _read(path: Path) -> tuple[str, Result]:
    """Preset and content of a result."""
    try:
        result = json.loads(path.read_text(encoding="utf8"))
        return preset_of(result), result
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def records_in(folder: Path, pattern: str) -> Iterator[tuple[str, list[Row]]]:
    """Name and records of each file of lists."""
    for path in sorted(folder.glob(pattern)):
        if records := json.loads(path.read_text(encoding="utf8")):
            yield path.stem, records


def metric_of(record: Row) -> str:
    """Name the test metric that a result or record has.

    Raises
    ------
    ValueError
        If it has none.
    """
    for metric in RELEASED:
        if metric in record:
            return metric
    raise ValueError(f"no metric in a record of {', '.join(record)}; it takes one of {', '.join(RELEASED)}")


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean, and standard deviation (n - 1); 0 for one value."""
    values = list(values)
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


MODELS = {"classify": "mean of words", "translate": "LSTM with attention"}


@cache
def place(name: str) -> tuple[str, str]:
    """Name data set and model of a preset, as the paper's rows do where it is in one."""
    mine, data = presets()[name], presets()[name]["folder"]
    for part, line in lines():
        other = presets()[line["preset"]] if "preset" in line else {}
        if line.get("preset") == name:
            return part["data"], part["model"]
        if all(other.get(key) == mine.get(key) for key in ("folder", "languages")):
            data = part["data"]
    model = f"LSTM {mine['model']}" if mine["task"] == "lm" else MODELS[mine["task"]]
    if "network" in mine:
        model += f", {mine['network']['dim']} wide"
    if epochs := mine.get("plan", {}).get("epochs"):
        model += f", {epochs} epoch{'s' if epochs > 1 else ''}"
    return data, model


def kind_of(name: str) -> str:
    """Kind of the embedding of a preset."""
    return presets()[name]["embedding"]["kind"]


def layer_of(name: str) -> dict[str, Any]:
    """Parameters of the embedding of a preset."""
    return {k: v for k, v in presets()[name]["embedding"].items() if k != "kind"}
