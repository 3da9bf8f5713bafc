"""What takes turns in compare.py: a peer in a process of its own, or the binary, resumed.

All trainers start from job["weights"], for the binary in the folder job["start"], and see the
batches of job["batches"]. `job` also holds n, k, batch, width, lr, seed, threads, the held-out
rows, the binary, its data and a folder for its runs.
"""

import json
import multiprocessing
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import peers
from megadict_tools.errors import ERROR, ToolError, one_line

OURS = "megadict"
SHUFFLE_BUFFER = 262144  # rows: the binary's own default
EVAL_BLOCK = 512  # rows


def peak_rss(pid: int | str = "self") -> int:
    """Bytes. (rusage would count what the parent had in memory when it forked.)"""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


# ---- peers ---------------------------------------------------------------------------------------

class PeerProcess:
    """A peer behind a pipe; every request returns (answer, peak memory so far)."""

    def __init__(self, name: str, job: dict):
        os.dup2(2, 1)  # the peers' own remarks
        torch.set_num_threads(job["threads"])
        self.job, self.done = job, 0
        self.trainer = peers.PEERS[name].build(job["width"], peers.Settings(
            job["n"], job["k"], job["seed"], lr=job["lr"], batch=job["batch"], auxk=False,
            start=load_file(job["weights"])))

    def serve(self, pipe):
        pipe.send(("ready", peak_rss()))
        while True:
            request, *values = pipe.recv()
            pipe.send((getattr(self, request)(*values), peak_rss()))

    def train(self, warmup: int, steps: int, limit_s: float) -> list[float]:
        """Seconds of the steps that count: at least one, fewer than `steps` past the limit."""
        seconds, begin = [], time.monotonic()
        while len(seconds) < steps:
            x = self.batch()
            start = time.monotonic()
            self.trainer.step(x)
            end = time.monotonic()
            late = end - begin > limit_s
            if warmup > 0:
                warmup = 0 if late else warmup - 1
                continue
            seconds.append(end - start)
            if late:
                break
        return seconds

    def batch(self) -> torch.Tensor:
        numbers = self.job["batch"] * self.job["width"]
        x = np.fromfile(self.job["batches"], np.float32, numbers, offset=4 * numbers * self.done)
        self.done += 1
        return torch.from_numpy(x.reshape(-1, self.job["width"]))

    def steps_done(self) -> int:
        return self.done

    def measure(self) -> dict:
        self.trainer.end()
        held_out = torch.from_numpy(np.load(self.job["held_out"]))
        return peers.measure(self.trainer.reconstruct, held_out, self.job["n"], EVAL_BLOCK)


def peer_main(pipe, name: str, job: dict):
    try:
        PeerProcess(name, job).serve(pipe)
    except (KeyboardInterrupt, EOFError):  # the other end has gone
        pass
    except Exception as error:
        pipe.send((f"{type(error).__name__}: {one_line(error)}", None))


class Trainer:
    """A row of the table: what was measured, and how to measure more."""

    def __init__(self, name: str, label: str, job: dict):
        self.name, self.label, self.job = name, label, job
        self.rounds: list[dict] = []
        self.peak = self.done = 0

    def rates(self) -> list[float]:
        return [rate for part in self.rounds for rate in part["tokens_per_s"]]


class Peer(Trainer):
    def __init__(self, name: str, job: dict):
        super().__init__(name, peers.PEERS[name].versioned_label(), job)
        self.process = None

    def train(self, warmup: int, steps: int, limit_s: float) -> list[float]:
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=peer_main, args=(theirs, self.name, self.job),
                                           daemon=True)
            self.process.start()
            theirs.close()
            self._answer()
        seconds = self._ask("train", warmup, steps, limit_s)
        self.done = self._ask("steps_done")
        return [self.job["batch"] / s for s in seconds]

    def _ask(self, *request):
        self.pipe.send(request)
        return self._answer()

    def _answer(self):
        try:
            answer, peak = self.pipe.recv()
        except EOFError:
            raise ToolError(ERROR, f"{self.label} ended without an answer, as for lack of memory",
                            "--restart holds one trainer at a time") from None
        if peak is None:
            raise ToolError(ERROR, f"{self.label} failed: {answer}")
        self.peak = max(self.peak, peak)
        return answer

    def measure(self) -> dict:
        peak = self.peak
        found = self._ask("measure")
        self.peak = peak  # of training
        return found

    def close(self):
        if self.process is not None:
            self.process.terminate()
            self.process.join()
            self.pipe.close()
            self.process, self.done = None, 0


# ---- ours ----------------------------------------------------------------------------------------

class Ours(Trainer):
    """`settings`: fields besides, name and value in turns; the label shows them."""

    def __init__(self, encode: str, optimizer: str, job: dict, settings: tuple = ()):
        shown = "".join(f", {name} {value}" for name, value in zip(settings[::2], settings[1::2]))
        super().__init__(OURS, f"Megadict {encode}, {optimizer}{shown}", job)
        named = [f"--{word}" if i % 2 == 0 else word for i, word in enumerate(settings)]
        self.words = ["--kernels.encode", encode, "--optim.name", optimizer,
                      "--model.init_from", job["start"], *named]
        self.run, self.folders = None, 0

    def train(self, warmup: int, steps: int, limit_s: float) -> list[float]:
        if self.run is None:
            self.folders += 1
            self.run = self.job["folder"] / f"{self.label}.{self.folders}".replace(" ", "_")
        first = self.done + warmup
        self.done = first + steps
        self.peak = max(self.peak, run_binary(self.job, self.run, self.done, self.job["lr"],
                                              *self.words, "--run.resume", "auto"))
        lines = map(json.loads, (self.run / "metrics.jsonl").read_text().splitlines())
        return [line["tokens_per_s"] for line in lines
                if "tokens_per_s" in line and line["step"] > first]

    def measure(self) -> dict:
        parts = read_weights(self.run / "final")

        def reconstruct(x):
            xhat, codes = peers.topk_forward(parts, self.job["k"], x)
            return xhat, codes > 0

        held_out = torch.from_numpy(np.load(self.job["held_out"]))
        return peers.measure(reconstruct, held_out, self.job["n"], EVAL_BLOCK)

    def close(self):
        if self.run is not None:
            shutil.rmtree(self.run)
        self.run, self.done = None, 0


def read_weights(folder: Path) -> dict:
    """Of a checkpoint of one process, without the optimiser's state."""
    with safe_open(folder / "part_00_of_01.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}


def run_binary(job: dict, run: Path, steps: int, lr: float, *words) -> int:
    """`megadict train` up to step `steps`; its peak memory in bytes."""
    command = [job["binary"], "train", "--data.path", job["data"], "--run.dir", run,
               "--model.n_latents", job["n"], "--model.k", job["k"],
               "--data.batch_size", job["batch"], "--data.tokens", steps * job["batch"],
               "--data.shuffle_buffer", SHUFFLE_BUFFER, "--optim.lr", lr,
               "--optim.warmup_steps", 0, "--optim.decay_fraction", 0, "--dead.auxk_alpha", 0,
               "--log.every_steps", 1, "--checkpoint.every_minutes", 0, "--checkpoint.keep", 1,
               "--eval.tokens", 1, "--run.seed", job["seed"], "--run.threads", job["threads"],
               *words]
    peak = 0
    with open(job["folder"] / "binary.log", "w+") as log:
        process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log)
        try:
            while process.poll() is None:
                peak = max(peak, peak_rss(process.pid))
                time.sleep(0.02)
        finally:
            process.kill()
        if process.returncode:
            log.seek(0)
            said = [line for line in log if line.startswith("megadict:")] or [" no words"]
            raise ToolError(max(process.returncode, ERROR), said[-1].split(":", 1)[1].strip())
    return peak
