"""loss_recovered.py against plain forward passes, and its readers against the tools they imitate."""

import json
import os

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

import loss_recovered
import training
from megadict_tools.dictionaries import read_dictionary
from megadict_tools.errors import main_guard
from megadict_tools.models import SITES, Target, family_of, find_source, hook_site, load_model
from megadict_tools.shards import read_rows
from megadict_tools.splice import Splice
from harvest_cases import CONTEXT, model_folder, run, text_file  # noqa: F401
from tiny_models import FAMILIES, PARALLEL, WIDTH

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels want a GPU


def judge(*arguments) -> int:
    return main_guard("loss_recovered",
                      lambda: loss_recovered.main(["--threads", "1", *map(str, arguments)]))


# ---- splicing ------------------------------------------------------------------------------------

def observed(model, layer, sites):
    """Every site of a block as it passes, behind whatever changes it."""
    block = model.base_model.get_submodule(family_of(model.config).blocks)[layer]
    seen = {}
    for site in sites:
        hook_site(block, family_of(model.config), site,
                  lambda value, site=site: seen.__setitem__(site, value.clone()))
    return seen


def random_batch(vocabulary, lengths=(20, 13)):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    mask[:, 0] = False  # a row that no shard holds
    return ids, mask


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stream_goes_on_with_what_was_spliced(name, model_folder):
    sites = [s for s in SITES if name not in PARALLEL or s != "resid_mid"]
    for site in sites:
        model = load_model(find_source(str(model_folder(name))), torch.float32, "cpu")
        splice, seen = Splice(model, Target(site, 1)), observed(model, 1, sites)
        after = observed(model, 2, ["resid_pre"])
        ids, mask = random_batch(model.config.vocab_size)
        rows, clean = splice.clean(ids, mask)
        whole = {s: value for s, value in seen.items()}
        torch.testing.assert_close(rows, whole[site][mask])
        torch.testing.assert_close(clean, model(ids).logits)
        torch.testing.assert_close(splice.spliced(rows), clean, rtol=0, atol=0)

        new = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1))
        changed = splice.spliced(new)
        torch.testing.assert_close(seen[site][mask], new)
        torch.testing.assert_close(seen[site][:, 0], whole[site][:, 0])  # not masked, nothing before
        mid = seen["resid_pre"] + seen["attn_out"]
        if site == "resid_mid":
            mid = seen["resid_mid"]
        post = mid + seen["mlp_out"]
        if site != "resid_post":
            torch.testing.assert_close(seen["resid_post"], post, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after["resid_pre"], seen["resid_post"])
        assert (changed[:, 1:] - clean[:, 1:]).abs().max() > 1e-3


# ---- the numbers ---------------------------------------------------------------------------------

def save_saelens(folder, architecture, tensors, **fields):
    folder.mkdir()
    d, n = tensors["W_enc"].shape
    cfg = {"architecture": architecture, "d_in": d, "d_sae": n, "dtype": "float32", "device": "cpu",
           "apply_b_dec_to_input": True, "normalize_activations": "none",
           "reshape_activations": "none",
           "metadata": {"sae_lens_version": "6.54.12", "sae_lens_training_version": None}, **fields}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    save_file({k: v.contiguous().float() for k, v in tensors.items()},
              folder / "sae_weights.safetensors")
    return folder


def identity(folder, width=WIDTH):
    """x = relu(x) - relu(-x)."""
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    return save_saelens(folder, "standard", {"W_enc": both.T, "b_enc": torch.zeros(2 * width),
                                             "W_dec": both, "b_dec": torch.zeros(width)})


def constant(folder, row):
    width = len(row)
    return save_saelens(folder, "standard", {
        "W_enc": torch.zeros(width, 4), "b_enc": torch.zeros(4), "W_dec": torch.zeros(4, width),
        "b_dec": row})


def random_tensors(width=WIDTH, latents=3 * WIDTH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    rows = draw(latents, width)
    rows /= rows.norm(dim=1, keepdim=True)
    return {"W_enc": rows.T + 0.05 * draw(width, latents), "b_enc": 0.1 * draw(latents),
            "W_dec": rows, "b_dec": 0.1 * draw(width)}


def plain_forward(model, block, ids, replace=None):
    """Logits of one window; `replace` [positions, d] stands for the block's output."""
    def swap(_module, _args, output):
        return (replace[None], *output[1:]) if isinstance(output, tuple) else replace[None]

    handle = block.register_forward_hook(swap) if replace is not None else None
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    if handle:
        handle.remove()
    return logits


def reference(folder, block_path, data, rebuild):
    """CE and KL per name, window by window, from the shards' rows and the text's tokens."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    block = model.get_submodule(block_path)
    totals, count = {name: [0.0, 0.0] for name in ("clean", *rebuild)}, 0
    for ids, rows in data:
        targets = torch.tensor(ids[1:])
        clean = plain_forward(model, block, ids).log_softmax(-1)[:-1]
        for name in totals:
            new = rebuild[name](rows) if name != "clean" else None
            log_p = plain_forward(model, block, ids, new).log_softmax(-1)[:-1]
            totals[name][0] -= float(log_p.gather(1, targets[:, None]).sum())
            totals[name][1] += float((clean.exp() * (clean - log_p)).sum())
        count += len(targets)
    return {name: (ce / count, kl / count) for name, (ce, kl) in totals.items()}


def harvested_windows(folder):
    import h5py

    found = []
    for path in sorted((folder / "eval").glob("*.h5")):
        with h5py.File(path) as file:
            start = np.flatnonzero(file["position"][:] == 0)
            for a, b in zip(start, [*start[1:], len(file["position"])]):
                found.append((file["tokens"][a:b].tolist(),
                              torch.from_numpy(file["activations"][a:b])))
    return found


@pytest.mark.parametrize("name, block", [("gpt2", "transformer.h.1"), ("llama", "model.layers.1")])
def test_equals_plain_forward_passes(name, block, run, model_folder, tmp_path, capfd):
    assert run("--eval_fraction", 0.3, "--site", "resid_post", model=name)[0] == 0
    data = tmp_path / "out"
    mean = torch.from_numpy(read_rows(data)).double().mean(dim=0).float()
    tensors = random_tensors()
    folders = [identity(tmp_path / "identity"), constant(tmp_path / "mean", mean),
               save_saelens(tmp_path / "topk", "topk", tensors, k=8)]
    topk = read_dictionary(str(folders[2]))
    assert judge("--model", model_folder(name), "--data", data, "--dictionary", *folders,
                 "--tokens", 10**6, "--json", tmp_path / "out.json", "--batch", 3) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    expected = reference(model_folder(name), block, harvested_windows(data), {
        "zero": lambda x: torch.zeros_like(x), "mean": lambda x: mean.expand_as(x),
        "topk": lambda x: topk.reconstruct(x)[0]})
    assert found["ce_clean"] == pytest.approx(expected["clean"][0], rel=1e-5)
    for key in ("zero", "mean"):
        assert found[f"ce_{key}"] == pytest.approx(expected[key][0], rel=1e-5)
        assert found[f"kl_{key}"] == pytest.approx(expected[key][1], rel=1e-4)
    same, average, own = found["dictionaries"]
    assert (own["ce"], own["kl"]) == pytest.approx(expected["topk"], rel=1e-4)

    zero_gap = found["ce_zero"] - found["ce_clean"]
    assert own["ce_loss_score"] == pytest.approx((found["ce_zero"] - own["ce"]) / zero_gap)
    assert own["kl_div_score_mean"] == pytest.approx(1 - own["kl"] / found["kl_mean"])
    for score in loss_recovered.SCORES:
        assert same[score] == pytest.approx(1, abs=1e-4)
    assert same["fvu"] == pytest.approx(0, abs=1e-10)
    for score in ("ce_loss_score_mean", "kl_div_score_mean"):
        assert average[score] == pytest.approx(0, abs=1e-5)
    rows = np.concatenate([x for _, x in harvested_windows(data)]).astype(np.float64)
    rebuilt = topk.reconstruct(torch.from_numpy(rows).float())[0].numpy()
    assert own["fvu"] == pytest.approx(((rows - rebuilt)**2).sum() / ((rows - rows.mean(0))**2).sum())
    assert found["rows"] == len(rows) and 0 < own["l0"] <= 8
    said = capfd.readouterr().out
    assert "kl_div_score_mean" in said and str(folders[2]) in said and "all held-out rows" in said


def test_rows_that_the_harvest_left_out_stay_as_they_are(run, model_folder, text_file, tmp_path):
    """Position 0 is not in the shards: its row is not replaced, and its token comes from the text."""
    assert run("--eval_fraction", 0.3, out="all")[0] == 0
    assert run("--eval_fraction", 0.3, "--drop_first", out="rest")[0] == 0
    mean = torch.from_numpy(read_rows(tmp_path / "rest")).double().mean(dim=0).float()
    folders = [identity(tmp_path / "identity"), constant(tmp_path / "mean", mean)]
    assert judge("--model", model_folder("gpt2"), "--data", tmp_path / "rest", "--dictionary",
                 *folders, "--text", text_file, "--json", tmp_path / "out.json") == 0
    found = json.loads((tmp_path / "out.json").read_text())
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder("gpt2")).eval()
    block, total, count = model.transformer.h[1], 0.0, 0
    for ids, rows in harvested_windows(tmp_path / "all"):
        if len(ids) < 3:
            continue
        new = torch.cat([rows[:1], mean.expand(len(rows) - 1, -1)])
        log_p = plain_forward(model, block, ids, new).log_softmax(-1)[1:-1]
        total -= float(log_p.gather(1, torch.tensor(ids[2:])[:, None]).sum())
        count += len(ids) - 2
    assert found["tokens"] == count
    assert found["ce_mean"] == pytest.approx(total / count, rel=1e-5)


# ---- the readers ---------------------------------------------------------------------------------

@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
@pytest.mark.parametrize("subtract", [True, False])
def test_saelens_folders_do_what_saelens_does(architecture, subtract, tmp_path):
    from sae_lens import SAE

    t = random_tensors()
    generator = torch.Generator().manual_seed(5)
    draw = lambda: 0.2 * torch.randn(3 * WIDTH, generator=generator)
    more = {"apply_b_dec_to_input": subtract}
    if architecture == "topk":
        more |= {"k": 5, "rescale_acts_by_decoder_norm": False}
    if architecture == "jumprelu":
        t["threshold"] = draw().abs() + 0.3
    if architecture == "gated":
        del t["b_enc"]
        t |= {"b_gate": draw(), "r_mag": draw(), "b_mag": draw()}
    folder = save_saelens(tmp_path / "sae", architecture, t, **more)
    x = torch.randn(300, WIDTH, generator=generator)
    sae = SAE.load_from_disk(str(folder), device="cpu")
    rebuilt, active = read_dictionary(str(folder)).reconstruct(x)
    with torch.no_grad():
        torch.testing.assert_close(rebuilt, sae(x), rtol=1e-4, atol=1e-5)
        assert active == int((sae.encode(x) > 0).sum())


def test_sparsify_folders_do_what_sparsify_does(tmp_path):
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(0)
    peer = SparseCoder(WIDTH, SparseCoderConfig(num_latents=96, k=7), device="cpu")
    with torch.no_grad():
        peer.encoder.bias.normal_(0, 0.1)
        peer.b_dec.normal_()
    peer.save_to_disk(tmp_path / "layers.1")
    x = torch.randn(200, WIDTH)
    with torch.no_grad():
        expected = peer(x).sae_out
    torch.testing.assert_close(read_dictionary(str(tmp_path / "layers.1")).reconstruct(x)[0],
                               expected, rtol=1e-4, atol=1e-5)


def test_a_run_is_its_export(run, model_folder, megadict_bin, tmp_path):
    assert run("--eval_fraction", 0.3)[0] == 0
    data, runs, sae = tmp_path / "out", tmp_path / "run", tmp_path / "sae"
    words = training.train_words(data, runs, data__tokens=101 * 20)
    assert training.run(megadict_bin, words).returncode == 0
    done = training.run(megadict_bin, ["export", "--run.dir", runs, "--format", "saelens", "--out", sae])
    assert done.returncode == 0, done.stderr
    assert judge("--model", model_folder("gpt2"), "--data", data, "--dictionary", runs, sae,
                 "--megadict", megadict_bin, "--json", tmp_path / "out.json") == 0
    mine, theirs = json.loads((tmp_path / "out.json").read_text())["dictionaries"]
    assert {**mine, "dictionary": "", "format": ""} == {**theirs, "dictionary": "", "format": ""}
    assert mine["format"] == "run, saelens topk" and mine["l0"] <= 3
    # The same rows as the binary's evaluation, so the same error.
    assert mine["fvu"] == pytest.approx(training.held_out_fvu(runs), rel=1e-4)


# ---- refusals ------------------------------------------------------------------------------------

def test_refusals(run, model_folder, tmp_path, capfd):
    model = model_folder("gpt2")
    assert run("--eval_fraction", 0.3)[0] == 0
    assert run("--eval_fraction", 0.3, out="other", model="llama")[0] == 0
    assert run("--eval_fraction", 0.3, "--drop_first", out="gaps")[0] == 0
    good = identity(tmp_path / "good")
    narrow = identity(tmp_path / "narrow", 5)
    hooked = save_saelens(tmp_path / "hooked", "topk", random_tensors(), k=3, metadata={
        "hook_name": "blocks.0.hook_resid_pre"})
    scaled = save_saelens(tmp_path / "scaled", "topk", random_tensors(), k=3,
                          normalize_activations="layer_norm")
    short = save_saelens(tmp_path / "short", "jumprelu", random_tensors())
    (tmp_path / "empty").mkdir()

    def refused(code, words, dictionary, data="out", *more):
        capfd.readouterr()
        found = judge("--model", model, "--data", tmp_path / data, "--dictionary", dictionary, *more)
        error = [line for line in capfd.readouterr().err.splitlines() if ": loading " not in line]
        assert (found, len(error)) == (code, 1) and words in error[0], error
        assert error[0].startswith("loss_recovered: ")

    refused(2, "5 wide, the rows 32", narrow)
    refused(2, "was trained at blocks.0.hook_resid_pre", hooked)
    refused(3, "normalize_activations = 'layer_norm' is not supported", scaled)
    refused(3, "holds W_dec, W_enc, b_dec, b_enc; allowed:", short)
    refused(3, "is no dictionary", tmp_path / "empty")
    refused(3, "no shard", good, "nowhere")
    refused(3, "off the rows of", good, "other")
    refused(2, "give --text", good, "gaps")
    refused(2, "there is no folder", good, "out", "--json", tmp_path / "no" / "out.json")
    refused(2, "is not the text of the harvest", good, "gaps", "--text", tmp_path / "good/cfg.json")
    refused(2, "--tokens", good, "out", "--tokens", 0)
