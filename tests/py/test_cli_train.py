"""From nothing to an exported dictionary through the binary alone, on one rank and on several."""

import json
import re

import pytest
from test_cli_refusals import call

TRAIN = ["train", "--data.path", "acts", "--data.batch_size", "256", "--model.n_latents", "64",
         "--model.k", "3", "--optim.lr", "3e-3", "--log.every_steps", "10"]  # fmt: skip


@pytest.fixture(scope="module")
def place(megadict_bin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    args = ["data", "synth", "--out", "acts", "--rows", "20000", "--d", "24", "--n_latents", "32",
            "--k", "3", "--seed", "7"]  # fmt: skip
    assert call(megadict_bin, args, folder).returncode == 0
    return folder


def done(binary, args, place, ranks=0):
    result = call(binary, args, place, ranks)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def run(megadict_bin, place):
    done(megadict_bin, [*TRAIN, "--run.dir", "run", "--data.tokens", "60000"], place)
    return place / "run"


def test_run_folder_says_what_ran(run):
    config = json.loads((run / "config.json").read_text())
    assert config["model.k"] == {"value": 3, "source": "command line"}
    assert config["data.eval_path"] == {"value": "acts/eval", "source": "resolved"}
    assert config["optim.beta1"] == {"value": 0.9, "source": "default"}
    assert config["optim.warmup_steps"]["source"] == "resolved"
    env = json.loads((run / "env.json").read_text())
    assert env["command"][0] == "--data.path" and env["ranks"] == 1
    assert len((run / "ranks.txt").read_text().splitlines()) == 2
    assert (run / "final" / "state.json").exists()
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["tokens"] == 59904 and steps[-1]["eval/fvu"] < 0.2
    assert steps[-1]["metrics/mean_log10_feature_sparsity"] < 0
    assert steps[-1]["sparsity/below_1e-6"] <= steps[-1]["sparsity/below_1e-5"]


def test_eval_against_the_planted_dictionary(megadict_bin, place, run):
    args = ["eval", "--run.dir", "run", "--data.path", "acts", "--eval.truth", "acts", "--json", "e.json"]
    text = done(megadict_bin, args, place)
    scores = json.loads((place / "e.json").read_text())
    assert scores["rows"] == 1000 and re.search(r"^mcc ", text, re.M)
    assert scores["mcc"] > scores["random_mcc"] + 0.2
    once = scores["fvu"]
    done(megadict_bin, args, place, ranks=2)
    again = json.loads((place / "e.json").read_text())
    assert again["fvu"] == pytest.approx(once, rel=1e-6)


def test_exported_dictionary_scores_the_same(megadict_bin, place, run):
    done(megadict_bin, ["export", "--run.dir", "run", "--format", "saelens", "--out", "peer"], place)
    fvu = []
    for folder in ("run", "peer"):
        args = ["eval", "--run.dir", folder, "--data.path", "acts", "--json", "x.json"]
        done(megadict_bin, args, place)
        fvu.append(json.loads((place / "x.json").read_text())["fvu"])
    assert fvu[1] == pytest.approx(fvu[0], rel=1e-5)


@pytest.mark.parametrize("tool", ["saelens", "sparsify", "dictionary_learning", "openmoss"])
def test_an_imported_dictionary_scores_the_same(megadict_bin, place, run, tool):
    peer, native = f"as_{tool}", f"from_{tool}"
    done(megadict_bin, ["export", "--run.dir", "run", "--format", tool, "--out", peer], place)
    done(megadict_bin, ["import", "--from", peer, "--out", native], place)
    fvu = []
    for folder in ("run", peer, native):
        done(megadict_bin, ["eval", "--run.dir", folder, "--data.path", "acts", "--json", "x.json"], place)
        fvu.append(json.loads((place / "x.json").read_text())["fvu"])
    assert fvu[1:] == pytest.approx([fvu[0], fvu[0]], rel=1e-5)
    done(megadict_bin, ["export", "--run.dir", native, "--format", "saelens", "--out", f"again_{tool}"], place)


def test_longer_run_resumes_with_a_notice(megadict_bin, place, run):
    args = [*TRAIN, "--run.dir", "run", "--run.resume", "auto", "--data.tokens", "70000"]
    result = call(megadict_bin, args, place)
    assert result.returncode == 0, result.stderr
    assert "note: data.tokens was '60000', is '70000' from here on" in result.stderr
    assert "resuming 'run/checkpoints/step_000000234'" in result.stdout
    config = json.loads((run / "config.json").read_text())
    assert config["data.tokens"]["value"] == 70000
    assert config["dead.window_tokens"]["value"] == 6000  # as the first start resolved it


def test_mesh_of_four_learns_as_well(megadict_bin, place, run):
    args = [*TRAIN, "--run.dir", "mesh", "--data.tokens", "60000", "--mesh.data", "2", "--eval.truth", "acts"]
    done(megadict_bin, args, place, ranks=4)
    scores = json.loads((place / "mesh" / "final" / "eval.json").read_text())
    assert scores["fvu"] < 0.2
    assert scores["mcc"] > scores["random_mcc"] + 0.2
    assert len((place / "mesh" / "ranks.txt").read_text().splitlines()) == 5


def test_ini_file_sets_what_the_command_line_leaves(megadict_bin, place):
    (place / "a.ini").write_text("# a comment\n[model]\nk = 5\nn_latents = 48 ; another\n[optim]\nlr = 1e-3\n")
    args = ["train", "--config", "a.ini", "--data.path", "acts", "--run.dir", "ini", "--model.k", "4",
            "--data.tokens", "8192"]  # fmt: skip
    done(megadict_bin, args, place)
    config = json.loads((place / "ini" / "config.json").read_text())
    assert config["model.k"] == {"value": 4, "source": "command line"}
    assert config["model.n_latents"] == {"value": 48, "source": "a.ini:4"}
    assert config["optim.lr"] == {"value": 0.001, "source": "a.ini:6"}


def test_plan_reads_the_width_from_the_data(megadict_bin, place):
    text = done(megadict_bin, ["plan", "--data.path", "acts", "--ranks", "4"], place)
    assert "768 latents of width 24" in text
    assert "meshes of 4 rank(s)" in text and "2x2" in text
