"""The Python peers, one step at a time, and the yardstick that every trainer is held against.

A trainer is built from a width and `Settings`; it has step(x), end() after the last step, and
reconstruct(x) -> (xhat, active [rows, n] bool).
"""

import os
from dataclasses import dataclass
from typing import Callable

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

NEVER = 10**9  # steps


@dataclass
class Settings:
    n: int
    k: int
    seed: int = 0
    lr: float | None = None     # None = the peer's own rule
    warmup: int = 0             # steps
    steps: int | None = None    # length of the run for the peer's schedule; None = a constant rate
    batch: int = 0              # rows of a step, for sae-lens' bookkeeping
    auxk: bool = True           # as the peer has it, or off
    start: dict | None = None   # W_enc, W_dec [n, d], b_enc, b_dec; None = the peer's own

    def lr_by_rule(self, at_16k: float) -> float:
        return self.lr or at_16k / (self.n / 2**14) ** 0.5


def active(index: torch.Tensor, on: torch.Tensor, n: int) -> torch.Tensor:
    return torch.zeros(len(index), n, dtype=torch.bool).scatter_(1, index.long(), on)


class Driver:
    """step(x) trains, reconstruct(x) judges; end() comes before judging, go_on() before more."""

    def end(self):
        pass

    def go_on(self):
        pass


class Sparsify(Driver):
    """sparsify's module, optimiser and schedule, in the order of its Trainer's step: unit decoder,
    forward, FVU of the batch, parallel gradient removed, step. Its Trainer itself takes tokens."""

    def __init__(self, width: int, settings: Settings, optimizer: str):
        from sparsify import SparseCoder, SparseCoderConfig

        torch.manual_seed(settings.seed)
        self.n, self.schedule = settings.n, None
        self.mean_first = settings.start is None
        self.sae = SparseCoder(width, SparseCoderConfig(num_latents=settings.n, k=settings.k),
                               "cpu", dtype=torch.float32)
        if start := settings.start:
            copy_into({self.sae.encoder.weight: start["W_enc"], self.sae.W_dec: start["W_dec"],
                       self.sae.encoder.bias: start["b_enc"], self.sae.b_dec: start["b_dec"]})
        self.optimizer = self._signum(settings) if optimizer == "signum" else self._adam(settings)

    def _signum(self, settings: Settings):
        from schedulefree import ScheduleFreeWrapper
        from sparsify.sign_sgd import SignSGD

        out = ScheduleFreeWrapper(SignSGD(self.sae.parameters(), lr=settings.lr_by_rule(5e-3)),
                                  momentum=0.95)
        out.train()
        return out

    def _adam(self, settings: Settings):
        from transformers import get_linear_schedule_with_warmup

        out = torch.optim.Adam(self.sae.parameters(), lr=settings.lr_by_rule(2e-4))
        if settings.steps:
            self.schedule = get_linear_schedule_with_warmup(out, settings.warmup, settings.steps)
        return out

    def step(self, x: torch.Tensor):
        if self.mean_first:
            self.sae.b_dec.data = x.mean(0)
            self.mean_first = False
        self.sae.set_decoder_norm_to_unit_norm()
        self.sae(x).fvu.backward()
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.schedule:
            self.schedule.step()

    def end(self):
        if hasattr(self.optimizer, "eval"):
            self.optimizer.eval()  # schedule-free: from the point of the gradient to the average

    def go_on(self):
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()

    def save(self, folder):
        self.sae.save_to_disk(folder)

    def reconstruct(self, x: torch.Tensor):
        out = self.sae(x)
        return out.sae_out, active(out.latent_indices, out.latent_acts > 0, self.n)


class DictionaryLearning(Driver):
    """dictionary_learning's TopKTrainer."""

    def __init__(self, width: int, settings: Settings):
        from dictionary_learning.trainers.top_k import TopKTrainer

        more = {} if settings.auxk else {"auxk_alpha": 0}
        self.trainer = TopKTrainer(
            steps=settings.steps or NEVER, activation_dim=width, dict_size=settings.n,
            k=settings.k, layer=0, lm_name="", lr=settings.lr, warmup_steps=settings.warmup,
            seed=settings.seed, device="cpu", **more)
        self.steps = 0
        if start := settings.start:
            ae = self.trainer.ae
            copy_into({ae.encoder.weight: start["W_enc"], ae.decoder.weight: start["W_dec"].T,
                       ae.encoder.bias: start["b_enc"], ae.b_dec: start["b_dec"]})
            self.steps = 1  # its step 0 sets b_dec

    def step(self, x: torch.Tensor):
        self.trainer.update(self.steps, x)
        self.steps += 1

    def reconstruct(self, x: torch.Tensor):
        xhat, codes = self.trainer.ae(x, output_features=True)
        return xhat, codes > 0


class SaeLens(Driver):
    """sae-lens' TopKTrainingSAE under its SAETrainer. Its sparse codes have no backward pass on a
    CPU together with rescaling by the decoder's norm, its default, and are no faster without."""

    def __init__(self, width: int, settings: Settings):
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        torch.manual_seed(settings.seed)
        self.sae = TopKTrainingSAE(TopKTrainingSAEConfig(
            d_in=width, d_sae=settings.n, k=settings.k))
        more = {} if settings.auxk else {"dead_feature_window": NEVER}
        self.trainer = SAETrainer(SAETrainerConfig(
            total_training_samples=(settings.steps or NEVER) * settings.batch,
            train_batch_size_samples=settings.batch, lr=settings.lr or 3e-4,
            lr_end=settings.lr or 3e-4, lr_warm_up_steps=settings.warmup, **more),
            self.sae, iter(()))
        if start := settings.start:
            copy_into({self.sae.W_enc: start["W_enc"].T, self.sae.W_dec: start["W_dec"],
                       self.sae.b_enc: start["b_enc"], self.sae.b_dec: start["b_dec"]})

    def step(self, x: torch.Tensor):
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def reconstruct(self, x: torch.Tensor):
        codes = self.sae.encode(x)
        return self.sae.decode(codes), codes > 0


class EagerTopK(Driver):
    """What one writes by hand: dense codes, autograd, projection, fused Adam, unit decoder rows."""

    def __init__(self, width: int, settings: Settings):
        start = settings.start or own_start(width, settings)
        self.parts = {name: torch.nn.Parameter(start[name].clone())
                      for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
        self.k = settings.k
        self.optimizer = torch.optim.Adam(self.parts.values(), lr=settings.lr_by_rule(2e-4),
                                          fused=True)

    def step(self, x: torch.Tensor):
        xhat, _ = topk_forward(self.parts, self.k, x)
        (xhat - x).pow(2).sum(1).mean().backward()
        w_dec = self.parts["W_dec"]
        with torch.no_grad():
            along = (w_dec.grad * w_dec).sum(1, keepdim=True)
            w_dec.grad.addcmul_(along, w_dec, value=-1)
            self.optimizer.step()
            self.optimizer.zero_grad()
            w_dec.div_(w_dec.norm(dim=1, keepdim=True))

    def reconstruct(self, x: torch.Tensor):
        xhat, codes = topk_forward(self.parts, self.k, x)
        return xhat, codes > 0


def topk_forward(parts: dict, k: int, x: torch.Tensor):
    """(xhat, codes [rows, n]) of a TopK dictionary."""
    pre = torch.addmm(parts["b_enc"], x - parts["b_dec"], parts["W_enc"].T)
    top, index = pre.topk(k, sorted=False)
    codes = torch.zeros_like(pre).scatter(1, index, top.relu())
    return torch.addmm(parts["b_dec"], codes, parts["W_dec"]), codes


def own_start(width: int, settings: Settings) -> dict:
    generator = torch.Generator().manual_seed(settings.seed)
    rows = torch.nn.functional.normalize(torch.randn(settings.n, width, generator=generator))
    return {"W_enc": rows, "W_dec": rows, "b_enc": torch.zeros(settings.n),
            "b_dec": torch.zeros(width)}


@torch.no_grad()
def copy_into(values: dict):
    for parameter, value in values.items():
        parameter.copy_(value)


@dataclass(frozen=True)
class Peer:
    package: str
    label: str
    build: Callable[[int, Settings], object]

    def versioned_label(self) -> str:
        from importlib.metadata import version

        return f"{self.label} {version(self.package)}"


PEERS = {
    "sparsify_signum": Peer("eai-sparsify", "sparsify, signum (its default)",
                            lambda width, s: Sparsify(width, s, "signum")),
    "sparsify_adam": Peer("eai-sparsify", "sparsify, Adam",
                          lambda width, s: Sparsify(width, s, "adam")),
    "dictionary_learning": Peer("dictionary-learning", "dictionary_learning TopK",
                                DictionaryLearning),
    "sae_lens": Peer("sae-lens", "sae-lens TopK", SaeLens),
    "pytorch": Peer("torch", "eager PyTorch TopK, fused Adam", EagerTopK),
}


@torch.no_grad()
def measure(reconstruct, held_out: torch.Tensor, n: int, block: int = 2048) -> dict:
    """FVU = sum |x - xhat|^2 / sum |x - mean(x)|^2 over all held-out rows."""
    mean = held_out.double().mean(0)
    error = variance = count = 0.0
    fired = torch.zeros(n, dtype=torch.bool)
    for x in held_out.split(block):
        xhat, on = reconstruct(x)
        error += float((x.double() - xhat.double()).pow(2).sum())
        variance += float((x.double() - mean).pow(2).sum())
        count += int(on.sum())
        fired |= on.any(0)
    return {"fvu": error / variance, "l0": count / len(held_out),
            "frac_alive": float(fired.double().mean())}
