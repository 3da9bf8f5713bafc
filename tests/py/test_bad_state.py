"""state.json, config.json and tensors that no run of this program wrote: every value is checked before it is used,
by resume, eval, export and model.init_from alike."""

import json
import shutil
import struct

import numpy as np
import pytest
from test_bad_checkpoints import NEWEST, PART, interrupted, trained, with_run  # noqa: F401
from test_bad_files import done, train
from test_cli_refusals import BAD_DATA, acts, call, place, refused  # noqa: F401


def with_value(path, dotted, value):
    """Sets, or with ... removes, one value of a JSON file."""
    whole = json.loads(path.read_text())
    at = whole
    *folders, name = dotted.split("/")
    for folder in folders:
        at = at[int(folder) if folder.isdigit() else folder]
    if value is ...:
        del at[name]
    else:
        at[int(name) if name.isdigit() else name] = value
    path.write_text(json.dumps(whole))


DEEP = "[" * 1_000_000 + "]" * 1_000_000
LATENTS, WIDTHS = "an integer, 1 to 2147483648", "an integer, 1 to 131072"
COUNTS = "an integer, 0 to 9007199254740992"
STATES = [  # what is set in state.json, to what, what is said
    ("format", "megadict checkpoint 2", 'format is "megadict checkpoint 2"; allowed: megadict checkpoint 1'),
    ("format", ..., "format is missing"),
    ("n_latents", 0, f"n_latents is 0; allowed: {LATENTS}"),
    ("n_latents", 2**31 + 1, f"n_latents is 2147483649; allowed: {LATENTS}"),
    ("n_latents", 2**64 - 1, f"n_latents is 18446744073709551615; allowed: {LATENTS}"),
    ("n_latents", 64.5, f"n_latents is 64.5; allowed: {LATENTS}"),
    ("n_latents", 2**31, "the parts hold 64 of 2147483648 latents"),
    ("d", 0, f"d is 0; allowed: {WIDTHS}"),
    ("d", 131073, f"d is 131073; allowed: {WIDTHS}"),
    ("d", 131072, f"{PART}': W_enc is [64,16], state.json says [64,131072]"),
    ("seed", -1, "seed is -1; allowed: an integer, 0 or more"),
    ("step", 1.5, f"step is 1.5; allowed: {COUNTS}"),
    ("step", 2**53 + 1, f"step is 9007199254740993; allowed: {COUNTS}"),
    ("resampled_at", -1, "resampled_at is -1; allowed: an integer, 0 to "),
    ("tokens", -1, f"tokens is -1; allowed: {COUNTS}"),
    ("tokens", 1e300, f"tokens is 1e+300; allowed: {COUNTS}"),
    ("var_total", 0, "var_total is 0; allowed: a number above 0"),
    ("model", [], "model.encoder is missing"),
    ("model/k", 1.7, "model.k is 1.7; allowed: an integer, 1 to 64"),
    ("model/k", 0, "model.k is 0; allowed: an integer, 1 to 64"),
    ("model/k", 65, "model.k is 65; allowed: an integer, 1 to 64"),
    ("model/k", {"a": 1}, "model.k is an object; allowed: an integer, 1 to 64"),
    ("model/encoder", "gru", 'model.encoder is "gru"; allowed: linear, mlp, deep'),
    ("model/encoder", "deep", "model.hidden is missing"),
    ("model/decoder", "deep", "model.decoder_norm is missing"),
    ("model/activation", "gelu", 'model.activation is "gelu"; allowed: topk, relu, batchtopk'),
    ("model/decoder", "x" * 999, "; allowed: linear, tied"),
    ("model/decoder", "tied", f"model.decoder is \"tied\", but 'run/{NEWEST}/{PART}' holds a W_dec"),
    ("screen", {"windows": [6]}, "screen.thresholds is missing"),
    ("screen", {"windows": [6, 6], "thresholds": [0, 0]}, "screen.windows is an array; allowed: a list of 1 numbers"),
    ("screen", {"windows": [5.9], "thresholds": [0]}, "screen.windows is 5.9; allowed: numbers from 6 to 12"),
    ("screen", {"windows": [6], "thresholds": ["a"]}, 'screen.thresholds is "a"; allowed: numbers from 0 to'),
    ("normalize", ..., "normalize.scale is missing"),
    ("normalize/scale", "1", 'normalize.scale is "1"; allowed: a number above 0'),
    ("normalize/centred", 1, "normalize.centred is 1; allowed: true or false"),
    ("normalize/centred", True, "normalize.centred is true, but"),
    ("data", [], "data is an array; allowed: an object"),
    ("parts", [], "parts is an array; allowed: a list of one or more"),
    ("parts", {}, "parts is an object; allowed: a list of one or more"),
    ("parts/0", 3, "parts[0].begin is missing"),
    ("parts/0/begin", 1, "parts[0] holds latents 1 to 64; allowed: from 0 on, up to 64"),
    ("parts/0/end", 65, "parts[0].end is 65; allowed: an integer, 0 to 64"),
    ("parts/0/end", -1, "parts[0].end is -1; allowed: an integer, 0 to 64"),
    ("parts/0/file", "../x", 'parts[0].file is "../x"; allowed: the name of a file in the same folder'),
    ("parts/0/file", 7, "parts[0].file is 7"),
]  # fmt: skip


@pytest.mark.parametrize("row", range(len(STATES)), ids=[f"{n}={v}"[:40] for n, v, _ in STATES])
def test_state_that_cannot_be(megadict_bin, interrupted, row):  # noqa: F811
    name, value, part = STATES[row]
    folder = f"run/{NEWEST}"
    with_value(interrupted / folder / "state.json", name, value)
    resume = train("acts", "run", "--run.resume", "auto")
    refused(megadict_bin, interrupted, ["eval", "--run.dir", folder, "--data.path", "acts"], BAD_DATA, NEWEST, part)
    refused(megadict_bin, interrupted, resume, BAD_DATA, NEWEST, part, ranks=3 if row == 0 else 0)
    if name == "normalize/centred" and value is True:
        args = ["export", "--format", "saelens", "--out", "o", "--run.dir", folder]
        refused(megadict_bin, interrupted, args, BAD_DATA, NEWEST, part)


@pytest.mark.parametrize(
    "text, part",
    [(DEEP, "more than 64 brackets"), ('{"step": 1e999}', "a number fits no double")],
    ids=["deep", "huge"],
)
def test_state_that_no_parser_should_meet(megadict_bin, interrupted, text, part):  # noqa: F811
    (interrupted / "run" / NEWEST / "state.json").write_text(text)
    for args in (train("acts", "run", "--run.resume", "auto"),
                 ["eval", "--run.dir", f"run/{NEWEST}", "--data.path", "acts"]):  # fmt: skip
        refused(megadict_bin, interrupted, args, BAD_DATA, f"{NEWEST}/state.json': {part}")


def test_unreadable_end_of_a_run(megadict_bin, with_run):  # noqa: F811
    """The checkpoint beside it counts."""
    (with_run / "run" / "final" / "state.json").write_text('{"step": ' + DEEP + "}")
    args = ["eval", "--run.dir", "run", "--data.path", "acts", "--json", "scores.json"]
    done(megadict_bin, with_run, args)
    assert json.loads((with_run / "scores.json").read_text())["checkpoint"] == f"run/{NEWEST}"


def test_tied_without_its_decoder(megadict_bin, place):  # noqa: F811
    done(megadict_bin, place, train("acts", "tied", "--model.decoder", "tied"))
    with_value(place / "tied" / "final" / "state.json", "model/decoder", "linear")
    refused(megadict_bin, place, ["eval", "--run.dir", "tied", "--data.path", "acts"], BAD_DATA,
            "tied/final/state.json': model.decoder is \"linear\", but",
            f"'tied/final/{PART}' holds no W_dec")  # fmt: skip


def test_mean_that_nobody_subtracts(megadict_bin, place):  # noqa: F811
    done(megadict_bin, place, train("acts", "run", "--data.center", "true"))
    with_value(place / "run" / "final" / "state.json", "normalize/centred", False)
    for args in (["eval", "--data.path", "acts"], ["export", "--format", "saelens", "--out", "o"]):
        refused(megadict_bin, place, [*args, "--run.dir", "run"], BAD_DATA, "normalize.centred is false, but",
                "holds a normalize.mean")  # fmt: skip


MIXED = [("seed", 5, "0"), ("model/k", 4, "3"), ("model/activation", "relu", "topk")]


@pytest.mark.parametrize("name, value, before", MIXED)
def test_state_and_settings_of_two_runs(megadict_bin, interrupted, name, value, before):  # noqa: F811
    with_value(interrupted / "run" / NEWEST / "state.json", name, value)
    for ranks in (0, 3) if name == "seed" else (0,):
        refused(megadict_bin, interrupted, train("acts", "run", "--run.resume", "auto"), BAD_DATA,
                f"'run/{NEWEST}/state.json' and 'run/config.json' are of different runs: "
                f"{name.replace('/', '.')} is {value} and {before}", ranks=ranks)  # fmt: skip


def test_latents_of_two_runs(megadict_bin, interrupted):  # noqa: F811
    words = train("acts", "other")
    words[words.index("--model.n_latents") + 1] = "32"
    done(megadict_bin, interrupted, words)
    shutil.rmtree(interrupted / "run" / NEWEST)
    shutil.copytree(interrupted / "other" / NEWEST, interrupted / "run" / NEWEST)
    refused(megadict_bin, interrupted, train("acts", "run", "--run.resume", "auto"), BAD_DATA, "of different runs: "
            "model.n_latents is 32 and 64")  # fmt: skip


def spoil(path, name, value):
    """The last element of a float tensor."""
    whole = bytearray(path.read_bytes())
    length = struct.unpack("<Q", whole[:8])[0]
    end = json.loads(whole[8:8 + length])[name]["data_offsets"][1]
    whole[8 + length + end - 4:8 + length + end] = struct.pack("<f", value)
    path.write_bytes(whole)


@pytest.mark.parametrize("name, value", [("W_enc", np.nan), ("W_dec", np.inf), ("b_enc", -np.inf), ("b_dec", np.nan),
                                         ("moment1.W_enc", np.nan), ("moment2.b_dec", np.inf)])  # fmt: skip
def test_weights_that_are_not_finite(megadict_bin, interrupted, name, value):  # noqa: F811
    folder, part = f"run/{NEWEST}", f"{PART}': {name} holds values that are not finite"
    spoil(interrupted / folder / PART, name, value)
    resume = train("acts", "run", "--run.resume", "auto")
    refused(megadict_bin, interrupted, resume, BAD_DATA, part, ranks=3 if name == "W_dec" else 0)
    if name.startswith("moment"):
        return
    for args in (["eval", "--data.path", "acts", "--run.dir", folder],
                 train("acts", "new", "--model.init_from", folder),
                 ["export", "--format", "saelens", "--out", "o", "--run.dir", folder]):  # fmt: skip
        refused(megadict_bin, interrupted, args, BAD_DATA, part)


SETTINGS = [
    ("model.k", 0, "model.k = '0' (saved): out of range; allowed: an integer, 1 to 65536"),
    ("model.k", 3.5, "model.k = '3.5' (saved): not an integer"),
    ("model.k", "3", "the value of model.k is of type string; allowed: an integer, 1 to 65536"),
    ("model.k", None, "the value of model.k is of type null"),
    ("model.activation", "gelu", "model.activation = 'gelu' (saved): not a known value; allowed: topk, relu, batchtopk"),
    ("model.activation", "", "model.activation = '' (saved)"),
    ("model.n_latents", 2**40, "model.n_latents = '1099511627776' (saved): out of range"),
    ("data.center", "no", "the value of data.center is of type string; allowed: true or false"),
    ("data.path", ["acts"], "the value of data.path is of type array; allowed: any text"),
    ("optim.lr", {}, "the value of optim.lr is of type object; allowed: a number"),
    ("debug.hang_rank", -2, "debug.hang_rank = '-2' (saved): out of range"),
]


@pytest.mark.parametrize("row", range(len(SETTINGS)), ids=[f"{n}={v}" for n, v, _ in SETTINGS])
def test_saved_settings_that_nobody_could_set(megadict_bin, interrupted, row):  # noqa: F811
    name, value, part = SETTINGS[row]
    with_value(interrupted / "run" / "config.json", f"{name}/value", value)
    refused(megadict_bin, interrupted, train("acts", "run", "--run.resume", "auto"), BAD_DATA,
            "cannot use 'run/config.json': ", part, ranks=3 if row == 0 else 0)  # fmt: skip


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_brackets_without_end(megadict_bin, interrupted, name):  # noqa: F811
    path = interrupted / "run" / name
    path.write_text('{"data.path": {"value": ' + DEEP + ', "source": "resolved"}}\n')
    args = train("acts", "run", "--run.resume", "auto", "--data.tokens", "540")
    if name == "config.json":
        refused(megadict_bin, interrupted, args, BAD_DATA, "cannot use 'run/config.json': too many brackets")
        return
    result = call(megadict_bin, args, interrupted)
    assert result.returncode == BAD_DATA and "line 1 is not a JSON object" in result.stderr
