"""What a result comes from: versions, processor and commit; and whether BLAS knows the processor."""

import os
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "numba", "scipy", "scikit-learn", "dpq-ref")

# Of OpenBLAS, those without AVX-512: it takes processors that it does not know for the next older one.
NARROW_CORES = {
    *("Prescott", "Core2", "Penryn", "Dunnington", "Nehalem", "Sandybridge", "Haswell"),
    *("Barcelona", "Bobcat", "Bulldozer", "Piledriver", "Steamroller", "Excavator", "Zen"),
}
WIDE = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}  # what the core SkylakeX needs


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Versions, processor and commit that results come from."""
    here = Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return {
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in PACKAGES},
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "commit": git.stdout.strip() or None,
    }


def of_backend(backend: str | None) -> dict[str, Any]:
    """Back end that results come from, and of CuPy the device, its driver and the version.

    Examples
    --------
    >>> of_backend(None)
    {'backend': 'numba'}
    """
    if backend != "cupy":
        return {"backend": backend or "numba"}
    import cupy

    runtime = cupy.cuda.runtime
    device = runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    major, minor = divmod(runtime.driverGetVersion(), 1000)
    driver = f"CUDA {major}.{minor // 10}"
    return {"backend": backend, "device": device, "driver": driver, "cupy": cupy.__version__}


def blas_libraries() -> list[dict[str, Any]]:
    """BLAS that this process has loaded, as threadpoolctl tells: version, threads, core type, path."""
    import scipy.linalg.cython_blas  # noqa: F401 (that of Numba's products)
    from threadpoolctl import threadpool_info

    return [library for library in threadpool_info() if library["user_api"] == "blas"]


def slow_blas(flags: set[str], libraries: list[dict[str, Any]]) -> str | None:
    """Advice for a processor with AVX-512 that OpenBLAS takes for one without; None where all is well.

    Parameters
    ----------
    flags : set of str
        Of the processor, as in /proc/cpuinfo.
    libraries : list of dict
        As `blas_libraries`.

    Examples
    --------
    >>> slow_blas(WIDE, [{"internal_api": "openblas", "architecture": "Zen"}])
    'OpenBLAS takes this processor for a Zen, ... set OPENBLAS_CORETYPE=SkylakeX'
    >>> slow_blas(WIDE, [{"internal_api": "openblas", "architecture": "SkylakeX"}])
    """
    for library in libraries:
        core = library.get("architecture")
        if library["internal_api"] == "openblas" and core in NARROW_CORES and flags >= WIDE:
            return (
                f"OpenBLAS takes this processor for a {core}, without AVX-512, at about half its rate: "
                "set OPENBLAS_CORETYPE=SkylakeX"
            )
    return None


def machine() -> dict[str, str]:
    """Versions, machine, back ends, threads and BLAS, each as a line: what `dpq-ref info` tells."""
    import numba

    from dpq_ref import backend

    libraries = blas_libraries()
    told = {name: str(value) for name, value in environment().items()}
    told["cores"] = str(os.cpu_count())
    told["back ends"] = ", ".join(backend.MODULES)
    told["threads of numba"] = str(numba.get_num_threads())
    for i, library in enumerate(libraries, 1):
        told[f"BLAS {i}"] = (
            f"{library['internal_api']} {library['version']}, core {library.get('architecture', 'unknown')}, "
            f"{library['num_threads']} threads, {library['filepath']}"
        )
    return told | {"advice": slow_blas(processor_flags(), libraries) or "none"}


def processor_flags() -> set[str]:
    """Of the first processor, where the system tells them; else none."""
    return set(_cpuinfo("flags").split())


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    """First value of a key of /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.split("\t")[0] == key), "")
