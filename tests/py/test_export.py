"""Exported dictionaries in the tools they are for, and those tools' own files read back.

The oracle is the native formula in fp64 (formats.md): h = (s(x - mean) - b_dec) W_enc^T + b_enc,
z = act(h) (src/model/folding.h says which), x_hat = (z W_dec + b_dec) / s + mean.

MEGADICT_EXPORT_FIXTURE   the helper that writes and reads dictionaries; otherwise build/<preset>/
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels want a GPU

torch = pytest.importorskip("torch")
from safetensors import safe_open  # noqa: E402

PRESETS = ("release", "debug", "asan", "cuda")
ACTIVATIONS = ("topk", "relu", "batchtopk", "jumprelu", "gated", "prolu")
CASES = tuple(f"{activation}_{decoder}" for activation in ACTIVATIONS for decoder in ("linear", "tied"))
SCALES = ("unit", "trained")


@pytest.fixture(scope="session")
def fixture_bin(repo_root: Path) -> Path:
    named = os.environ.get("MEGADICT_EXPORT_FIXTURE")
    found = [Path(named)] if named else [
        repo_root / "build" / preset / "tests" / "export_fixture" for preset in PRESETS]
    path = next((p for p in found if os.access(p, os.X_OK)), None)
    if path is None:
        pytest.skip("export_fixture is not built: cmake --build --preset release --target export_fixture")
    return path


@dataclass
class Native:
    tensors: dict
    activation: str
    k: int
    scale: float
    hook: str

    @classmethod
    def load(cls, path: Path) -> "Native":
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
            tensors = {name: file.get_tensor(name).double() for name in file.keys()}
        return cls(tensors, facts["activation"], int(facts["k"]), float(facts["scale"]), facts["hook"])

    def codes(self, x):
        t = self.tensors
        g = (self.scale * (x.double() - t["mean"]) - t["b_dec"]) @ t["W_enc"].T
        h = g + t["b_enc"] if "b_enc" in t else g
        if self.activation == "topk":
            value, index = h.topk(self.k, dim=-1)
            h = torch.zeros_like(h).scatter(-1, index, value)
        if "threshold" in t:
            h = h * (h > t["threshold"])
        if self.activation == "prolu":
            h = g * (h > 0)
        if self.activation == "gated":
            h = (g * t["r_mag"].exp() + t["b_mag"]) * (g + t["b_gate"] > 0)
        return h.clamp_min(0)

    def decode(self, z):
        t = self.tensors
        return (z @ t["W_dec"] + t["b_dec"]) / self.scale + t["mean"]

    def rows(self, count=256):
        noise = torch.randn(count, len(self.tensors["mean"]), generator=torch.Generator().manual_seed(3))
        return (3 * noise + self.tensors["mean"]).float()


def expect_close(got, want, what):
    largest = want.abs().max()
    assert ((got.double() - want).abs().max() / largest) < 1e-5, what


def expect_same(native: Native, x, codes, x_hat, latent_scale):
    """codes: what the peer makes of x, dense."""
    want = native.codes(x)
    assert torch.equal(codes > 0, want > 0), "another support"
    expect_close(codes, want / latent_scale, "codes")
    expect_close(x_hat, native.decode(want), "reconstruction")


@pytest.fixture(scope="session")
def exported(fixture_bin, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    subprocess.run([fixture_bin, "write", folder], check=True)
    return folder


def read_back(fixture_bin, folder: Path, out: Path) -> Native:
    subprocess.run([fixture_bin, "read", folder, out], check=True)
    return Native.load(out)


def latent_scale(native: Native, scale: str) -> float:
    return native.scale if scale == "unit" else 1.0


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("case", CASES)
def test_saelens_computes_the_same(exported, case, scale):
    from sae_lens import SAE

    native = Native.load(exported / case / "native.safetensors")
    sae = SAE.load_from_disk(exported / case / f"saelens.{scale}", device="cpu")
    x = native.rows()
    with torch.no_grad():
        codes = sae.encode(x)
        expect_same(native, x, codes, sae.decode(codes), latent_scale(native, scale))
    architectures = {"topk": "topk", "relu": "standard", "gated": "gated"}
    assert sae.cfg.architecture() == architectures.get(native.activation, "jumprelu")
    assert sae.cfg.metadata.hook_name == "blocks.8.hook_resid_pre"
    assert sae.cfg.metadata.model_name == "gpt2"
    assert sae.cfg.metadata.megadict_step == 1000


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("topk")])
def test_sparsify_computes_the_same(exported, case, scale):
    from sparsify import Sae

    native = Native.load(exported / case / "native.safetensors")
    sae = Sae.load_from_disk(exported / case / f"sparsify.{scale}")
    x = native.rows()
    with torch.no_grad():
        top = sae.encode(x)
        codes = torch.zeros(len(x), sae.num_latents).scatter(-1, top.top_indices, top.top_acts)
        expect_same(native, x, codes, sae.decode(top.top_acts, top.top_indices), latent_scale(native, scale))
        expect_close(sae(x).sae_out, native.decode(native.codes(x)), "forward")
    assert top.top_acts.shape[-1] == native.k


def test_sparsify_finds_hookpoints_in_a_run(exported, tmp_path):
    from sparsify import Sae

    for layer in (3, 10):
        (tmp_path / f"layers.{layer}").symlink_to(exported / "topk_linear" / "sparsify.unit")
    assert list(Sae.load_many(str(tmp_path), local=True)) == ["layers.3", "layers.10"]


def test_no_format_gets_what_it_cannot_hold(exported):
    for case in CASES:
        names = {path.name for path in (exported / case).iterdir()}
        wanted = {"native.safetensors", "saelens.unit", "saelens.trained", "openmoss.unit", "openmoss.trained"}
        if case.startswith("topk"):
            wanted |= {"sparsify.unit", "sparsify.trained"}
        assert names == wanted


def random_weights(module, seed=5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("subtract", [False, True])
def test_topk_files_of_saelens_are_read(fixture_bin, tmp_path, rescale, subtract, dtype):
    from sae_lens import TopKSAE, TopKSAEConfig

    sae = TopKSAE(TopKSAEConfig(d_in=10, d_sae=30, k=4, dtype=dtype, apply_b_dec_to_input=subtract,
                                rescale_acts_by_decoder_norm=rescale))
    random_weights(sae)
    sae.cfg.metadata.hook_name = "blocks.3.hook_mlp_out"
    sae.save_model(tmp_path / "theirs")
    native = read_back(fixture_bin, tmp_path / "theirs", tmp_path / "ours.safetensors")
    wide = sae.double()
    wide.cfg.dtype = "float64"
    wide.dtype = torch.float64
    x = native.rows()
    with torch.no_grad():
        codes = wide.encode(x.double())
        expect_same(native, x, codes, wide.decode(codes), 1.0)
    assert native.k == 4 and native.hook == "blocks.3.hook_mlp_out"


def test_standard_files_of_saelens_are_read(fixture_bin, tmp_path):
    from sae_lens import StandardSAE, StandardSAEConfig

    sae = StandardSAE(StandardSAEConfig(d_in=10, d_sae=30))
    random_weights(sae)
    sae.save_model(tmp_path / "theirs")
    native = read_back(fixture_bin, tmp_path / "theirs", tmp_path / "ours.safetensors")
    x = native.rows()
    with torch.no_grad():
        codes = sae.encode(x)
        expect_same(native, x, codes, sae.decode(codes), 1.0)


@pytest.mark.parametrize("num_latents", [0, 20])
def test_files_of_sparsify_are_read(fixture_bin, tmp_path, num_latents):
    from sparsify import Sae, SaeConfig

    sae = Sae(10, SaeConfig(expansion_factor=3, num_latents=num_latents, k=4))
    random_weights(sae)
    sae.save_to_disk(tmp_path / "layers.7")
    native = read_back(fixture_bin, tmp_path / "layers.7", tmp_path / "ours.safetensors")
    x = native.rows()
    with torch.no_grad():
        top = sae.encode(x)
        codes = torch.zeros(len(x), sae.num_latents).scatter(-1, top.top_indices, top.top_acts)
        expect_same(native, x, codes, sae.decode(top.top_acts, top.top_indices), 1.0)
    assert native.hook == "layers.7"


def test_batchtopk_of_saelens_is_read(fixture_bin, tmp_path):
    """As SAELens saves it for use: jumprelu with one threshold."""
    from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=10, d_sae=30, k=4, rescale_acts_by_decoder_norm=False))
    random_weights(sae)
    sae.topk_threshold.fill_(1.25)
    sae.save_inference_model(tmp_path / "theirs")
    native = read_back(fixture_bin, tmp_path / "theirs", tmp_path / "ours.safetensors")
    assert native.activation == "jumprelu" and (native.tensors["threshold"] == 1.25).all()
    theirs = SAE.load_from_disk(tmp_path / "theirs", device="cpu")
    x = native.rows()
    with torch.no_grad():
        codes = theirs.encode(x)
        assert 0 < (codes > 0).sum() < codes.numel() / 2
        expect_same(native, x, codes, theirs.decode(codes), 1.0)


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("architecture", ["jumprelu", "gated"])
def test_other_architectures_of_saelens_are_read(fixture_bin, tmp_path, architecture, subtract):
    import sae_lens

    name = {"jumprelu": "JumpReLU", "gated": "Gated"}[architecture]
    config = getattr(sae_lens, f"{name}SAEConfig")(d_in=10, d_sae=30, apply_b_dec_to_input=subtract)
    sae = getattr(sae_lens, f"{name}SAE")(config)
    random_weights(sae)
    sae.save_model(tmp_path / "theirs")
    native = read_back(fixture_bin, tmp_path / "theirs", tmp_path / "ours.safetensors")
    x = native.rows()
    with torch.no_grad():
        codes = sae.encode(x)
        expect_same(native, x, codes, sae.decode(codes), 1.0)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
def test_training_checkpoints_of_saelens_are_read(fixture_bin, tmp_path, rescale, scaled):
    """The threshold as a scalar, compared with h |W_dec|; the factor on x beside the weights."""
    from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(
        d_in=10, d_sae=30, k=4.0, rescale_acts_by_decoder_norm=rescale,
        normalize_activations="expected_average_only_in" if scaled else "none"))
    random_weights(sae)
    sae.topk_threshold.fill_(1.25)
    sae.save_model(tmp_path / "theirs")
    if scaled:
        (tmp_path / "theirs" / "activation_scaler.json").write_text(
            '{"scaling_factor": 0.4, "has_whitening": false}')
    native = read_back(fixture_bin, tmp_path / "theirs", tmp_path / "ours.safetensors")
    assert native.activation == "batchtopk" and native.k == 4
    assert native.scale == (0.4 if scaled else 1.0)
    if scaled:
        sae.fold_activation_norm_scaling_factor(0.4)
    sae.save_inference_model(tmp_path / "inference")
    theirs = SAE.load_from_disk(tmp_path / "inference", device="cpu")
    x = native.rows()
    with torch.no_grad():
        codes = theirs.encode(x)
        want = native.codes(x)
        assert 0 < (codes > 0).sum() < codes.numel() / 2
        assert torch.equal(codes > 0, want > 0)
        expect_close(theirs.decode(codes), native.decode(want), "reconstruction")
