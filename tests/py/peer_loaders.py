"""The loaders of the tools in tests/requirements-peers.txt.

Those are beside the environment (tools/bootstrap.sh --tests); a missing one fails, for a test that is
left out looks like one that passes.
"""

import importlib
import sys
import warnings
from pathlib import Path

import pytest

SAEBENCH = {"relu": ("relu_sae", "load_dictionary_learning_relu_sae"),
            "topk": ("topk_sae", "load_dictionary_learning_topk_sae"),
            "batchtopk": ("batch_topk_sae", "load_dictionary_learning_batch_topk_sae"),
            "jumprelu": ("jumprelu_sae", "load_dictionary_learning_jump_relu_sae"),
            "gated": ("gated_sae", "load_dictionary_learning_gated_sae")}  # fmt: skip


def llamascopium():
    """Its module of plain autoencoders: SparseAutoEncoder, SAEConfig."""
    if not (3, 11) <= sys.version_info < (3, 13):
        pytest.skip("llamascopium 2.0.0b34 needs Python 3.11 or 3.12")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a GPU its decorators warn
        return importlib.import_module("llamascopium.models.sae")


def load_llamascopium(folder):
    return llamascopium().SparseAutoEncoder.from_pretrained(str(folder), device="cpu")


def load_saebench(monkeypatch, folder, activation, model, layer):
    """Its loader downloads; here the files lie in `folder` already."""
    import torch

    module, name = SAEBENCH[activation]
    loaders = importlib.import_module(f"sae_bench.custom_saes.{module}")
    monkeypatch.setattr(loaders, "hf_hub_download", lambda filename, **_: str(Path(folder) / filename))
    return getattr(loaders, name)("any/repo", "ae.pt", model, torch.device("cpu"), torch.float32, layer=layer)
