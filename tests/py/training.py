"""Small training runs for the tests of the train and eval commands."""

import json
import os
import subprocess
import time
from pathlib import Path

MPI_ENV = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMP_NUM_THREADS": "1",
}


def command(binary, words, ranks=1):
    mpi = ["mpirun", "-n", str(ranks), "--oversubscribe", "--bind-to", "none"] if ranks > 1 else []
    return [*mpi, str(binary), *map(str, words)]


def start(binary, words, ranks=1, **more):
    """A running command; its own process group, so that a test can signal the launcher alone."""
    return subprocess.Popen(
        command(binary, words, ranks),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **MPI_ENV},
        **more,
    )


def run(binary, words, ranks=1, timeout=240):
    return subprocess.run(
        command(binary, words, ranks),
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **MPI_ENV},
    )


def synth(binary, out: Path, rows=20000, latents=64, d=24, k=3, seed=1):
    words = ["data", "synth", "--out", out, "--n_latents", latents, "--d", d, "--k", k]
    done = run(binary, [*words, "--rows", rows, "--seed", seed])
    assert done.returncode == 0, done.stderr
    return out


def train_words(data, run_dir, **fields):
    base = {
        "data.path": data,
        "run.dir": run_dir,
        "model.n_latents": 67,
        "model.k": 3,
        "data.batch_size": 101,
        "data.tokens": 101 * 60,
        "optim.lr": "3e-3",
        "log.every_steps": 10,
    }
    base.update({name.replace("__", "."): value for name, value in fields.items()})
    return ["train", *[word for name, value in base.items() for word in (f"--{name}", value)]]


def metrics(run_dir):
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def steps_logged(run_dir):
    return [line["step"] for line in metrics(run_dir) if "fvu" in line]


def weights(folder):
    """Name -> bytes of every tensor over all parts, so that two meshes can be compared."""
    from safetensors.numpy import load_file

    tensors = {}
    for part in sorted(Path(folder).glob("part_*.safetensors")):
        for name, value in load_file(part).items():
            tensors.setdefault(name, []).append(value)
    return tensors


def ranks_of(run_dir):
    """Process ids of the ranks that train into `run_dir`."""
    return [int(p.name) for p in Path("/proc").glob("[0-9]*") if is_rank_of(p, run_dir)]


def is_rank_of(proc: Path, run_dir):
    try:
        words = (proc / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"mpirun" not in words[0] and str(run_dir).encode() in words


def gone(pid, limit_s=20):
    """Whether the process has ended, or ends soon."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def same_bits(a, b):
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    return all(
        len(left[n]) == len(right[n]) and all((x == y).all() for x, y in zip(left[n], right[n]))
        for n in left
    )


def held_out_fvu(run_dir):
    return json.loads((Path(run_dir) / "final" / "eval.json").read_text())["fvu"]


def mesh_words(shape):
    return {"mesh__data": shape[0], "mesh__feature": shape[1]}
