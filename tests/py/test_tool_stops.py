"""A tool that is asked to stop does so, wherever in Python the signal finds it."""

import signal
import subprocess
import sys

import pytest

CALLBACK = """
import os, sys, time, weakref
sys.path.insert(0, {tools!r})
from megadict_tools.errors import main_guard

class Thing: pass

def in_callbacks():
    # Python drops what is raised while the callback of a weak reference runs.
    for _ in range(2):
        thing = Thing()
        watch = weakref.ref(thing, lambda _: os.kill(os.getpid(), {number}))
        del thing
    time.sleep(60)

sys.exit(main_guard("tool", in_callbacks))
"""


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGTERM, 143, ""), (signal.SIGINT, 130, "interrupted")])
def test_a_signal_inside_a_callback_is_not_lost(repo_root, number, code, said):
    program = CALLBACK.format(tools=str(repo_root / "tools"), number=int(number))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert said in done.stderr
