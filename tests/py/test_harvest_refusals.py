"""What harvest.py refuses: one line, the documented exit code."""

from shutil import copytree

import pytest
import transformers
from safetensors.torch import load_file, save_file

from harvest_cases import model_folder, run, text_file  # noqa: F401


@pytest.mark.parametrize("arguments,code,words", [
    (["--model", "no/such/folder"], 2, "nothing is downloaded"),
    (["--layer", "7"], 2, "layers 0 to 2"),
    (["--site", "resid_last"], 2, "resid_last"),
    (["--contxt", "16"], 2, "--context"),
    (["--context", "65"], 2, "64 positions"),
    (["--eval_fraction", "1.5"], 2, "not in [0, 1)"),
    (["--rows", "0"], 2, "not above 0"),
    (["--shard_rows", "8"], 2, "--context 32"),
    (["--max_norm_multiple", "0.5"], 2, "at least 1"),
    (["--text", "no_such.txt"], 3, "no_such.txt"),
    (["--separator", ""], 2, "--separator"),
    (["--separator", "never"], 2, "the text is one document"),
])
def test_refusals_are_one_line(run, arguments, code, words):
    found, _, error = run(*arguments)
    assert found == code, error
    assert words in error and error.startswith("harvest: ") and error.count("\n") == 1


def refused(run, code, words, **more):
    found, _, error = run(**more)
    assert (found, error.count("\n")) == (code, 1), error
    assert words in error


def test_unknown_family(run, tmp_path):
    folder = tmp_path / "bloom"
    transformers.AutoConfig.for_model("bloom").save_pretrained(folder)
    refused(run, 2, "'bloom' are not known; known: gemma", model=folder)


def test_bad_text(run, tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes("déjà vu".encode("latin-1"))
    refused(run, 3, "not UTF-8 near byte 1", text=latin)
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    refused(run, 3, "is empty", text=empty)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a b"}\n{"txt": 1}\n')
    refused(run, 3, "line 2", text=broken)


def test_broken_models(run, model_folder, tmp_path):
    no_tokenizer = copytree(model_folder("gpt2"), tmp_path / "no_tokenizer")
    for path in no_tokenizer.glob("tokenizer*"):
        path.unlink()
    refused(run, 3, "no usable tokenizer", model=no_tokenizer)
    cut = copytree(model_folder("gpt2"), tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(run, 3, "cannot load the model", model=cut, out="cut_out")
    lacking = copytree(model_folder("gpt2"), tmp_path / "lacking")
    tensors = load_file(lacking / "model.safetensors")
    del tensors["transformer.h.1.ln_1.weight"]
    save_file(tensors, lacking / "model.safetensors", {"format": "pt"})
    refused(run, 3, "lacks 1 tensors", model=lacking, out="lacking_out")


def test_foreign_tokenizer(run, model_folder, tmp_path):
    folder = copytree(model_folder("llama"), tmp_path / "small")
    config = transformers.AutoConfig.from_pretrained(folder)
    config.vocab_size = 260
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    refused(run, 3, "beyond the model's vocabulary of 260", model=folder)
