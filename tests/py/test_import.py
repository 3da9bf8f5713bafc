"""`megadict import`: other tools' dictionaries as checkpoints that encode what those tools encode.

The oracle is the tool's own code where it is a package here, else its formula over the tensors of the
file (formats of tools that are on no registry).
"""

import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from training import run

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels want a GPU

torch = pytest.importorskip("torch")
from peer_loaders import llamascopium, load_llamascopium, load_saebench  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

D, N, K, THRESHOLD = 10, 30, 4, 0.75
USAGE, BAD_DATA = 2, 3


def randomised(module):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return module


def random_tensors(**shapes):
    generator = torch.Generator().manual_seed(6)
    return {name.replace("__", "."): torch.randn(shape, generator=generator) / 2 for name, shape in shapes.items()}


def top_k(h):
    value, index = h.relu().topk(K, dim=-1)
    return torch.zeros_like(h).scatter(-1, index, value)


# Each writes a dictionary to `folder` and returns its encoder: rows -> dense codes.


def saelens_topk(folder):
    from sae_lens import SAE, TopKSAE, TopKSAEConfig

    randomised(TopKSAE(TopKSAEConfig(d_in=D, d_sae=N, k=K, rescale_acts_by_decoder_norm=True))).save_model(folder)
    return SAE.load_from_disk(folder, device="cpu").encode


def saelens_standard(folder):
    from sae_lens import SAE, StandardSAE, StandardSAEConfig

    randomised(StandardSAE(StandardSAEConfig(d_in=D, d_sae=N, apply_b_dec_to_input=False))).save_model(folder)
    return SAE.load_from_disk(folder, device="cpu").encode


def saelens_batchtopk(folder):
    from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    config = BatchTopKTrainingSAEConfig(d_in=D, d_sae=N, k=K, rescale_acts_by_decoder_norm=False)
    sae = randomised(BatchTopKTrainingSAE(config))
    sae.topk_threshold.fill_(THRESHOLD)
    sae.save_inference_model(folder)
    return SAE.load_from_disk(folder, device="cpu").encode


def saelens_jumprelu(folder):
    """A threshold of its own for each latent."""
    from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig

    sae = randomised(JumpReLUSAE(JumpReLUSAEConfig(d_in=D, d_sae=N, apply_b_dec_to_input=False)))
    sae.save_model(folder)
    return SAE.load_from_disk(folder, device="cpu").encode


def sparsify_topk(folder):
    from sparsify import Sae, SaeConfig

    randomised(Sae(D, SaeConfig(num_latents=N, k=K))).save_to_disk(folder)
    theirs = Sae.load_from_disk(folder)

    def encode(x):
        top = theirs.encode(x)
        return torch.zeros(len(x), N).scatter(-1, top.top_indices, top.top_acts)

    return encode


def dictionary_learning(name, module, *arguments):
    def write(folder):
        import importlib

        from dictionary_learning.utils import load_dictionary

        theirs = randomised(getattr(importlib.import_module(f"dictionary_learning.{module}"), name)(D, N, *arguments))
        if name == "BatchTopKSAE":
            theirs.threshold.fill_(THRESHOLD)
        if name == "AutoEncoder":
            theirs.normalize_decoder()  # its loader would, and the codes would be others than the file says
        folder.mkdir()
        torch.save(theirs.state_dict(), folder / "ae.pt")
        trainer = {"dict_class": name, "activation_dim": D, "dict_size": N, "layer": 3, "lm_name": "x"}
        if arguments:
            trainer["k"] = K
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
        return load_dictionary(folder, "cpu")[0].encode

    return write


def openmoss(activation, by_norm=False, mean_norm=None):
    """`by_norm`: pre-activations are compared times the decoder rows' lengths. Those rows become unit here, so
    codes have that factor. `mean_norm`: of the rows it was trained on. It encodes x sqrt(d) / mean_norm,
    and ours are in the data's units again. (Its own folding of that factor leaves thresholds as they are.)"""

    def write(folder):
        sae, hook = llamascopium(), "blocks.3.hook_resid_pre"
        config = sae.SAEConfig(hook_point_in=hook, hook_point_out=hook, d_model=D, expansion_factor=N / D, top_k=K,
                               act_fn=activation, norm_activation="dataset-wise" if mean_norm else "inference",
                               sparsity_include_decoder_norm=by_norm, dtype=torch.float32, device="cpu")  # fmt: skip
        theirs = randomised(sae.SparseAutoEncoder(config))
        if mean_norm:
            theirs.set_dataset_average_activation_norm({hook: mean_norm})
        if activation == "jumprelu":
            with torch.no_grad():
                theirs.activation_function.log_jumprelu_threshold.fill_(np.log(THRESHOLD))
        theirs.save_pretrained(folder)
        config.save_hyperparameters(folder)
        theirs = load_llamascopium(folder)
        factor = theirs.decoder_norm().detach() if by_norm else 1

        def encode(x):
            norm = theirs.compute_norm_factor(x, hook_point=hook)
            return theirs.encode(x * norm).detach() * factor / norm

        return encode

    return write


def openai_relu(folder):
    folder.mkdir()
    state = random_tensors(pre_bias=(D,), latent_bias=(N,), encoder__weight=(N, D), decoder__weight=(D, N),
                           latents_activation_frequency=(N,), latents_mean_square=(N,))  # fmt: skip
    state |= {"stats_last_nonzero": torch.zeros(N, dtype=torch.int64), "activation": "ReLU",
              "activation_state_dict": {}}  # fmt: skip
    torch.save(state, folder / "autoencoder.pt")
    return lambda x: ((x - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"]).relu()


def gemma_npz(folder):
    folder.mkdir()
    tensors = random_tensors(W_enc=(D, N), W_dec=(N, D), b_enc=(N,), b_dec=(D,))
    tensors["threshold"] = torch.full((N,), THRESHOLD)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})

    def encode(x):
        h = x @ tensors["W_enc"] + tensors["b_enc"]
        return h.relu() * (h > THRESHOLD)

    return encode


# name -> what writes it, the format it is, what it becomes, what the user has to say besides.
WRITTEN = {
    "saelens_topk": (saelens_topk, "saelens", "topk", []),
    "saelens_standard": (saelens_standard, "saelens", "relu", []),
    "saelens_batchtopk": (saelens_batchtopk, "saelens", "batchtopk", ["--model.k", K]),
    "saelens_jumprelu": (saelens_jumprelu, "saelens", "jumprelu", []),
    "sparsify_topk": (sparsify_topk, "sparsify", "topk", []),
    "dictionary_learning_relu": (dictionary_learning("AutoEncoder", "dictionary"), "dictionary_learning", "relu", []),
    "dictionary_learning_topk": (dictionary_learning("AutoEncoderTopK", "trainers.top_k", K), "dictionary_learning",
                                 "topk", []),
    "dictionary_learning_batchtopk": (dictionary_learning("BatchTopKSAE", "trainers.batch_top_k", K),
                                      "dictionary_learning", "batchtopk", []),
    "openmoss_relu": (openmoss("relu"), "openmoss", "relu", []),
    "openmoss_topk": (openmoss("topk"), "openmoss", "topk", []),
    "openmoss_jumprelu": (openmoss("jumprelu"), "openmoss", "batchtopk", ["--model.k", K]),
    "openmoss_topk_by_norm": (openmoss("topk", by_norm=True), "openmoss", "topk", []),
    "openmoss_jumprelu_by_norm": (openmoss("jumprelu", by_norm=True), "openmoss", "batchtopk", ["--model.k", K]),
    "openmoss_relu_scaled": (openmoss("relu", mean_norm=5.0), "openmoss", "relu", []),
    "openmoss_topk_scaled": (openmoss("topk", by_norm=True, mean_norm=5.0), "openmoss", "topk", []),
    "openmoss_jumprelu_scaled": (openmoss("jumprelu", mean_norm=5.0), "openmoss", "batchtopk", ["--model.k", K]),
    "openai_relu": (openai_relu, "openai", "relu", []),
    "gemma_npz": (gemma_npz, "gemma_npz", "batchtopk", ["--model.k", K]),
}  # fmt: skip


def import_words(place, out="native", *more):
    return ["import", "--from", place / "layers.3", "--out", place / out, *more]


@pytest.fixture(scope="module")
def rows(megadict_bin, tmp_path_factory):
    """A data set, and the rows in it."""
    folder = tmp_path_factory.mktemp("rows")
    x = np.random.default_rng(3).normal(0.3, 2, (257, D)).astype("f4")
    np.save(folder / "x.npy", x)
    words = ["data", "import", "--from", folder / "x.npy", "--out", folder / "acts", "--eval_fraction", 0]
    done = run(megadict_bin, words)
    assert done.returncode == 0, done.stderr
    return folder / "acts", torch.from_numpy(x)


def encoded(binary, data, source, out):
    """Dense codes of all rows; source: the words that name the dictionary."""
    done = run(binary, ["encode", *source, "--data.path", data, "--out", out])
    assert done.returncode == 0, done.stderr
    with h5py.File(out) as file:
        row_ptr, indices, values = (file[name][:] for name in ("row_ptr", "indices", "values"))
    codes = torch.zeros(len(row_ptr) - 1, N)
    row = np.repeat(np.arange(len(row_ptr) - 1), np.diff(row_ptr.astype("i8")))
    codes[row, indices.astype("i8")] = torch.from_numpy(values)
    return codes


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", WRITTEN)
def test_imported_dictionaries_encode_as_their_tools_do(megadict_bin, rows, tmp_path, name, named):
    write, format_name, activation, more = WRITTEN[name]
    encode = write(tmp_path / "layers.3")
    data, x = rows
    words = import_words(tmp_path, "native", *more, *(["--format", format_name] if named else []))
    done = run(megadict_bin, words)
    assert done.returncode == 0, done.stderr
    assert f"({format_name}: {activation}, {N} latents of width {D})" in done.stdout
    codes = encoded(megadict_bin, data, ["--checkpoint", tmp_path / "native"], tmp_path / "codes.h5")
    with torch.no_grad():
        want = encode(x)
    if activation == "topk" and name.startswith("saelens"):  # its decoder rows became unit
        norms = load_file(tmp_path / "layers.3" / "sae_weights.safetensors")["W_dec"].norm(dim=1)
        assert (norms - 1).abs().max() > 0.1
    assert 0 < (want > 0).sum() < want.numel()
    assert torch.equal(codes > 0, want > 0)
    assert (codes - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize("loader", ["dictionary_learning", "saebench"])
def test_rows_that_are_not_unit_become_so_as_the_loaders_make_them(megadict_bin, rows, tmp_path, monkeypatch, loader):
    """An AutoEncoder of dictionary_learning: its codes are then others than the file says, x_hat is not."""
    from dictionary_learning.dictionary import AutoEncoder
    from dictionary_learning.utils import load_dictionary

    folder = tmp_path / "layers.3"
    folder.mkdir()
    kept = randomised(AutoEncoder(D, N))
    norms = kept.decoder.weight.detach().norm(dim=0)
    assert (norms - 1).abs().max() > 0.1
    torch.save(kept.state_dict(), folder / "ae.pt")
    trainer = {"dict_class": "AutoEncoder", "trainer_class": "StandardTrainerAprilUpdate", "activation_dim": D,
               "dict_size": N, "layer": 3, "lm_name": "x"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    if loader == "saebench":
        theirs = load_saebench(monkeypatch, folder, "relu", model="x", layer=3)
    else:
        theirs = load_dictionary(folder, "cpu")[0]
    done = run(megadict_bin, import_words(tmp_path))
    assert done.returncode == 0, done.stderr
    data, x = rows
    codes = encoded(megadict_bin, data, ["--checkpoint", tmp_path / "native"], tmp_path / "codes.h5")
    tensors = load_file(next((tmp_path / "native").glob("part_*.safetensors")))
    with torch.no_grad():
        want = theirs.encode(x)
        said = kept.encode(x)
        assert torch.equal(codes > 0, want > 0)
        assert (codes - want).abs().max() < 1e-5 * want.abs().max() < (want - said).abs().max()
        x_hat = theirs.decode(want)
    assert (codes @ tensors["W_dec"] + tensors["b_dec"] - x_hat).abs().max() < 1e-5 * x_hat.abs().max()
    again = encoded(megadict_bin, data, ["--dictionary", folder], tmp_path / "again.h5")
    assert torch.equal(again, codes)


def test_what_was_imported_goes_back_and_on(megadict_bin, rows, tmp_path):
    """Exported again it is the same dictionary, and training starts from it."""
    saelens_standard(tmp_path / "layers.3")
    assert run(megadict_bin, import_words(tmp_path)).returncode == 0
    data, _ = rows
    codes = encoded(megadict_bin, data, ["--checkpoint", tmp_path / "native"], tmp_path / "a.h5")
    words = ["export", "--run.dir", tmp_path / "native", "--format", "openai", "--scale", "trained"]
    done = run(megadict_bin, [*words, "--out", tmp_path / "back"])
    assert done.returncode == 0, done.stderr
    again = encoded(megadict_bin, data, ["--dictionary", tmp_path / "back"], tmp_path / "b.h5")
    assert torch.equal(codes, again)
    words = ["train", "--data.path", data, "--run.dir", tmp_path / "run", "--model.init_from", tmp_path / "native",
             "--model.activation", "relu", "--model.n_latents", N, "--data.batch_size", 64]  # fmt: skip
    done = run(megadict_bin, words)
    assert done.returncode == 0, done.stderr


# --- refusals


def changed_config(folder, **changes):
    path = folder / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def changed_weights(folder, change):
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def cut_short(folder):
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


# what is done to a sound SAELens folder, what is said besides, exit code, words of the refusal
REFUSED = {
    "no such folder": (shutil.rmtree, [], BAD_DATA, "is no dictionary of a known format"),
    "not a number": (lambda f: changed_weights(f, lambda t: t["W_dec"][3].fill_(float("nan"))), [], BAD_DATA,
                     "W_dec holds values that are not finite"),
    "infinite": (lambda f: changed_weights(f, lambda t: t["b_enc"][3].fill_(float("inf"))), [], BAD_DATA,
                 "b_enc holds values that are not finite"),
    "cut short": (cut_short, [], BAD_DATA, "sae_weights.safetensors"),
    "no JSON": (lambda f: (f / "cfg.json").write_text('{"architecture":'), [], BAD_DATA, "cfg.json"),
    "a tensor less": (lambda f: changed_weights(f, lambda t: t.pop("b_dec")), [], BAD_DATA, "b_dec"),
    "another width": (lambda f: changed_config(f, d_in=D + 1), [], BAD_DATA,
                      "'b_dec' is [10], the settings make it [11]"),
    "per-row norms": (lambda f: changed_config(f, normalize_activations="layer_norm"), [], BAD_DATA, "layer_norm"),
    "unknown kind": (lambda f: changed_config(f, architecture="sigmoid"), [], BAD_DATA, "sigmoid"),
    "another format": (lambda f: None, ["--format", "openai"], BAD_DATA, "autoencoder.pt"),
    "no format": (lambda f: None, ["--format", "saelense"], USAGE, "'saelens'?"),
    "another k": (lambda f: None, ["--model.k", K + 1], USAGE, f"--model.k is {K + 1}, the files in"),
    "more k than latents": (lambda f: None, ["--model.k", N + 1], USAGE, f"above the {N} latents"),
}  # fmt: skip


def refused(binary, place, words, code, reason, ranks=1):
    """One line, the code, and the folder as it was."""
    before = sorted(path for path in place.rglob("*"))
    done = run(binary, words, ranks)
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("megadict: ")]
    assert len(lines) == 1 and reason in lines[0], done.stderr
    assert ranks > 1 or done.stderr.count("\n") == 1
    assert sorted(path for path in place.rglob("*")) == before


@pytest.mark.parametrize("what", REFUSED)
def test_bad_files_and_flags_are_refused(megadict_bin, tmp_path, what):
    damage, more, code, reason = REFUSED[what]
    saelens_topk(tmp_path / "layers.3")
    damage(tmp_path / "layers.3")
    refused(megadict_bin, tmp_path, import_words(tmp_path, "native", *more), code, reason)


def test_a_batchtopk_without_k_is_refused(megadict_bin, tmp_path):
    saelens_batchtopk(tmp_path / "layers.3")
    refused(megadict_bin, tmp_path, import_words(tmp_path), USAGE, "hint: --model.k K")


def test_a_folder_with_content_stays(megadict_bin, tmp_path):
    saelens_topk(tmp_path / "layers.3")
    (tmp_path / "native").mkdir()
    kept = tmp_path / "native" / "notes.txt"
    kept.write_text("mine")
    refused(megadict_bin, tmp_path, import_words(tmp_path), USAGE, "native")
    assert kept.read_text() == "mine"


def test_it_runs_as_one_process(megadict_bin, tmp_path):
    saelens_topk(tmp_path / "layers.3")
    refused(megadict_bin, tmp_path, import_words(tmp_path), USAGE, "runs as one process", ranks=2)


def test_pickles_that_do_something_are_refused(megadict_bin, tmp_path):
    """An object in the file is named and never made."""

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(Path(tmp_path) / "sprung"),))

    openai_relu(tmp_path / "layers.3")
    torch.save({"pre_bias": Trap()}, tmp_path / "layers.3" / "autoencoder.pt")
    refused(megadict_bin, tmp_path, import_words(tmp_path), BAD_DATA, "names the Python object 'posix mkdir'")
