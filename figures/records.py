"""Records of runs, a JSON file each, read and checked against `schema.json`."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

Record = dict[str, Any]
SCHEMA = Path(__file__).with_name("schema.json")


def read_records(folder: str | os.PathLike) -> list[Record]:
    """Read the records of a folder of results that have no error; as `read_all`."""
    return [record for record in read_all(folder) if "error" not in record]


def read_all(folder: str | os.PathLike) -> list[Record]:
    """Read the records of all runs in a folder of results.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If a file is not as the schema says; the message has its name and the key.
    """
    paths = sorted(Path(folder, "runs").glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"no results: {Path(folder, 'runs')} has no .json file")
    return [_read(path) for path in paths]


def _read(path: Path) -> Record:
    try:
        record = json.loads(path.read_text(encoding="utf8"))
        check(record)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return record


def check(record: Any) -> None:
    """Hold a record against the schema.

    Raises
    ------
    ValueError
        If it is otherwise; the message names the key.

    Examples
    --------
    >>> run = {"dataset": "d", "method": "mine", "parameters": {}, "seed": 0}
    >>> results = {"bits": {"codes": 80}, "compression_ratio": 4, "metrics": {"test_accuracy": 90.5}}
    >>> check({"specification": run, **results})
    >>> check({"specification": run | {"seed": "a"}, **results})
    Traceback (most recent call last):
        ...
    ValueError: specification.seed: 'a' is not of type 'integer'
    """
    from jsonschema.exceptions import best_match

    if error := best_match(_validator().iter_errors(record)):
        place = ".".join(map(str, error.absolute_path))
        raise ValueError(f"{place}: {error.message}" if place else error.message)


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf8")))
