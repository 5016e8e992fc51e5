"""What is told of the machine, and when it is told that BLAS is slow: on made-up processors."""

import pytest
from click.testing import CliRunner

from dpq_ref import environment
from dpq_ref.cli import main

AVX2 = {"fma", "avx", "avx2"}


def openblas(core, api="openblas"):
    return {
        "user_api": "blas",
        "internal_api": api,
        "architecture": core,
        "version": "1.2",
        "num_threads": 3,
        "filepath": f"/{core}.so",
    }


@pytest.mark.parametrize(
    "flags, libraries, core",
    [
        (environment.WIDE | AVX2, [openblas("Zen")], "Zen"),
        (environment.WIDE | AVX2, [openblas("SkylakeX"), openblas("Haswell")], "Haswell"),
        (environment.WIDE, [openblas("Prescott")], "Prescott"),
        (environment.WIDE, [openblas("SkylakeX"), openblas("Cooperlake"), openblas("newer")], None),
        (AVX2, [openblas("Zen")], None),
        (AVX2 | {"avx512f"}, [openblas("Zen")], None),  # not all that the wider core needs
        (environment.WIDE, [openblas("Haswell", api="blis")], None),
        (environment.WIDE, [{"internal_api": "mkl"}, {"internal_api": "openblas"}], None),
        (environment.WIDE, [], None),
        (set(), [openblas("Zen")], None),
    ],
)
def test_when_blas_is_slow(flags, libraries, core):
    advice = environment.slow_blas(flags, libraries)
    if core is None:
        assert advice is None
    else:
        assert f"for a {core}," in advice and "OPENBLAS_CORETYPE=SkylakeX" in advice


@pytest.mark.parametrize("core, advice", [("Zen", "OPENBLAS_CORETYPE=SkylakeX"), ("SkylakeX", "none")])
def test_info(monkeypatch, core, advice):
    monkeypatch.setattr(environment, "blas_libraries", lambda: [openblas(core)])
    monkeypatch.setattr(environment, "processor_flags", lambda: environment.WIDE)
    done = CliRunner().invoke(main, ["info"])
    assert done.exit_code == 0, done.output
    lines = dict(line.split(maxsplit=1) for line in done.output.splitlines())
    assert lines["numpy"] and lines["processor"] and lines["advice"].endswith(advice)
    assert f"openblas 1.2, core {core}, 3 threads, /{core}.so" in done.output
    assert "numpy, numba" in done.output


def test_info_of_this_machine():
    told = environment.machine()
    assert told["BLAS 1"] and int(told["cores"]) >= 1
    assert environment.environment()["processor"] == told["processor"]


@pytest.mark.parametrize("command", [["train", "lm"], ["compare"]])
def test_a_long_run_says_it_once_at_its_start(monkeypatch, tmp_path, command):
    monkeypatch.setattr(environment, "blas_libraries", lambda: [openblas("Zen")])
    monkeypatch.setattr(environment, "processor_flags", lambda: environment.WIDE)
    done = CliRunner().invoke(main, [*command, "--data", str(tmp_path), "--output", str(tmp_path / "out")])
    assert done.exit_code == 1  # there is no data
    assert done.stderr.count("OPENBLAS_CORETYPE=SkylakeX") == 1
    assert "OPENBLAS_CORETYPE" not in done.stdout
