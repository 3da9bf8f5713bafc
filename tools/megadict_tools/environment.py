"""The Python environment that tools/bootstrap.sh makes, for tools that a user starts by name."""

import importlib.util
import os
import sys
from pathlib import Path

NEEDED = ("torch", "numpy", "h5py", "safetensors", "transformers")


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def use_environment() -> None:
    """Goes on in the environment where this Python lacks what the tools import; one line and exit 1
    where there is none."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # the tools draw their own progress line
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return
    home = os.environ.get("MEGADICT_HOME") or os.path.join(os.path.expanduser("~"), ".cache", "megadict")
    python = Path(home, "venv", "bin", "python")
    if os.access(python, os.X_OK) and Path(sys.prefix) != python.parents[1]:
        os.execv(python, [str(python), *sys.argv])
    print(f"{Path(sys.argv[0]).name}: this Python has no {missing[0]}. hint: tools/bootstrap.sh, or the "
          "Python of your own environment", file=sys.stderr)
    sys.exit(1)
