"""Fixtures of the harvest tests: models made once, a text, and a way to run the tool."""

import pytest

import harvest
from megadict_tools.errors import main_guard
from tiny_models import FAMILIES, make_model, stories, write_text

DOCUMENTS = stories(60)
CONTEXT = 32


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    made = {}

    def make(name):
        if name not in made:
            made[name] = make_model(tmp_path_factory.mktemp(name), name)
        return made[name]

    return make


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "stories.txt", DOCUMENTS)


@pytest.fixture
def run(model_folder, text_file, tmp_path, capfd):
    """run("--dtype", "float16", ...) -> (exit code, stdout, stderr), written to tmp_path/out."""

    def call(*arguments, model="gpt2", out="out", layer=(1,), text=text_file):
        folder = str(model_folder(model) if model in FAMILIES else model)
        capfd.readouterr()  # what making the model has said
        code = main_guard("harvest", lambda: harvest.main([
            "--model", folder,
            "--out", str(tmp_path / out), "--context", str(CONTEXT), "--batch", "4",
            "--threads", "1", "--layer", *map(str, layer), "--text", str(text),
            *map(str, arguments)]))
        return (code, *capfd.readouterr())

    return call
