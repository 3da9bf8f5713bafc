"""`megadict bench`: what it compares is right, and what it writes is there. No time is judged."""

import json

import pytest

from test_cli_refusals import BAD_DATA, USAGE, call, refused


def test_kernels(megadict_bin, tmp_path):
    out = tmp_path / "kernels.json"
    done = call(megadict_bin, ["bench", "kernels", "--d", "48", "--n_latents", "1000", "--k", "5", "--rows", "200",
                               "--repeats", "1", "--json", str(out)], tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    names = [line["name"] for line in report["lines"]]
    assert {"encode fp32", "decode", "row pass adam"} <= set(names)
    for line in report["lines"]:
        assert line["median_s"] > 0 and line["rate"] > 0
        assert line.get("wrong", 0) == 0, line
        assert line["name"] in done.stdout


@pytest.mark.parametrize("ranks, more", [
    (0, []), (0, ["--encode", "fp32", "--optimiser", "adam_b1_0", "--dead", "40", "--k_aux", "9"]), (2, []),
    (4, ["--mesh.data", "2", "--mesh.feature", "2", "--optimiser", "sign_sgd"]),
    (4, ["--mesh.data", "2", "--mesh.exchange", "tokens", "--micro", "13", "--mesh.overlap", "true"]),
    (2, ["--encode", "screen_bf16"]), (0, ["--encode", "screen_int8"]),
])  # fmt: skip
def test_step(megadict_bin, need_screen, tmp_path, ranks, more):
    out = tmp_path / "step.json"
    encode = [] if "--encode" in more else ["--encode", "fp32"]
    for word in more:
        if word.startswith("screen_"):
            need_screen(word)
    done = call(megadict_bin, ["bench", "step", "--d", "24", "--n_latents", "131", "--k", "5", "--rows", "61",
                               "--repeats", "2", "--json", str(out), *encode, *more], tmp_path, ranks)  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    times = {line["name"]: line["median_s"] for line in report["lines"]}
    names = ["rows", "encode", "decode", "auxk", "update", "step", "in collectives"]
    if "--mesh.overlap" in more:
        names += [f"overlapped {name}" for name in names] + ["moved meanwhile"]
    assert list(times) == names
    assert (times["auxk"] > 0) == ("--k_aux" in more)
    assert 0 < times["encode"] < times["step"]


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16"])
def acts(request, megadict_bin, tmp_path_factory):
    path = tmp_path_factory.mktemp("loader") / "acts"
    done = call(megadict_bin, ["data", "synth", "--out", str(path), "--rows", "3001", "--d", "24", "--eval_fraction",
                               "0", "--dtype", request.param], path.parent)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize("ranks, more", [(0, ["--cold", "true"]), (3, []), (4, ["--mesh.data", "2"])])
def test_loader(megadict_bin, acts, tmp_path, ranks, more):
    out = tmp_path / "loader.json"
    done = call(megadict_bin, ["bench", "loader", "--data.path", str(acts), "--data.batch_size", "128",
                               "--data.shuffle_buffer", "500", "--repeats", "2", "--json", str(out), *more],
                tmp_path, ranks)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = {line["name"]: line for line in json.loads(out.read_text())["lines"]}
    hot = lines["batch stream, hot"]
    assert (hot["compared"], hot["wrong"]) == (3001, 0) and hot["bound"] > 0 and hot["rate"] > 0
    assert ("batch stream, cold" in lines) == ("--cold" in more)


@pytest.mark.parametrize("ranks, more", [(0, []), (1, []), (2, []), (3, []), (4, ["--mesh.data", "2"]), (6, [])])
def test_comm(megadict_bin, tmp_path, ranks, more):
    out = tmp_path / "comm.json"
    done = call(megadict_bin, ["bench", "comm", "--most_bytes", "70000", "--factor", "90", "--seconds", "0",
                               "--repeats", "1", "--json", str(out), *more], tmp_path, ranks)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = json.loads(out.read_text())["lines"]
    assert {line["collective"] for line in lines} == {
        "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "all_to_all_v", "broadcast", "barrier"
    }  # fmt: skip
    assert {line["axis"] for line in lines} == ({"world", "feature", "data"} if more else {"world"})
    for line in lines:
        assert line["wrong"] == 0, line
        assert line["compared"] > 0 or line["collective"] == "barrier"
        assert (line["received_bytes"] > 0) == (line["bytes"] > 0 and line["ranks"] > 1), line


def test_lab(megadict_bin, tmp_path):
    out = tmp_path / "lab.json"
    done = call(megadict_bin, ["bench", "lab", "--sae_steps", "20", "--codes_steps", "20", "--repeats", "1",
                               "--json", str(out)], tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    sae, codes = json.loads(out.read_text())["lines"]
    assert (sae["compared"], sae["wrong"]) == (256, 0) and sae["rate"] > 0 and codes["rate"] > 0


@pytest.mark.parametrize("words, part", [
    (["--data.path", "nowhere"], "no folder 'nowhere'"),
    (["--data.path", "empty"], "no *.h5 shards"),
    (["--data.path", "notes"], "not a whole HDF5 file"),
])  # fmt: skip
def test_loader_without_shards(megadict_bin, tmp_path, words, part):
    for folder in ("empty", "notes"):
        (tmp_path / folder).mkdir()
    (tmp_path / "notes" / "a.h5").write_text("no shard")
    refused(megadict_bin, tmp_path, ["bench", "loader", *words], BAD_DATA, part)


@pytest.mark.parametrize("words, part", [
    (["bench"], "needs a command"),
    (["bench", "loder"], "loader"),
    (["bench", "loader"], "--data.path is needed"),
    (["bench", "comm", "--least_bytes", "9", "--most_bytes", "8"], "most_bytes = 8 is less than"),
    (["bench", "comm", "--mesh.feature", "3"], "mesh"),
    (["bench", "kernels", "--k", "9", "--n_latents", "8"], "k = 9 is larger than n_latents = 8"),
    (["bench", "kernels", "--rows", "0"], "rows"),
    (["bench", "step", "--k", "9", "--n_latents", "8"], "is larger than n_latents = 8"),
    (["bench", "step", "--optimiser", "adma"], "adam"),
    (["bench", "step", "--rows", "64", "--micro", "65"], "micro = 65 of 64 rows"),
    (["bench", "step", "--isa", "avx2", "--encode", "screen_int8"], "no instructions for it in avx2"),
    (["bench", "kernels", "--json", "nowhere/a.json"], "no folder 'nowhere'"),
    (["bench", "step", "--mesh.feature", "3"], "mesh"),
])  # fmt: skip
def test_refusals(megadict_bin, tmp_path, words, part):
    refused(megadict_bin, tmp_path, words, USAGE, part)


@pytest.fixture(scope="module")
def machine(megadict_bin, tmp_path_factory):
    path = tmp_path_factory.mktemp("machine") / "machine.json"
    done = call(megadict_bin, ["bench", "machine", "--seconds", "0.2", "--folder", ".", "--json", str(path)],
                path.parent)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return path


PLAN = ["plan", "--d", "768", "--rows", "100000", "--model.n_latents", "32768"]


def test_plan_says_times_of_a_machine(megadict_bin, machine, tmp_path):
    facts = json.loads(machine.read_text())
    assert facts["measured"] and facts["fp32_flops_per_s"] > 1e8
    done = call(megadict_bin, [*PLAN, "--machine", str(machine), "--ranks", "4"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "seconds of a step on " in done.stdout and "fastest mesh by ranks" in done.stdout
    assert any(line.split()[:1] == ["4096"] for line in done.stdout.splitlines())
    assert "a projection" not in done.stdout
    machine = tmp_path / "other.json"
    machine.write_text(json.dumps(facts | {"measured": False}))
    assert "a projection" in call(megadict_bin, [*PLAN, "--machine", str(machine)], tmp_path).stdout


def test_plan_compares_saving_with_the_signal(megadict_bin, machine, tmp_path):
    facts = json.loads(machine.read_text()) | {"checkpoint_bytes_per_s": 1e6}
    slow = tmp_path / "slow.json"
    slow.write_text(json.dumps(facts))
    done = call(megadict_bin, [*PLAN, "--machine", str(slow)], tmp_path)
    assert "after the signal: a step, 577 MiB at 977 KiB/s on 1 node(s)" in done.stdout
    assert "the job's signal leaves 300 s; ask for twice" in done.stderr + done.stdout
    quiet = call(megadict_bin, [*PLAN, "--machine", str(slow), "--signal_s", "2000"], tmp_path)
    assert quiet.returncode == 0 and "ask for twice" not in quiet.stderr + quiet.stdout
    slow.write_text(json.dumps(facts | {"checkpoint_bytes_per_s": 0}))
    assert "after the signal" not in call(megadict_bin, [*PLAN, "--machine", str(slow)], tmp_path).stdout


def test_a_folder_that_takes_no_checkpoints(megadict_bin, tmp_path):
    refused(megadict_bin, tmp_path, ["bench", "machine", "--seconds", "0.1", "--folder", "none"], USAGE, "no folder 'none'")


@pytest.mark.parametrize("name", ["cpu2_avx512_vnni", "cpu2_amx", "h200_node"])
def test_machine_files_that_are_shipped(megadict_bin, repo_root, tmp_path, name):
    path = repo_root / "configs" / "machines" / f"{name}.json"
    assert json.loads(path.read_text())["assumptions"]
    done = call(megadict_bin, [*PLAN, "--machine", str(path), "--ranks", "8"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(a projection)" in done.stdout


@pytest.mark.parametrize("text, part", [
    ("[]", "it holds no object"), ("{}", "no number"), ("{", "JSON"),
    ('{"threads": 2, "fp32_flops_per_s": -1}', "'fp32_flops_per_s' is not positive"),
])  # fmt: skip
def test_machine_files_that_are_none(megadict_bin, tmp_path, text, part):
    (tmp_path / "bad.json").write_text(text)
    refused(megadict_bin, tmp_path, [*PLAN, "--machine", "bad.json"], BAD_DATA, part)
