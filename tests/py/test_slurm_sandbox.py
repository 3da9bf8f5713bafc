"""tools/slurm_sandbox.sh: two clusters at once, nothing left behind, and what it refuses."""

import shutil
import subprocess

import pytest
from slurm_box import Sandbox, new_folder, require_slurm, sandbox, wait_for  # noqa: F401

pytestmark = pytest.mark.slow
IDLE = ["n1|idle", "n2|idle"]
# What the script uses before it looks for SLURM.
PLAIN_TOOLS = ("basename", "bash", "cat", "dirname", "env", "grep", "hostname", "id", "mkdir", "sed")


def nodes(box: Sandbox) -> list[str]:
    return box.run("sinfo", "-h", "-N", "-o", "%N|%T").split()


def refused(done: subprocess.CompletedProcess, code: int, *parts: str) -> None:
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (code, 1), done.stdout + done.stderr
    assert all(part in lines[0] for part in parts), lines[0]


def test_two_sandboxes_do_not_meet(sandbox, repo_root):  # noqa: F811
    other = Sandbox(repo_root, new_folder())
    started = other.call("up")
    assert started.returncode == 0, started.stdout + started.stderr
    number = other.run("sbatch", "--parsable", "--chdir=/tmp", "--output=/dev/null", "--wrap", "sleep 600").strip()
    other.wait_for_state(number, "RUNNING")
    assert sandbox.run("squeue", "-h") == "" and nodes(sandbox) == IDLE
    stopped = other.call("down")
    assert (stopped.returncode, stopped.stdout) == (0, "sandbox down\n"), stopped.stderr
    assert not other.folder.exists()
    assert wait_for("the other's processes to end", lambda: not other.processes(), 60)
    assert nodes(sandbox) == IDLE


def test_what_runs_in_it_gets_the_settings_of_two_nodes_on_one_machine(sandbox):  # noqa: F811
    kept = sandbox.run("env").splitlines()
    assert "SLURM_PMIX_FENCE=ring" in kept and "OMPI_MCA_btl=tcp,self" in kept
    assert f"SLURM_CONF={sandbox.folder}/slurm.conf" in kept


def test_a_second_one_in_the_same_folder_is_refused(sandbox):  # noqa: F811
    refused(sandbox.call("up"), 1, "a sandbox already runs in", str(sandbox.folder))
    assert nodes(sandbox) == IDLE


def test_refusals_without_a_sandbox(repo_root, tmp_path):
    require_slurm()
    box = Sandbox(repo_root, tmp_path / "none")
    refused(box.call("starrt"), 2, 'not "starrt"')
    refused(box.call("status"), 1, "no sandbox runs in")
    refused(box.call("run", "sinfo"), 1, "no sandbox runs in", "slurm_sandbox.sh up")
    refused(Sandbox(repo_root, tmp_path / ("x" * 80)).call("up"), 1, "is too long")
    down = box.call("down")
    assert (down.returncode, "no sandbox runs in" in down.stdout) == (0, True)
    assert not box.folder.exists()


def test_a_folder_with_other_files_is_left_alone(repo_root):
    require_slurm()
    folder = new_folder()
    (folder / "mine").write_text("x")
    box = Sandbox(repo_root, folder)
    refused(box.call("up"), 1, "holds other files")
    assert box.call("down").returncode == 0
    assert [path.name for path in folder.iterdir()] == ["mine"]
    shutil.rmtree(folder)


def test_without_the_packages_it_says_which(repo_root, tmp_path):
    """A PATH in which neither SLURM's clients nor apt-get are."""
    (tmp_path / "bin").mkdir()
    for tool in PLAIN_TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    env = {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path), "SANDBOX_DIR": str(tmp_path / "box")}
    done = subprocess.run([repo_root / "tools" / "slurm_sandbox.sh", "up"], env=env, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=60)  # fmt: skip
    refused(done, 1, "not installed: ", "srun", "sinfo", "mpirun", "apt-get install --no-install-recommends slurmctld")
    assert not (tmp_path / "box").exists()


@pytest.mark.parametrize("port", ["80 81", "-5", "99999999"])
def test_a_port_that_is_none_is_refused(repo_root, port):
    require_slurm()
    folder = new_folder()
    folder.rmdir()
    box = Sandbox(repo_root, folder)
    box.env = box.env | {"SANDBOX_PORT": port}
    refused(box.call("up"), 1, "SANDBOX_PORT", port)
    assert not folder.exists()
