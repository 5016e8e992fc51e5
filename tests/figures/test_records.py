"""Records and their schema: what the harness writes fits, what does not is refused by file and key."""

import copy
import json
from pathlib import Path

import pytest

from figures import records, rows
from figures.records import SCHEMA, check, read_all, read_records

ROOT = Path(__file__).parents[2]
RECORD = {
    "name": "mine",
    "specification": {"dataset": "d", "method": "mine", "parameters": {"n_codes": 4}, "seed": 0},
    "bits": {"codes": 80},
    "compression_ratio": 4.0,
    "metrics": {"test_accuracy": 90.5},
}


def test_the_schema_is_one():
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(json.loads(SCHEMA.read_text(encoding="utf8")))


@pytest.mark.parametrize("folder", sorted(path.parent for path in ROOT.glob("figures/results/*/runs")))
def test_committed_results_fit(folder):
    assert len(read_all(folder)) == len(list(folder.glob("runs/*.json")))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("specification.seed", "0", "specification.seed: '0' is not of type 'integer'"),
        ("specification.method", None, "specification: 'method' is a required property"),
        ("specification.parameters", {"a": [1]}, "specification.parameters.a: .1. is not of type"),
        ("metrics.test_accuracy", "high", "metrics.test_accuracy: 'high' is not of type 'number'"),
        ("metrics", None, "'metrics' is a required property"),
        ("bits", {}, "bits: "),
        ("bits.codes", 1.5, "bits.codes: 1.5 is not of type 'integer'"),
        ("compression_ratio", 0, "compression_ratio: 0 is less than or equal to the minimum of 0"),
        ("seconds", {"fit": -1}, "seconds.fit: -1 is less than"),
    ],
)
def test_what_does_not_fit_is_refused_by_file_and_key(tmp_path, place, value, message):
    record = copy.deepcopy(RECORD)
    *outer, key = place.split(".")
    part = record
    for name in outer:
        part = part[name]
    if value is None:
        del part[key]
    else:
        part[key] = value
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"a.json: {message}"):
        read_all(tmp_path)


def test_a_record_needs_little_and_may_have_more(tmp_path):
    little = {key: RECORD[key] for key in ("specification", "bits", "compression_ratio", "metrics")}
    check(little)
    check(little | {"more": {"of": ["anything"]}})
    assert rows.rows_of([little])[0]["seconds"] is None


def test_a_failed_run_needs_a_name_and_its_error(tmp_path):
    failed = {key: RECORD[key] for key in ("name", "specification")} | {"error": "ValueError: no"}
    check(failed)
    with pytest.raises(ValueError, match="'name' is a required property"):
        check({key: failed[key] for key in ("specification", "error")})
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.json").write_text(json.dumps(failed))
    (tmp_path / "runs" / "b.json").write_text(json.dumps(RECORD))
    assert len(read_all(tmp_path)) == 2 and read_records(tmp_path) == [RECORD]


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
def test_a_file_that_is_no_record_is_named(tmp_path, text):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.json").write_bytes(text.encode("utf8", "surrogateescape"))
    with pytest.raises(ValueError, match="a.json: "):
        read_all(tmp_path)


def test_the_page_of_the_format_has_every_key():
    schema = json.loads(SCHEMA.read_text(encoding="utf8"))
    page = (ROOT / "docs" / "results_format.md").read_text(encoding="utf8")
    keys = schema["properties"] | {
        f"specification.{name}": key
        for name, key in schema["properties"]["specification"]["properties"].items()
    }
    for name, key in keys.items():
        kinds = key["type"] if isinstance(key["type"], list) else [key["type"]]
        needed = "yes" if name.split(".")[-1] in json.dumps(_needed(schema)) else ""
        assert f"| `{name}` | {' or '.join(kinds)} | {needed} | {key['description']} |" in page
    for column in rows.COLUMNS:
        assert f"| `{column}` |" in page


def _needed(schema):
    inner = schema["properties"]["specification"]["required"]
    return [*schema["required"], *schema["else"]["required"], *inner]


def test_the_shortest_record_of_the_page_is_one():
    page = (ROOT / "docs" / "results_format.md").read_text(encoding="utf8")
    block = page.split("```json\n")[1].split("```")[0]
    check(json.loads(block))
    assert records.SCHEMA.is_file()
