"""Dictionaries in the folders that tools exchange, as functions from raw rows to raw rows.

saelens    cfg.json with "architecture", sae_weights.safetensors; standard, topk, jumprelu, gated
sparsify   cfg.json with "num_latents", sae.safetensors
a run      of the megadict binary, which exports it as saelens first

h = (x - b_dec) W_enc + b_enc, z = the activation of h, x_hat = z W_dec + b_dec.
"""

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .errors import BAD_DATA, ERROR, USAGE, ToolError, one_line

CODES_AT_ONCE = 1 << 25  # rows x latents held at a time
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Dictionary:
    name: str
    format: str
    hook: str | None  # TransformerLens' name of the site it was trained on, where the file says it
    w_dec: torch.Tensor  # [n, d]
    b_dec: torch.Tensor
    k: int  # 0: no fixed number of active latents
    codes: Callable[[torch.Tensor], torch.Tensor]  # rows [b, d] -> z [b, n], or h where k is set

    @property
    def latents(self) -> int:
        return len(self.w_dec)

    @torch.inference_mode()
    def reconstruct(self, rows: torch.Tensor) -> tuple[torch.Tensor, int]:
        """x_hat of float32 rows [b, d], and how many latents were active in all of them."""
        parts, active = [], 0
        for x in rows.split(max(1, CODES_AT_ONCE // self.latents)):
            z = self.codes(x)
            if self.k:
                z, index = z.topk(min(self.k, self.latents), dim=1)
                z = z.clamp_min(0)
                decoded = torch.nn.functional.embedding_bag(index, self.w_dec, mode="sum",
                                                            per_sample_weights=z)
            else:
                decoded = z @ self.w_dec
            active += int((z > 0).sum())
            parts.append(decoded + self.b_dec)
        return torch.cat(parts), active


# ---- reading -------------------------------------------------------------------------------------

def _tensors(path: Path, shapes: dict[str, tuple]) -> dict[str, torch.Tensor]:
    """float32 tensors of a file that holds just these; a size that is None may be anything."""
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ToolError(BAD_DATA, f"cannot read '{path}': {one_line(error)}") from error
    if found.keys() != shapes.keys():
        raise ToolError(BAD_DATA, f"'{path}' holds {', '.join(sorted(found))}; allowed: "
                        f"{', '.join(sorted(shapes))}")
    for name, shape in shapes.items():
        if tuple(found[name].shape) != shape:
            raise ToolError(BAD_DATA, f"'{path}': {name} is {list(found[name].shape)}, cfg.json "
                            f"makes it {list(shape)}")
        if not torch.isfinite(found[name]).all():
            raise ToolError(BAD_DATA, f"'{path}': {name} holds values that are not finite")
    return {name: value.float() for name, value in found.items()}


def _integer(cfg: dict, name: str, path: Path) -> int:
    value = cfg.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ToolError(BAD_DATA, f"'{path}': {name} is {value!r}, allowed: an integer above 0")
    return value


def _refuse_unlike(cfg: dict, path: Path, wanted: dict):
    """Settings under which the formula above is not the dictionary's."""
    for name, value in wanted.items():
        if cfg.get(name, value) != value:
            raise ToolError(BAD_DATA, f"'{path}': {name} = {cfg[name]!r} is not supported; allowed: "
                            f"{value!r}", "export it again with what it stands for folded in")


def _read_saelens(name: str, folder: Path, cfg: dict) -> Dictionary:
    path, architecture = folder / "cfg.json", cfg["architecture"]
    d, n = _integer(cfg, "d_in", path), _integer(cfg, "d_sae", path)
    _refuse_unlike(cfg, path, {"normalize_activations": "none", "reshape_activations": "none",
                               "rescale_acts_by_decoder_norm": False})
    shapes = {"W_enc": (d, n), "W_dec": (n, d), "b_dec": (d,)}
    own = {"standard": ("b_enc",), "topk": ("b_enc",), "jumprelu": ("b_enc", "threshold"),
           "gated": ("b_gate", "r_mag", "b_mag")}
    if architecture not in own:
        raise ToolError(BAD_DATA, f"'{path}': architecture {architecture!r} is not known; allowed: "
                        f"{', '.join(own)}")
    t = _tensors(folder / "sae_weights.safetensors", shapes | dict.fromkeys(own[architecture], (n,)))
    shift = t["b_dec"] if cfg.get("apply_b_dec_to_input", True) else torch.zeros(d)

    def linear(x):
        return (x - shift) @ t["W_enc"] + t["b_enc"]

    def jumprelu(x):
        h = linear(x)
        return h.clamp_min(0) * (h > t["threshold"])

    def gated(x):
        u = x - shift
        on = u @ t["W_enc"] + t["b_gate"] > 0
        return on * (u @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"]).clamp_min(0)

    codes = {"standard": lambda x: linear(x).clamp_min(0), "topk": linear, "jumprelu": jumprelu,
             "gated": gated}[architecture]
    k = _integer(cfg, "k", path) if architecture == "topk" else 0
    hook = (cfg.get("metadata") or {}).get("hook_name")
    return Dictionary(name, f"saelens {architecture}", hook, t["W_dec"], t["b_dec"], k, codes)


def _read_sparsify(name: str, folder: Path, cfg: dict) -> Dictionary:
    path = folder / "cfg.json"
    d, k = _integer(cfg, "d_in", path), _integer(cfg, "k", path)
    _refuse_unlike(cfg, path, {"activation": "topk", "skip_connection": False, "transcode": False})
    n = cfg.get("num_latents") or d * _integer(cfg, "expansion_factor", path)
    t = _tensors(folder / "sae.safetensors", {"encoder.weight": (n, d), "encoder.bias": (n,),
                                              "W_dec": (n, d), "b_dec": (d,)})

    def codes(x):
        return (x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]

    return Dictionary(name, "sparsify topk", None, t["W_dec"], t["b_dec"], k, codes)


def find_binary(named: str | None) -> str:
    """The megadict binary: as named, as built in this clone, or on the PATH."""
    if named:
        if not os.access(named, os.X_OK):
            raise ToolError(USAGE, f"--megadict '{named}' is not a program")
        return named
    built = ROOT / "build" / "release" / "bin" / "megadict"
    found = str(built) if os.access(built, os.X_OK) else shutil.which("megadict")
    if not found:
        raise ToolError(USAGE, "a run folder needs the megadict binary to export it, and there is "
                        "none", "build it, or give --megadict FILE")
    return found


def _read_run(name: str, folder: Path, binary: str | None) -> Dictionary:
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "saelens"
        done = subprocess.run([find_binary(binary), "export", "--run.dir", str(folder), "--format",
                               "saelens", "--out", str(out)], capture_output=True, text=True)
        if done.returncode:
            said = one_line(ValueError(done.stderr)) or f"exit code {done.returncode}"
            code = done.returncode if done.returncode in (USAGE, BAD_DATA) else ERROR
            raise ToolError(code, f"cannot export '{folder}': {said}")
        return read_dictionary(str(out), binary)


def read_dictionary(folder: str, binary: str | None = None) -> Dictionary:
    """`folder` as saelens or sparsify wrote it, or a run, for which `binary` is used."""
    path = Path(folder)
    if (path / "config.json").is_file() and not (path / "cfg.json").is_file():
        found = _read_run(folder, path, binary)
        found.name, found.format = folder, f"run, {found.format}"
        return found
    try:
        cfg = json.loads((path / "cfg.json").read_text())
    except (OSError, ValueError) as error:
        raise ToolError(BAD_DATA, f"'{folder}' is no dictionary: {one_line(error)}", "a folder of "
                        "SAELens (cfg.json, sae_weights.safetensors), of sparsify (cfg.json, "
                        "sae.safetensors), or a run folder") from error
    if isinstance(cfg, dict) and "architecture" in cfg:
        return _read_saelens(folder, path, cfg)
    if isinstance(cfg, dict) and (path / "sae.safetensors").is_file():
        return _read_sparsify(folder, path, cfg)
    raise ToolError(BAD_DATA, f"'{path / 'cfg.json'}' is neither SAELens' (no \"architecture\") nor "
                    "sparsify's (no sae.safetensors beside it)")
