"""What a result comes from: versions, processor and commit."""

import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "numba", "scipy", "scikit-learn", "dpq-ref")


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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
