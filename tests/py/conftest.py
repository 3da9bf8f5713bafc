"""Where the tests find the repository, the built binary and the large data that is not committed.

MEGADICT_BIN          the megadict binary; otherwise build/<preset>/ is searched
MEGADICT_SHARED_DATA  the folder with tinylm-activations/ and the like; default ../shared/data
MEGADICT_HOME         holds peers/, what tests/requirements-peers.txt lists; default ~/.cache/megadict
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]
PRESETS = ("release", "debug", "asan", "cuda")

# Nothing in these tests may reach for a model hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path[:0] = [str(REPO_ROOT / "tools"), str(REPO_ROOT / "tools" / "bench")]
# Last, so that the environment's own packages win.
MEGADICT_HOME = Path(os.environ.get("MEGADICT_HOME", Path.home() / ".cache" / "megadict")).expanduser()
sys.path.append(str(MEGADICT_HOME / "peers"))


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: a minute or more; left out by tests/run.sh --quick")


def find_binary() -> Path | None:
    if named := os.environ.get("MEGADICT_BIN"):
        return Path(named).resolve()
    built = [REPO_ROOT / "build" / preset / "bin" / "megadict" for preset in PRESETS]
    return next((path for path in built if os.access(path, os.X_OK)), None)


def find_shared_data() -> Path:
    return Path(os.environ.get("MEGADICT_SHARED_DATA", REPO_ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return REPO_ROOT


@pytest.fixture(scope="session")
def megadict_bin() -> Path:
    """The built binary. A named one that is missing is an error, an unbuilt one a named skip."""
    binary = find_binary()
    if binary is None:
        pytest.skip("no megadict binary: cmake --build --preset release, or set MEGADICT_BIN")
    assert os.access(binary, os.X_OK), f"MEGADICT_BIN={binary} is not an executable file"
    return binary


@pytest.fixture(scope="session")
def shared_data():
    """shared_data("tinylm-activations/x.bin") -> its path, or a skip that names what is absent."""

    def path_of(relative: str) -> Path:
        path = find_shared_data() / relative
        if not path.exists():
            pytest.skip(f"shared data absent: {relative} (set MEGADICT_SHARED_DATA)")
        return path

    return path_of


SCREENS = {"screen_int8": "avx512vnni", "screen_bf16": "avx512bf16"}


@pytest.fixture(scope="session")
def need_screen(megadict_bin):
    """need_screen("screen_int8") -> that, or a skip that names the instructions that the processor lacks."""
    known = subprocess.run([megadict_bin, "info"], capture_output=True, text=True, check=True).stdout.split()

    def encode_of(encode: str) -> str:
        if SCREENS[encode] not in known:
            pytest.skip(f"this processor has no {SCREENS[encode]}")
        return encode

    return encode_of
