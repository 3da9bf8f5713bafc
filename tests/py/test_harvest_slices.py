"""Slices of a harvest, and what --text may be besides plain text."""

import json
from collections import Counter

import h5py
import numpy as np
import pytest
from harvest_cases import DOCUMENTS, model_folder, run, text_file  # noqa: F401

pa = pytest.importorskip("pyarrow")
COLUMNS = ("activations", "norm", "tokens", "position", "document")


def shards(folder):
    return sorted(folder.glob("*.h5"))


def rows_by_place(folder) -> dict[tuple[int, int, int], dict]:
    """(document, position, how often before) -> what the shards say of that row."""
    found, seen = {}, Counter()
    for path in shards(folder):
        with h5py.File(path) as file:
            data = {name: file[name][:] for name in COLUMNS}
        for i, place in enumerate(zip(data["document"].tolist(), data["position"].tolist())):
            found[*place, seen[place]] = {name: data[name][i] for name in COLUMNS}
            seen[place] += 1
    return found


def documents_of(folder) -> dict[int, list[int]]:
    """Document -> its tokens in order."""
    found = {}
    for path in shards(folder):
        with h5py.File(path) as file:
            for number, token in zip(file["document"][:].tolist(), file["tokens"][:].tolist()):
                found.setdefault(number, []).append(token)
    return found


def done(answer):
    code, out, error = answer
    assert code == 0, error
    return out


def test_slices_make_up_the_whole(run, tmp_path):  # noqa: F811
    """The same rows as without slices, held-out and norm filter included, each in one slice."""
    settings = ("--shard_rows", 300, "--eval_fraction", 0.2, "--max_norm_multiple", 1.1)
    done(run(*settings, out="whole"))
    for index in (2, 0, 1):  # in any order
        done(run(*settings, "--slice", f"{index}/3", out="sliced"))
    for split in (".", "eval"):
        whole, sliced = (rows_by_place(tmp_path / name / split) for name in ("whole", "sliced"))
        assert whole.keys() == sliced.keys() and whole
        for place, row in whole.items():
            assert row["tokens"] == sliced[place]["tokens"]
            np.testing.assert_allclose(row["activations"], sliced[place]["activations"], rtol=1e-4, atol=1e-5)
    states = [json.loads(path.read_text()) for path in sorted((tmp_path / "sliced").glob("*harvest.json"))]
    assert len({state["median_norm"]["resid_post.1"] for state in states}) == 1
    assert [state["settings"]["slice"] for state in states] == ["0/3", "1/3", "2/3"]
    assert all(state["complete"] for state in states)


def test_a_slice_again_has_nothing_to_do_and_the_others_are_left_alone(run, tmp_path):  # noqa: F811
    done(run("--slice", "0/2"))
    done(run("--slice", "1/2"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.h5")}
    assert "is complete: nothing to do" in done(run("--slice", "1/2"))
    removed = shards(tmp_path / "out")[0]
    state = tmp_path / "out" / "slice_00000_harvest.json"
    state.write_text(state.read_text().replace('"complete": true', '"complete": false'))
    removed.unlink()
    done(run("--slice", "0/2"))
    assert removed.exists()
    del before[removed]
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_slices_share_the_rows(run, tmp_path):  # noqa: F811
    for index in range(3):
        done(run("--slice", f"{index}/3", "--rows", 100, "--eval_fraction", 0))
    assert sum(len(h5py.File(path)["norm"]) for path in (tmp_path / "out").rglob("*.h5")) == 100


@pytest.mark.parametrize("text", ["3/3", "1", "-1/2", "a/b", "1/0", "1/2/3"])
def test_a_slice_that_is_none_is_refused(run, tmp_path, text):  # noqa: F811
    code, _, error = run(f"--slice={text}")
    assert code == 2 and f"'{text}' is not I/N with 0 <= I < N" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("more", "part"), [
    (("--slice", "1/3"), "holds slices of 2"), ((), "holds slices of 2"),
    (("--slice", "1/2", "--seed", 4), "has slices with seed = 0, now it is 4"),
])  # fmt: skip
def test_slices_of_another_harvest_are_refused(run, more, part):  # noqa: F811
    done(run("--slice", "0/2"))
    code, _, error = run(*more)
    assert code == 2 and part in error and error.count("\n") == 1


def test_a_slice_in_the_folder_of_a_whole_harvest_is_refused(run):  # noqa: F811
    done(run())
    code, _, error = run("--slice", "0/2")
    assert code == 2 and "holds a harvest without slices" in error


def test_more_slices_than_documents_are_refused(run):  # noqa: F811
    code, _, error = run("--slice", "99/100")
    assert code == 3 and "the text of slice 99/100 has no training rows" in error and "fewer slices" in error


# ---- kinds of files ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenised(model_folder):  # noqa: F811
    """The documents' tokens, and the number of the token that ends one."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder("gpt2"))
    return [tokenizer(text)["input_ids"] for text in DOCUMENTS], tokenizer.eos_token_id


def write_jsonl(path, tokens, end):
    path.write_text("".join(json.dumps({"story": text}) + "\n" for text in DOCUMENTS))
    return ["--text_column", "story"]


def write_jsonl_tokens(path, tokens, end):
    path.write_text("".join(json.dumps({"text": ids}) + "\n" for ids in tokens))
    return []


def write_parquet(path, tokens, end):
    from pyarrow import parquet

    parquet.write_table(pa.table({"id": range(len(DOCUMENTS)), "text": DOCUMENTS}), path, row_group_size=7)
    return []


def write_parquet_tokens(path, tokens, end):
    from pyarrow import parquet

    parquet.write_table(pa.table({"input_ids": tokens}), path)
    return ["--text_column", "input_ids"]


def write_arrow_file(path, tokens, end):
    table = pa.table({"text": DOCUMENTS})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=9)
    return []


def write_arrow_stream(path, tokens, end):
    table = pa.table({"text": DOCUMENTS})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=9)
    return []


def write_tokens(path, tokens, end, dtype="<u2"):
    np.array([token for ids in tokens for token in [*ids, end]], dtype).tofile(path)
    return []


def write_wide_tokens(path, tokens, end):
    write_tokens(path, tokens, end, "<u4")
    return ["--token_dtype", "uint32"]


KINDS = {
    "a.jsonl": write_jsonl, "b.jsonl": write_jsonl_tokens, "a.parquet": write_parquet,
    "b.parquet": write_parquet_tokens, "a.arrow": write_arrow_file, "b.arrow": write_arrow_stream,
    "a.bin": write_tokens, "b.bin": write_wide_tokens,
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_documents(name, run, tokenised, tmp_path):  # noqa: F811
    tokens, end = tokenised
    words = KINDS[name](tmp_path / name, tokens, end)
    done(run("--eval_fraction", 0, *words, text=tmp_path / name))
    assert documents_of(tmp_path / "out") == dict(enumerate(tokens))


def broken_parquet(path):
    path.write_bytes(b"PAR1 not really")


def broken_arrow(path):
    path.write_bytes(b"ARROW1\0\0 nothing")


def other_column(path):
    from pyarrow import parquet

    parquet.write_table(pa.table({"title": DOCUMENTS}), path)


def numbers_in_column(path):
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": [1.5, 2.5]}), path)


def odd_bytes(path):
    path.write_bytes(b"123")


BROKEN = [
    ("a.parquet", broken_parquet, 3, "cannot read"), ("a.arrow", broken_arrow, 3, "cannot read"),
    ("b.parquet", other_column, 3, "has no column 'text', it has title. hint: --text_column"),
    ("c.parquet", numbers_in_column, 3, "neither a string nor a list of tokens"),
    ("a.bin", odd_bytes, 3, "has 3 bytes, no multiple of the 2 of a token. hint: --token_dtype"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write", "code", "part"), BROKEN)
def test_broken_files_are_refused(name, write, code, part, run, tmp_path):  # noqa: F811
    write(tmp_path / name)
    found, _, error = run(text=tmp_path / name)
    assert (found, error.count("\n")) == (code, 1), error
    assert part in error and name in error
    assert not list(tmp_path.rglob("*.h5"))


def test_a_separator_that_is_no_token_is_refused(run, tokenised, tmp_path):  # noqa: F811
    write_tokens(tmp_path / "a.bin", *tokenised)
    code, _, error = run("--separator", "<|nothing|>", text=tmp_path / "a.bin")
    assert code == 2 and "'<|nothing|>' is no token of the model" in error and "<|endoftext|>" in error


def test_tokens_of_another_vocabulary_are_refused(run, tmp_path):  # noqa: F811
    np.full(100, 60000, "<u2").tofile(tmp_path / "a.bin")
    code, _, error = run("--eval_fraction", 0, text=tmp_path / "a.bin")
    assert code == 3 and "beyond the model's vocabulary" in error
