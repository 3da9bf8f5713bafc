"""Exported dictionaries in the tools they are for, and those tools' own files read back.

The oracle is the native formula in fp64: h = (s(x - mean) - b_dec) W_enc^T + b_enc,
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
from peer_loaders import load_llamascopium, load_saebench  # noqa: E402
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


def dictionary_learning_class(native):
    return {"relu": "AutoEncoder", "topk": "AutoEncoderTopK", "batchtopk": "BatchTopKSAE",
            "gated": "GatedAutoEncoder"}.get(native.activation, "JumpReluAutoEncoder")


def unit_rows_factor(native):
    """What codes are divided by where decoder rows are made unit: s / |w_dec|."""
    return native.scale / native.tensors["W_dec"].norm(dim=1)


def cases_in(format_name, cases=CASES):
    left_out = {"dictionary_learning": ("topk_tied", "batchtopk_tied"), "gemma_npz": ("topk_linear", "topk_tied")}
    return [case for case in cases if case not in left_out[format_name]]


@pytest.mark.parametrize("case", cases_in("dictionary_learning"))
def test_dictionary_learning_computes_the_same(exported, case):
    from dictionary_learning.utils import load_dictionary

    native = Native.load(exported / case / "native.safetensors")
    dictionary, config = load_dictionary(exported / case / "dictionary_learning.unit", "cpu")
    assert type(dictionary).__name__ == config["trainer"]["dict_class"] == dictionary_learning_class(native)
    assert config["trainer"]["layer"] == 8 and config["trainer"]["lm_name"] == "gpt2"
    x = native.rows()
    with torch.no_grad():
        codes = dictionary.encode(x)
        expect_same(native, x, codes, dictionary.decode(codes), unit_rows_factor(native))
    decoder = dictionary.W_dec.T if hasattr(dictionary, "W_dec") else dictionary.decoder.weight
    assert (decoder.norm(dim=0) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("case", cases_in("dictionary_learning"))
def test_saebench_computes_the_same(exported, monkeypatch, case):
    native = Native.load(exported / case / "native.safetensors")
    activation = {"prolu": "jumprelu"}.get(native.activation, native.activation)
    folder = exported / case / "dictionary_learning.unit"
    sae = load_saebench(monkeypatch, folder, activation, model="gpt2", layer=8)
    x = native.rows()
    with torch.no_grad():
        codes = sae.encode(x)
        expect_same(native, x, codes, sae.decode(codes), unit_rows_factor(native))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("case", CASES)
def test_llamascopium_computes_the_same(exported, case, scale):
    native = Native.load(exported / case / "native.safetensors")
    sae = load_llamascopium(exported / case / f"openmoss.{scale}")
    activations = {"topk": "topk", "relu": "relu"}
    assert sae.cfg.act_fn == activations.get(native.activation, "jumprelu")
    assert sae.cfg.hook_point_in == sae.cfg.hook_point_out == "blocks.8.hook_resid_pre"
    x = native.rows()
    with torch.no_grad():
        codes = sae.encode(x)
        expect_same(native, x, codes, sae.decode(codes), latent_scale(native, scale))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("decoder", ["linear", "tied"])
def test_openai_files_compute_the_same(exported, decoder, scale):
    """The package is on no registry: its formula by hand, from the file as its reader wants it."""
    native = Native.load(exported / f"relu_{decoder}" / "native.safetensors")
    state = torch.load(exported / f"relu_{decoder}" / f"openai.{scale}" / "autoencoder.pt", weights_only=True)
    assert state["activation"] == "ReLU" and state["activation_state_dict"] == {}
    n, d = state["encoder.weight"].shape
    shapes = {"pre_bias": (d,), "latent_bias": (n,), "encoder.weight": (n, d), "decoder.weight": (d, n),
              "stats_last_nonzero": (n,), "latents_activation_frequency": (n,), "latents_mean_square": (n,)}
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert len(state) == len(shapes) + 2 and state["stats_last_nonzero"].dtype == torch.int64
    x = native.rows()
    codes = torch.relu((x - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"])
    expect_same(native, x, codes, codes @ state["decoder.weight"].T + state["pre_bias"], latent_scale(native, scale))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("case", cases_in("gemma_npz"))
def test_gemma_archives_compute_the_same(exported, monkeypatch, case, scale):
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.loading import pretrained_sae_loaders as loaders

    path = exported / case / f"gemma_npz.{scale}" / "params.npz"
    monkeypatch.setattr(loaders, "hf_hub_download", lambda *_, **__: str(path))
    monkeypatch.setattr(loaders, "get_gemma_2_config_from_hf", lambda *_, **__: {"d_in": 12})
    _, state, _ = loaders.gemma_2_sae_huggingface_loader("any/repo", "layer_8/width_16k")
    native = Native.load(exported / case / "native.safetensors")
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=12, d_sae=40, apply_b_dec_to_input=False))
    sae.load_state_dict(state)
    x = native.rows()
    with torch.no_grad():
        codes = sae.encode(x)
        factor = unit_rows_factor(native) if scale == "unit" else 1.0
        expect_same(native, x, codes, sae.decode(codes), factor)


def test_no_format_gets_what_it_cannot_hold(exported):
    for case in CASES:
        names = {path.name for path in (exported / case).iterdir()}
        both = ["saelens", "openmoss"]
        both += ["sparsify"] if case.startswith("topk") else ["gemma_npz"]
        both += ["openai"] if case.startswith("relu") else []
        wanted = {"native.safetensors"} | {f"{name}.{scale}" for name in both for scale in SCALES}
        if case in cases_in("dictionary_learning"):
            wanted.add("dictionary_learning.unit")
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


@pytest.mark.parametrize("architecture", ["AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "GatedAutoEncoder",
                                          "JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"])
def test_files_of_dictionary_learning_are_read(fixture_bin, tmp_path, architecture):
    """As its trainers save them: a state_dict, some of its tensors with strides of their own."""
    import json

    from dictionary_learning import dictionary
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    modules = {"AutoEncoderTopK": top_k, "BatchTopKSAE": batch_top_k, "MatryoshkaBatchTopKSAE": matryoshka_batch_top_k}
    arguments = {"AutoEncoderTopK": (4,), "BatchTopKSAE": (4,), "MatryoshkaBatchTopKSAE": (4, [10, 20])}
    theirs = getattr(modules.get(architecture, dictionary), architecture)(10, 30, *arguments.get(architecture, ()))
    random_weights(theirs)
    if architecture in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        theirs.threshold.fill_(0.75)
    folder = tmp_path / "trainer_0"
    folder.mkdir()
    torch.save(theirs.state_dict(), folder / "ae.pt")
    trainer = {"dict_class": architecture, "activation_dim": 10, "dict_size": 30, "layer": 3, "lm_name": "x"}
    if architecture in arguments:
        trainer["k"] = 4
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    native = read_back(fixture_bin, folder, tmp_path / "ours.safetensors")
    x = native.rows()
    with torch.no_grad():
        if architecture == "AutoEncoder":  # what its from_pretrained does with rows that are not unit
            norms = theirs.decoder.weight.norm(dim=0)
            theirs.decoder.weight /= norms
            theirs.encoder.weight *= norms[:, None]
            theirs.encoder.bias *= norms
        codes = theirs.encode(x)
        expect_same(native, x, codes, theirs.decode(codes), 1.0)


def test_pickles_that_do_something_are_refused(fixture_bin, tmp_path):
    """An object in the file is named and never made."""
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    (tmp_path / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoder", "activation_dim": 2, "dict_size": 2}}')
    torch.save({"bias": torch.zeros(2), "encoder.weight": Trap()}, tmp_path / "ae.pt")
    answer = subprocess.run([fixture_bin, "read", tmp_path, tmp_path / "x"], capture_output=True, text=True)
    assert answer.returncode == 3 and "names the Python object 'posix mkdir'" in answer.stderr
    assert not (tmp_path / "sprung").exists()


def test_compressed_and_odd_archives_are_refused(fixture_bin, tmp_path):
    import numpy

    for name, save, reason in [
            ("compressed", lambda path: numpy.savez_compressed(path, W_enc=numpy.zeros((2, 3), "f4")), "is compressed"),
            ("objects", lambda path: numpy.savez(path, W_enc=numpy.array([{}])), "Python objects"),
            ("fortran", lambda path: numpy.savez(path, W_enc=numpy.zeros((2, 3), "f4", order="F")), "Fortran order")]:
        (tmp_path / name).mkdir()
        save(tmp_path / name / "params.npz")
        answer = subprocess.run([fixture_bin, "read", tmp_path / name, tmp_path / "x"], capture_output=True, text=True)
        assert answer.returncode == 3 and reason in answer.stderr and answer.stderr.count("\n") == 1
