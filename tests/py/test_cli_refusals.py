"""Whatever a user gets wrong: one line on stderr, the right exit code, nothing written."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ERROR, USAGE, BAD_DATA = 1, 2, 3
MPI_ENV = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_btl_base_warn_component_unused": "0",
}


def call(binary, args, cwd, ranks=0):
    launcher = ["mpirun", "-n", str(ranks), "--oversubscribe", "--bind-to", "none"] if ranks else []
    return subprocess.run(
        [*launcher, str(binary), *args],
        cwd=cwd,
        env={**os.environ, **(MPI_ENV if ranks else {})},
        capture_output=True,
        text=True,
        timeout=300,
    )


def listing(folder: Path):
    """Every path below, and what the files hold."""
    return {str(p.relative_to(folder)): hash(p.read_bytes()) if p.is_file() else None
            for p in folder.rglob("*")}  # fmt: skip


@pytest.fixture(scope="session")
def acts(megadict_bin, tmp_path_factory):
    """500 rows of width 16, 50 of them held out."""
    folder = tmp_path_factory.mktemp("cli") / "acts"
    made = call(
        megadict_bin,
        ["data", "synth", "--out", str(folder), "--rows", "500", "--d", "16", "--n_latents", "32",
         "--eval_fraction", "0.1"],
        folder.parent,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture
def place(tmp_path, acts):
    """A working folder with the data set as acts/."""
    (tmp_path / "acts").symlink_to(acts)
    return tmp_path


def refused(binary, place, args, code, *parts, ranks=0):
    before = listing(place)
    done = call(binary, args, place, ranks)
    assert done.returncode == code, done.stdout + done.stderr
    ours = [line for line in done.stderr.splitlines() if line.startswith("megadict: ")]
    assert len(ours) == 1, done.stderr
    if not ranks:
        assert done.stderr == ours[0] + "\n"
    for sign in ("terminate called", "Traceback", "Exception", "what():"):
        assert sign not in done.stderr + done.stdout
    for part in parts:
        assert part in ours[0]
    assert listing(place) == before, "something was written"


COMMANDS = [
    ([], "needs a command"),
    (["trian"], "unknown command 'trian'. hint: did you mean 'train'?"),
    (["--versoin"], "unknown command '--versoin'"),
    (["data"], "'megadict data' needs a command"),
    (["data", "sinth"], "did you mean 'synth'?"),
    (["info", "--verbose", "1"], "unknown flag '--verbose'"),
    (["info", "more"], "unexpected argument 'more'"),
]


@pytest.mark.parametrize("args, part", COMMANDS, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_commands(megadict_bin, tmp_path, args, part):
    refused(megadict_bin, tmp_path, args, USAGE, part)


FLAGS = [
    (["--model.kk", "5"], "unknown flag '--model.kk'. hint: did you mean --model.k?"),
    (["--n_latents", "5"], "did you mean --model.n_latents?"),
    (["--model", "5"], "unknown flag '--model'"),
    (["--model.k"], "needs a value"),
    (["--model.k="], "needs a value"),
    (["--model.k", ""], "needs a value"),
    (["--run.seed", "--model.k", "3"], "--run.seed needs a value"),
    (["--model.k", "3", "--model.k=4"], "--model.k is given twice"),
    (["-k", "3"], "unexpected argument '-k'"),
    (["stray"], "unexpected argument 'stray'"),
]

VALUES = [
    (["--model.k", "0"], "model.k = '0' (command line): out of range; allowed: an integer, 1 to 65536"),
    (["--model.k", "-3"], "out of range"),
    (["--model.k", "3.5"], "not an integer"),
    (["--model.k", "three"], "not an integer"),
    (["--model.k", "0x10"], "not an integer"),
    (["--data.tokens", "1e30"], "too large a number"),
    (["--run.seed", "18446744073709551616"], "too large a number"),
    (["--optim.lr", "nan"], "not a finite number"),
    (["--optim.lr", "inf"], "not a finite number"),
    (["--optim.lr", "1e999"], "does not fit a double"),
    (["--optim.beta1", "1"], "allowed: a number, 0 to below 1"),
    (["--optim.name", "adma"], "did you mean 'adam'?"),
    (["--model.activation", "gelu"], "allowed: topk, relu, batchtopk"),
    (["--data.center", "yes"], "neither true nor false"),
    (["--model.encoder", "li\nnear\x1b[31m"], "'li\\x0anear\\x1b[31m'"),
    (["--optim.name", "a" * 5000], "..."),
]

COMBINATIONS = [
    (["--model.activation", "batchtopk", "--data.micro_batch_size", "64"],
     "data.micro_batch_size = 64 with model.activation = batchtopk, which selects over the whole data.batch_size"),
    (["--model.activation", "batchtopk", "--model.n_latents", "16"], "model.k = 32 is more than model.n_latents = 16"),
    (["--data.micro_batch_size", "300"], "data.micro_batch_size = 300 is more than data.batch_size = 128"),
    (["--data.tokens", "100"], "data.tokens = 100 is less than data.batch_size = 128"),
    (["--model.n_latents", "16"], "model.k = 32 is more than model.n_latents = 16"),
    (["--debug.hang_at", "x"], "debug.hang_rank"),
    (["--debug.hang_rank", "1"], "debug.hang_rank 1: there are ranks 0 to 0"),
    (["--mesh.feature", "2"], "does not divide 1 ranks"),
    (["--optim.warmup_steps", "99"], "optim.warmup_steps = 99 is more than the 3 steps of the run"),
    (["--dead.k_aux", "4096"], "dead.k_aux = 4096 is more than model.n_latents = 512"),
    (["--data.batch_size", "451"], "data.batch_size is 451"),
    (["--run.resume", "nowhere"], "run.resume = 'nowhere': no checkpoint"),
    (["--model.init_from", "nowhere"], "no dictionary at 'nowhere'"),
    (["--run.device", "cuda"], "run.device cuda"),
]


def named(value):
    return " ".join(value)[:40].encode("unicode_escape").decode() if isinstance(value, list) else ""


@pytest.mark.parametrize("args, part", FLAGS + VALUES + COMBINATIONS, ids=named)
def test_train(megadict_bin, place, args, part):
    base = ["train", "--data.path", "acts", "--run.dir", "run"]
    if "--data.batch_size" not in args:
        base += ["--data.batch_size", "128"]
    refused(megadict_bin, place, base + args, USAGE, part)


def test_train_names_what_is_needed(megadict_bin, place):
    refused(megadict_bin, place, ["train"], USAGE, "--data.path is needed")
    refused(megadict_bin, place, ["train", "--data.path", "acts"], USAGE, "--run.dir is needed")


FILES = [
    ("[model]\nkk = 3\n", "a.ini:2: unknown name 'model.kk'. hint: did you mean model.k?"),
    ("[model]\nk = 0\n", "model.k = '0' (a.ini:2): out of range"),
    ("[model]\nk =\n", "model.k = '' (a.ini:2): no value"),
    ("[model]\nk = 3\nk = 4\n", "a.ini:3: 'model.k' was already set in line 2"),
    ("[model\nk = 3\n", "a.ini:1: section '[model' has no closing ]"),
    ("just words\n", "a.ini:1: 'just words' is neither [section] nor name = value"),
    ("\x00\x01\x02\n", "a.ini:1: '\\x00\\x01\\x02' is neither"),
    ("[sweep]\ngrid = 3\n", "unknown name 'sweep.grid'"),
]


@pytest.mark.parametrize("text, part", FILES)
def test_config_files(megadict_bin, place, text, part):
    (place / "a.ini").write_text(text)
    args = ["train", "--config", "a.ini", "--data.path", "acts", "--run.dir", "run"]
    refused(megadict_bin, place, args, USAGE, part)


def test_config_file_of_another_system(megadict_bin, place):
    """A byte order mark and carriage returns do no harm."""
    (place / "a.ini").write_bytes(b"\xef\xbb\xbf[model]\r\nk = 0\r\n")
    args = ["train", "--config", "a.ini", "--data.path", "acts", "--run.dir", "run"]
    refused(megadict_bin, place, args, USAGE, "model.k = '0' (a.ini:2): out of range")


def test_config_file_that_cannot_be_read(megadict_bin, place):
    for name, why in (("no.ini", "No such file"), ("acts", "Is a directory")):
        args = ["train", "--config", name, "--data.path", "acts", "--run.dir", "run"]
        refused(megadict_bin, place, args, USAGE, f"cannot read config file '{name}': {why}")


def test_command_line_wins_over_a_good_file_only(megadict_bin, place):
    (place / "a.ini").write_text("[model]\nk = nonsense\n")
    args = ["train", "--config", "a.ini", "--model.k", "3", "--data.path", "acts", "--run.dir", "run"]
    refused(megadict_bin, place, args, USAGE, "a.ini:2")


def bad_shards(place: Path, kind: str) -> str:
    folder = place / kind
    if kind == "missing":
        return kind
    folder.mkdir()
    if kind == "text":
        (folder / "a.h5").write_text("not HDF5 at all")
    if kind == "torn":
        whole = next((place / "acts").glob("*.h5")).read_bytes()
        (folder / "a.h5").write_bytes(whole[: len(whole) // 2])
    return kind


def test_truth_that_is_not_there(megadict_bin, place):
    args = ["train", "--data.path", "acts", "--run.dir", "run", "--data.batch_size", "128"]
    refused(megadict_bin, place, [*args, "--eval.truth", "acts/eval"], BAD_DATA, "truth.safetensors")


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "torn"])
def test_bad_data(megadict_bin, place, kind):
    path = bad_shards(place, kind)
    refused(megadict_bin, place, ["train", "--data.path", path, "--run.dir", "run"], BAD_DATA, kind)
    before = listing(place)
    assert call(megadict_bin, ["data", "verify", path], place).returncode == BAD_DATA
    assert listing(place) == before


def test_held_out_rows_of_another_width(megadict_bin, place):
    args = ["data", "synth", "--out", "narrow", "--rows", "100", "--d", "8", "--eval_fraction", "0"]
    assert call(megadict_bin, args, place).returncode == 0
    args = ["train", "--data.path", "acts", "--data.eval_path", "narrow", "--run.dir", "run"]
    refused(megadict_bin, place, args, BAD_DATA, "'narrow' holds rows of width 8", "'acts' of width 16")


def test_run_folder_that_holds_a_run(megadict_bin, place):
    args = ["train", "--data.path", "acts", "--run.dir", "run", "--data.batch_size", "128"]
    assert call(megadict_bin, args, place).returncode == 0
    refused(megadict_bin, place, args, USAGE, "run.dir 'run' already holds a run", "--run.resume auto")
    args += ["--run.resume", "auto"]
    other = [*args, "--model.k", "3", "--run.seed", "1"]
    refused(megadict_bin, place, other, USAGE, "model.k '32' -> '3'", "run.seed '0' -> '1'")
    shutil.copytree(place / "run", place / "torn")
    (place / "torn" / "config.json").write_text("{")
    args[args.index("run")] = "torn"
    refused(megadict_bin, place, args, BAD_DATA, "torn/config.json", "not JSON")
    (place / "torn" / "config.json").unlink()
    refused(megadict_bin, place, args, BAD_DATA, "config.json' is missing")


@pytest.mark.parametrize(
    "args, code, part",
    [
        (["eval", "--run.dir", "none", "--data.path", "acts"], USAGE, "no dictionary at 'none'"),
        (["eval", "--data.path", "acts"], USAGE, "--run.dir is needed"),
        (["eval", "--run.dir", "none", "--data.path", "acts", "--weights", "best"], USAGE, "last, ema"),
        (["export", "--run.dir", "none", "--format", "saelens", "--out", "o"], USAGE, "no dictionary"),
        (["export", "--run.dir", "none", "--format", "saelense", "--out", "o"], USAGE, "'saelens'?"),
        (["import", "--from", "none", "--out", "o"], BAD_DATA, "'none' is no dictionary of a known format"),
        (["import", "--from", "acts"], USAGE, "--out is needed"),
        (["import", "--from", "acts", "--out", "o", "--format", "sparsfy"], USAGE, "'sparsify'?"),
        (["import", "--from", "acts", "--out", "o", "--format", "gemma_npz"], BAD_DATA, "params.npz"),
        (["import", "--from", "acts", "--out", "o", "--model.k", "-1"], USAGE, "model.k"),
        (["data", "synth", "--out", "o"], USAGE, "--rows is needed"),
        (["data", "synth", "--out", "o", "--rows", "10", "--k", "99"], USAGE, "k"),
        (["data", "synth", "--out", "o", "--rows", "1e2", "--sign", "haf"], USAGE, "did you mean 'half'?"),
        (["data", "import", "--out", "o"], USAGE, "--from is needed"),
        (["data", "import", "--from", "none.npy", "--out", "o"], BAD_DATA, "none.npy"),
        (["data", "shuffle", "--from", "none", "--out", "o"], BAD_DATA, "none"),
        (["data", "shuffle", "--from", "acts", "--out", "acts"], USAGE, "acts"),
        (["plan"], USAGE, "neither --d nor --data.path"),
        (["plan", "--data.path", "none"], BAD_DATA, "none"),
        (["plan", "--d", "0"], USAGE, "d = '0'"),
        (["plan", "--d", "16", "--ranks", "6", "--mesh.data", "4"], USAGE, "does not divide 6 ranks"),
    ],
    ids=named,
)
def test_other_commands(megadict_bin, place, args, code, part):
    refused(megadict_bin, place, args, code, part)


@pytest.mark.parametrize(
    "args, code, part",
    [
        (["trian"], USAGE, "did you mean 'train'?"),
        (["train", "--data.path", "acts", "--run.dir", "run", "--model.k", "x"], USAGE, "not an integer"),
        (["train", "--data.path", "acts", "--run.dir", "run", "--data.batch_size", "99", "--mesh.data", "2"],
         USAGE, "does not divide 3 ranks"),
        (["train", "--data.path", "none", "--run.dir", "run"], BAD_DATA, "none"),
        (["data", "synth", "--out", "o", "--rows", "10"], USAGE, "runs as one process"),
    ],
    ids=named,
)
def test_three_ranks_say_it_once(megadict_bin, place, args, code, part):
    refused(megadict_bin, place, args, code, part, ranks=3)


def test_help_and_version(megadict_bin, tmp_path):
    for args in (["--help"], ["-h"], ["data", "--help"], ["data", "synth", "--help"], ["train", "--help"],
                 ["eval", "--help"], ["export", "--help"], ["plan", "-h"], ["info", "--help"]):  # fmt: skip
        done = call(megadict_bin, args, tmp_path)
        assert done.returncode == 0 and done.stderr == ""
        assert done.stdout.startswith("usage: megadict ")
    done = call(megadict_bin, ["--version"], tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("megadict 0.")
    assert listing(tmp_path) == {}


def test_help_lists_every_frozen_name(megadict_bin, tmp_path, repo_root):
    text = call(megadict_bin, ["train", "--help"], tmp_path).stdout
    for name in (repo_root / "tests" / "golden" / "fields.txt").read_text().split():
        assert f"--{name} " in text


def test_a_run_that_does_not_fit_is_refused_with_the_numbers(megadict_bin, place):
    huge = ["train", "--data.path", "acts", "--run.dir", "run", "--data.batch_size", "50",
            "--model.n_latents", "1000000000"]  # fmt: skip
    refused(megadict_bin, place, huge, USAGE, "a rank needs ", " are free for it: ", "mesh 1x")
    refused(megadict_bin, place, huge, USAGE, "a rank needs ", ranks=2)


@pytest.fixture(scope="module")
def trained(megadict_bin, acts):
    """A run beside the data."""
    args = ["train", "--data.path", "acts", "--run.dir", "trained", "--data.batch_size", "128", "--model.k", "4"]
    done = call(megadict_bin, args, acts.parent)
    assert done.returncode == 0, done.stderr
    return acts.parent / "trained"


OUTPUTS = [
    ["eval", "--run.dir", "trained", "--data.path", "acts", "--json"],
    ["eval", "--run.dir", "trained", "--data.path", "acts", "--latents"],
    ["encode", "--run.dir", "trained", "--data.path", "acts", "--out"],
    ["compare", "trained", "trained", "--json"],
    ["plan", "--data.path", "acts", "--json"],
    ["bench", "kernels", "--json"],
]
FOLDERS = [
    ["export", "--run.dir", "trained", "--format", "saelens", "--out"],
    ["import", "--from", "exported", "--out"],
    ["data", "synth", "--rows", "10", "--out"],
    ["data", "import", "--from", "acts", "--out"],
    ["data", "shuffle", "--from", "acts", "--out"],
    ["train", "--data.path", "acts", "--run.dir"],
    ["sweep", "--data.path", "acts", "--set", "model.k=2,4", "--sweep.dir"],
    ["sweep", "--evaluate", "trained", "--data.path", "acts", "--sweep.dir"],
]


@pytest.fixture
def outputs(megadict_bin, place, trained):
    (place / "trained").symlink_to(trained)
    args = ["export", "--run.dir", "trained", "--format", "saelens", "--out", "exported"]
    assert call(megadict_bin, args, place).returncode == 0
    (place / "file").write_text("in the way")
    (place / "folder").mkdir()
    return place


@pytest.mark.parametrize("args", OUTPUTS, ids=named)
def test_files_that_cannot_be_written(megadict_bin, outputs, args):
    for path, why in (("nix/x", "there is no folder 'nix'"), ("file/x", "'file' is no folder"),
                      ("folder", "it is a folder")):  # fmt: skip
        refused(megadict_bin, outputs, [*args, path], USAGE, f"cannot write '{path}': {why}. hint: ")


@pytest.mark.parametrize("args", FOLDERS, ids=named)
def test_folders_that_cannot_be_made(megadict_bin, outputs, args):
    refused(megadict_bin, outputs, [*args, "file/x"], USAGE, "cannot write 'file/x': 'file' is no folder. hint: ")
    refused(megadict_bin, outputs, [*args, "file"], USAGE, "'file'")


@pytest.mark.parametrize("args", [OUTPUTS[0], OUTPUTS[2], FOLDERS[5], FOLDERS[6], FOLDERS[7]], ids=named)
def test_two_ranks_refuse_outputs_once(megadict_bin, outputs, args):
    refused(megadict_bin, outputs, [*args, "file/x"], USAGE, "cannot write 'file/x': 'file' is no folder", ranks=2)


def test_paths_stay_whole(megadict_bin, place):
    path = "/".join(["a_folder_with_a_long_name"] * 12)
    refused(megadict_bin, place, ["eval", "--run.dir", path, "--data.path", "acts"], USAGE, f"'{path}'")
    refused(megadict_bin, place, ["train", "--config", path], USAGE, f"'{path}'")
    refused(megadict_bin, place, ["sweep", "--collect", "--set", "model.k=2,4", "--sweep.dir", path], USAGE,
            f"'{path}'")


def test_dictionary_of_unknown_rows_says_what_loaders_will_miss(megadict_bin, outputs):
    args = ["export", "--run.dir", "trained", "--format", "dictionary_learning", "--out", "dl"]
    done = call(megadict_bin, args, outputs)
    assert done.returncode == 0
    assert "'lm_name' or 'layer' in 'dl/config.json'" in done.stderr and "--model NAME --layer N" in done.stderr


def test_what_is_read_is_not_replaced(megadict_bin, outputs):
    judge = ["eval", "--run.dir", "trained", "--data.path", "acts"]
    shard = next((outputs / "acts").glob("*.h5")).relative_to(outputs)
    held_out = next((outputs / "acts" / "eval").glob("*.h5")).relative_to(outputs)
    encode = ["encode", "--run.dir", "trained", "--data.path", "acts", "--out"]
    refused(megadict_bin, outputs, [*judge, "--latents", str(held_out)], USAGE, "it is a shard of the data")
    refused(megadict_bin, outputs, [*encode, str(shard)], USAGE, "it is a shard of the data")
    for path in ("trained/config.json", "trained/final/state.json", "exported/cfg.json",
                 "exported/sae_weights.safetensors"):  # fmt: skip
        refused(megadict_bin, outputs, [*judge, "--json", path], USAGE, "it is a file of a run or a dictionary")
    refused(megadict_bin, outputs, [*judge, "--json", "x", "--latents", "x"], USAGE, "'x' is to be written twice")
