"""What harvest.py writes, the megadict binary trains on and judges."""

import json
import os
import subprocess

import pytest

import harvest
from megadict_tools.errors import main_guard
from tiny_models import make_model, stories, write_text

ENVIRONMENT = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_harvest_trains(dtype, megadict_bin, tmp_path):
    model = make_model(tmp_path / "gpt2", "gpt2")
    text = write_text(tmp_path / "text.txt", stories(150))
    assert main_guard("harvest", lambda: harvest.main([
        "--model", str(model), "--text", str(text), "--layer", "1", "--context", "32", "--rows",
        "3000", "--shard_rows", "1000", "--dtype", dtype, "--threads", "1", "--out",
        str(tmp_path / "acts")])) == 0
    result = subprocess.run(
        [megadict_bin, "train", "--data.path", tmp_path / "acts", "--run.dir", tmp_path / "run",
         "--model.n_latents", "128", "--model.k", "4", "--data.batch_size", "128", "--data.tokens",
         "5120", "--run.threads", "1"], capture_output=True, text=True, env=ENVIRONMENT,
        timeout=300)
    assert result.returncode == 0, result.stderr
    judged = json.loads((tmp_path / "run" / "final" / "eval.json").read_text())
    assert judged["rows"] == 150  # 5 % of 3000
    assert 0 < judged["fvu"] < 1
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["data.eval_path"]["value"] == str(tmp_path / "acts" / "eval")
