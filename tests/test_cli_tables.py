"""The commands on tables, as a user types them."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from dpq_ref import cli_tables, load
from dpq_ref.cli import main
from dpq_ref.cli_tables import Parameter, Size
from dpq_ref.metrics import relative_error
from dpq_ref.tables import read_table, write_table

RNG = np.random.default_rng(0)
VECTORS = (RNG.standard_normal((60, 3)) @ RNG.standard_normal((3, 8))).astype(np.float32)
NAMES = [f"w{i}" for i in range(60)]


def run(*arguments, code=0, **options):
    result = CliRunner().invoke(main, [*map(str, arguments)], **options)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def folder(tmp_path):
    write_table(tmp_path / "t.txt", NAMES, VECTORS)
    (tmp_path / "f.txt").write_text("".join(f"{word} {60 - i}\n" for i, word in enumerate(NAMES)))
    return tmp_path


@pytest.fixture
def made(folder):
    run("compress", folder / "t.txt", "-o", folder / "t.safetensors", "--method", "scalar", "--ratio", 3)
    return folder / "t.safetensors"


def test_compress_says_what_the_file_is(folder):
    out = folder / "t.safetensors"
    arguments = "compress", folder / "t.txt", "-o", out, "--method", "low-rank", "--parameter", "rank=3"
    report = json.loads(run(*arguments, "--json"))
    table = load(out)
    assert report["bits"] == table.bits() and report["file_bytes"] == out.stat().st_size
    assert report["relative_error"] == relative_error(VECTORS, table.reconstruct()) < 1e-10  # of rank 3
    assert table.words == NAMES
    assert json.loads(run("inspect", out, "--json")).items() <= report.items()
    assert "low-rank" in run(*arguments)


def test_the_budget_in_three_ways(folder):
    files = []
    for name, size in (("a", ("--ratio", 4)), ("b", ("--bits", 3840)), ("c", ("--budget", "480B"))):
        files.append(folder / f"{name}.safetensors")
        run("compress", folder / "t.txt", "-o", files[-1], "--method", "scalar", *size)
    assert len({path.read_bytes() for path in files}) == 1
    assert sum(load(files[0]).bits().values()) <= 3840


def test_frequencies_change_what_is_learnt(folder):
    errors = []
    for more in ((), ("--frequencies", folder / "f.txt")):
        arguments = "--method", "pq", "--ratio", 4, "--json", *more
        errors.append(
            json.loads(run("compress", folder / "t.txt", "-o", folder / "a.safetensors", *arguments))
        )
    assert "weighted_relative_error" not in errors[0] and "weighted_relative_error" in errors[1]
    assert errors[0]["relative_error"] != errors[1]["relative_error"]


@pytest.mark.parametrize("weighted", [False, True])
def test_best_is_the_least_error_of_all_tried(folder, weighted):
    out, judge = folder / "b.safetensors", "weighted_relative_error" if weighted else "relative_error"
    arguments = "compress", folder / "t.txt", "-o", out, "--method", "best", "--bits", 9000
    arguments += ("--frequencies", "zipf") if weighted else ()
    report = json.loads(run(*arguments, "--json"))
    assert len(report["tried"]) > 5
    assert report[judge] == min(entry[judge] for entry in report["tried"])
    assert sum(load(out).bits().values()) <= 9000
    front = [entry for entry in report["tried"] if entry["pareto"]]
    assert report["method"] in [entry["method"] for entry in front]
    assert f"Pareto front, times smaller and {judge.replace('_', ' ')}:" in run(*arguments)
    assert "takes one of" in run(*arguments, "--parameter", "rank=3", code=2)


def test_a_table_without_words_is_judged_too(folder):
    write_table(folder / "t.npy", None, VECTORS)
    run("compress", folder / "t.npy", "-o", folder / "n.safetensors", "--method", "half")
    report = json.loads(run("evaluate", folder / "n.safetensors", folder / "t.npy", "--json"))
    assert report["words"] == {} and report["metrics"]["relative_error"] < 1e-6
    assert len(report["worst"]) == 10 and all(0 <= entry["word"] < 60 for entry in report["worst"])


def test_look_up_and_neighbours(made):
    table = load(made)
    line = run("lookup", made, "w3").split()
    assert line[0] == "w3"
    np.testing.assert_array_equal(np.float32(line[1:]), table["w3"])
    from_input = run("lookup", made, "--json", input="w1\nw2\n").splitlines()
    assert [json.loads(x)["word"] for x in from_input] == ["w1", "w2"]
    similar = json.loads(run("similar", made, "w3", "-n", 2, "--json"))
    assert similar["similar"] == [list(pair) for pair in table.most_similar("w3", 2)]
    assert run("lookup", made, "W3", code=1) == "Error: no word 'W3'; there is 'w3'\n"


def test_rows_by_number_where_there_are_no_words(folder):
    write_table(folder / "t.npy", None, VECTORS)
    out = folder / "n.safetensors"
    run("compress", folder / "t.npy", "-o", out, "--method", "half")
    assert run("lookup", out, 3).split()[0] == "3"
    (found,) = json.loads(run("similar", out, 3, "-n", 1, "--json"))["similar"]
    assert found[0] != 3
    assert "60" in run("lookup", out, 60, code=1) and "numbers of rows" in run("lookup", out, "x", code=1)
    (folder / "words").write_text("\n".join(NAMES) + "\n")
    run("compress", folder / "t.npy", "-o", out, "--method", "half", "--words", folder / "words")
    assert load(out).words == NAMES
    (folder / "words").write_text("a\n")
    assert "1 words" in run(
        "convert", folder / "t.npy", folder / "x.txt", "--words", folder / "words", code=1
    )


@pytest.mark.parametrize(
    ("method", "parameter", "what"),
    [("pq", "rows_per_code", "codebooks: 32 of"), ("iiq", "max_train_rows", "rotation: 40 of")],
)
def test_a_large_table_is_learned_from_a_sample_and_it_says_so(folder, monkeypatch, method, parameter, what):
    write_table(folder / "t.npy", None, VECTORS)
    monkeypatch.setattr(
        cli_tables, "SAMPLES", {"rows_per_code": (8, "codebooks"), "max_train_rows": (40, "rotation")}
    )
    size = "--parameter", "n_codes=4" if method == "pq" else "n_bits=4"
    groups = ("--parameter", "n_groups=2") if method == "pq" else ()
    arguments = (
        "compress",
        folder / "t.npy",
        "-o",
        folder / "x.safetensors",
        "--json",
        "--method",
        method,
        *size,
        *groups,
    )

    def learned_from(*more):
        return json.loads(run(*arguments, *more))["learned_from"]

    assert learned_from() == "all rows"  # it is not large
    monkeypatch.setattr(cli_tables, "LARGE", VECTORS.nbytes)
    assert learned_from().startswith(what) and "of 60 rows" in learned_from()
    assert learned_from("--parameter", f"{parameter}=null") == "all rows"
    assert json.loads(run(*arguments[:5], "--method", "low-rank", "--ratio", 2))["learned_from"] == "all rows"


def test_a_bar_on_a_terminal_only(folder, monkeypatch):
    arguments = ["compress", folder / "t.txt", "-o", folder / "t.safetensors", "--ratio", 2, "--json"]
    quiet = CliRunner().invoke(main, [*map(str, arguments)])
    assert quiet.stderr == "" and json.loads(quiet.stdout)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    loud = CliRunner().invoke(main, [*map(str, arguments)])
    assert "error" in loud.stderr and json.loads(loud.stdout)


def test_what_fails_leaves_the_file_of_before(folder, made, monkeypatch):
    before = made.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    CliRunner().invoke(main, ["compress", str(folder / "t.txt"), "-o", str(made), "--method", "half"])
    assert made.read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["f.txt", "t.safetensors", "t.txt"]


def test_evaluate(folder, made):
    (folder / "sets").mkdir()
    lines = [f"w{i}\tw{i + 1}\t{i}\n" for i in range(55)]
    (folder / "sets" / "pairs.tsv").write_text("".join(lines))
    arguments = "evaluate", made, folder / "t.txt", "--sets", folder / "sets"
    report = json.loads(run(*arguments, "--json"))
    rows = load(made).reconstruct()
    assert report["metrics"]["relative_error"] == relative_error(VECTORS, rows)
    loss = np.linalg.norm(rows - VECTORS, axis=1) / np.linalg.norm(VECTORS, axis=1)
    assert [entry["word"] for entry in report["worst"][:2]] == [NAMES[i] for i in np.argsort(-loss)[:2]]
    assert set(report["words"]["word_similarity"]) == {"before", "after"}
    assert "->" in run(*arguments)
    write_table(folder / "other.txt", NAMES[:5], VECTORS[:5])
    assert "(5, 8)" in run("evaluate", made, folder / "other.txt", code=1)


def test_a_table_without_words_has_those_of_its_compressed_file(folder, made):
    np.save(folder / "t.npy", VECTORS)
    for more in ((), ("--frequencies", folder / "f.txt")):
        named, plain = (
            run("evaluate", made, folder / f"t.{kind}", *more, "--json") for kind in ("txt", "npy")
        )
        assert named == plain and '"word": "w' in plain


def test_convert_and_verify(folder, made):
    run("convert", made, folder / "back.bin")
    words, vectors, _ = read_table(folder / "back.bin")
    assert words == NAMES
    np.testing.assert_array_equal(vectors, load(made).reconstruct())
    assert json.loads(run("verify", made, "--json"))["whole"] is True
    content = made.read_bytes()
    made.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "checksum" in run("verify", made, code=1)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["-o", "x.npz"], 2, "ends in .safetensors"),
        (["-o", "x.safetensors", "--ratio", "4", "--budget", "1k"], 2, "takes one of them"),
        (["-o", "x.safetensors", "--method", "pq", "--parameter", "rank=3"], 1, "no parameter rank"),
        (["-o", "x.safetensors", "--method", "pq"], 1, "n_groups"),
        (["-o", "x.safetensors", "--method", "low-rank", "--ratio", "1000"], 1, "the nearest are"),
        (["-o", "x.safetensors", "--budget", "many"], 2, "as in 5MB"),
        (["-o", "x.safetensors", "--tensor", "a"], 1, "no .safetensors"),
        (
            ["-o", "no/folder/x.safetensors", "--method", "half"],
            2,
            "no/folder is no folder that can be written",
        ),
    ],
)
def test_errors_are_one_line(arguments, code, says, folder, monkeypatch):
    monkeypatch.chdir(folder)
    output = run("compress", "t.txt", *arguments, code=code)
    assert says in output and "Traceback" not in output
    assert not [path for path in folder.iterdir() if path.suffix in (".npz", ".safetensors")]


def test_debug_lets_the_error_through(folder):
    with pytest.raises(ValueError, match="n_groups"):
        CliRunner().invoke(
            main,
            ["--debug", "compress", str(folder / "t.txt"), "-o", str(folder / "x.safetensors")],
            catch_exceptions=False,
        )


@pytest.mark.parametrize(
    ("text", "size"), [("5MB", 5_000_000), ("1.5 KiB", 1536), ("12", 12), ("7B", 7), ("2G", 2 * 10**9)]
)
def test_sizes(text, size):
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize(
    ("text", "value"),
    [("64", 64), ("0.5", 0.5), ("True", True), ("row", "row"), ("a=b", "a=b")],
)
def test_parameters(text, value):
    assert Parameter().convert(f"x={text}", None, None) == ("x", value)
