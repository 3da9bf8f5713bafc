"""Folders that pretend to be another tool's dictionary: read, or refused in one line with exit 2 or 3;
no crash, no hang, no memory beyond what the files hold.

MEGADICT_FUZZ_CASES    how many damaged folders (default 40)
MEGADICT_FUZZ_SEED     which ones (default 1)
"""

import json
import os
import random
import shutil
import struct
import subprocess
import tempfile
import time
import zipfile

import pytest
from safetensors.numpy import load_file, save_file
from test_export import fixture_bin  # noqa: F401
from training import MPI_ENV, run

CASES = int(os.environ.get("MEGADICT_FUZZ_CASES", 40))
SEED = int(os.environ.get("MEGADICT_FUZZ_SEED", 1))
HANG_S, MEMORY_MB = 60, 400
ALLOWED = (0, 2, 3)

# what is damaged: the folder of export_fixture, its format, the settings' file, the tensors' file
SOUND = [
    ("topk_linear/saelens.unit", "saelens", "cfg.json", "sae_weights.safetensors"),
    ("gated_linear/saelens.unit", "saelens", "cfg.json", "sae_weights.safetensors"),
    ("topk_linear/sparsify.unit", "sparsify", "cfg.json", "sae.safetensors"),
    ("batchtopk_linear/dictionary_learning.unit", "dictionary_learning", "config.json", "ae.pt"),
    ("jumprelu_linear/dictionary_learning.unit", "dictionary_learning", "config.json", "ae.pt"),
    ("jumprelu_linear/openmoss.unit", "openmoss", "config.json", "sae_weights.safetensors"),
    ("relu_linear/openai.unit", "openai", None, "autoencoder.pt"),
    ("jumprelu_linear/gemma_npz.unit", "gemma_npz", None, "params.npz"),
]
ODD_VALUES = [None, True, -1, 0, 1, 13, 1.5, 4.0, -0.0, 1e308, 2**31 - 1, 2**31, 2**62, 2**63, 2**64, -2**63, "", "topk",
              "4", "a\0b", "\ud800", "x" * 100_000, "\r\nmegadict: all is well", [], [1], {}, {"k": 2}]  # fmt: skip
ODD_TEXTS = [b"", b"\0", b"null", b"[]", b"{", b'{"a":1}{"b":2}', b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b"NaN",
             b'{"k": NaN}', b'{"d_in": 1e999}', b'{"d_in": ' + b"9" * 5000 + b"}", b"[" * 200_000, b'{"a":' * 9_000,
             b'{"\xff": "\xfe"}', b'{"k":1,"k":2}', b" " * 1_000_000, b"PK\x03\x04", b"\x80\x02}."]  # fmt: skip


# --- each damages one file and says how


def paths_in(value, at=()):
    """Every place in a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] + [place for key, part in inside for place in paths_in(part, (*at, key))]


def other_value(draw, path):
    config = json.loads(path.read_text())
    *above, key = draw.choice(paths_in(config)[1:])
    place = config
    for step in above:
        place = place[step]
    place[key] = draw.choice(ODD_VALUES)
    path.write_text(json.dumps(config))
    return f"{key} = {str(place[key])[:40]!r}"


def key_missing(draw, path):
    config = json.loads(path.read_text())
    *above, key = draw.choice(paths_in(config)[1:])
    place = config
    for step in above:
        place = place[step]
    del place[key]
    path.write_text(json.dumps(config))
    return f"without {key}"


def other_text(draw, path):
    path.write_bytes(draw.choice(ODD_TEXTS))
    return repr(path.read_bytes()[:20])


def cut(draw, path):
    os.truncate(path, draw.randrange(path.stat().st_size))
    return f"cut to {path.stat().st_size} bytes"


def longer(draw, path):
    with path.open("ab") as file:
        file.write(draw.randbytes(draw.choice([1, 8, 1000])))
    return "bytes at the end"


def other_bytes(draw, path):
    content = bytearray(path.read_bytes())
    where = [draw.randrange(len(content)) for _ in range(draw.choice([1, 3, 20]))]
    for at in where:
        content[at] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
    path.write_bytes(content)
    return f"bytes {where}"


def endless(draw, path):
    os.truncate(path, draw.choice([2**29, 2**31, 2**40]))  # a hole: it takes no disk
    return f"{path.stat().st_size} bytes"


def folder_instead(_, path):
    path.unlink()
    path.mkdir()
    return "a folder"


def pipe_instead(_, path):
    path.unlink()
    os.mkfifo(path)
    return "a pipe that nobody writes to"


def link_instead(draw, path):
    target = draw.choice([path.name, "nowhere", "/dev/zero", "/dev/null", "/proc/self/mem", "."])
    path.unlink()
    path.symlink_to(target)
    return f"a link to {target}"


def missing(_, path):
    path.unlink()
    return "missing"


ANY_FILE = [cut, longer, other_bytes, other_bytes, endless, folder_instead, pipe_instead, link_instead, missing]
SETTINGS = [other_value, other_value, other_value, key_missing, key_missing, other_text]


def other_header(draw, path):
    """A safetensors header that says something else of the same bytes."""
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8:8 + length])
    name = draw.choice([name for name in header if name != "__metadata__"])
    entry, key = header[name], draw.choice(["dtype", "shape", "data_offsets", "name"])
    if key == "name":
        header[draw.choice(["", "x", "W_dec", "a\0b", "n" * 70_000])] = header.pop(name)
    elif key == "dtype":
        entry[key] = draw.choice(["F16", "F64", "I8", "BF16", "F8_E4M3", "f32", "", 4, None])
    else:
        entry[key] = draw.choice([[], [0], [-1, 4], [2**63, 2], [2**32, 2**32], [2**31, 2**31], [0, 2**62], [5, 1], "12",
                                  [[12]], [1.0], [1] * 3000, entry[key][::-1], None])  # fmt: skip
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length:])
    return f"{name}.{key}"


def other_member(draw, path):
    """A zip file whose members are others."""
    with zipfile.ZipFile(path) as file:
        members = [(info.filename, file.read(info)) for info in file.infolist()]
    at = draw.randrange(len(members))
    name, content = members[at]
    how = draw.choice(["twice", "gone", "empty", "cut", "renamed", "outside", "changed", "squeezed"])
    if how in ("gone", "renamed"):
        members.pop(at)
    if how != "gone":
        content = {"empty": b"", "cut": content[:len(content) // 2], "changed": bytes(
            byte ^ (draw.random() < 0.02) * draw.randrange(1, 256) for byte in content)}.get(how, content)  # fmt: skip
        named = {"renamed": "other.npy", "outside": "../../etc/x"}.get(how, name)
        members[at:at + (how not in ("twice", "renamed"))] = [(named, content)]
    squeezed = zipfile.ZIP_DEFLATED if how == "squeezed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", squeezed) as file:
        for name, content in members:
            file.writestr(name, content)
    return f"member {at} {how}"


def damaged(draw, sources, place):
    """A folder with one or two damages, the words for it, what was done."""
    source, format_name, settings, weights = draw.choice(SOUND)
    folder = place / "layers.3"
    shutil.copytree(sources / source, folder)
    done = [source]
    for _ in range(draw.choice([1, 1, 1, 2])):
        kinds = [(settings, how) for how in SETTINGS + ANY_FILE if settings]
        kinds += [(weights, other_header if weights.endswith("safetensors") else other_member)] * 5
        kinds += [(weights, how) for how in ANY_FILE]
        name, how = draw.choice(kinds)
        path = folder / name
        if path.is_symlink() or not path.is_file() or path.stat().st_size > 1 << 20:
            continue  # the first damage left nothing to damage
        try:
            done.append(f"{name} {how.__name__}: {how(draw, path)}")
        except (ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile, struct.error):
            pass  # nor in this way
    return folder, ["--format", format_name] if draw.random() < 0.5 else [], done


# --- what came of it


def most_memory(pid):
    """In MB, so far; 0 once the process has ended. (What wait4 tells counts the parent's before exec.)"""
    try:
        with open(f"/proc/{pid}/status") as file:
            return next((int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM:")), 0)
    except OSError:
        return 0


def watch(binary, words):
    """Exit code; what it printed; the most memory it was seen to hold, in MB."""
    memory, end = 0, time.monotonic() + HANG_S
    with tempfile.TemporaryFile() as err:
        process = subprocess.Popen([str(binary), *map(str, words)], stdout=subprocess.DEVNULL, stderr=err,
                                   stdin=subprocess.DEVNULL, env={**os.environ, **MPI_ENV})  # fmt: skip
        while process.poll() is None:
            memory = max(memory, most_memory(process.pid))
            if time.monotonic() > end or memory > MEMORY_MB:
                process.kill()
            time.sleep(0.005)
        err.seek(0)
        return process.returncode, err.read(), memory


def expect_sound(binary, words, done):
    code, err, memory = watch(binary, words)
    told = f"{done}\n{words}\nexit {code}, {memory:.0f} MB: {err[:600]!r}"
    assert code in ALLOWED, told
    assert memory < MEMORY_MB, told
    if code != 0:
        lines = err.decode("utf-8").splitlines()
        assert b"\0" not in err and b"\r" not in err, told
        said = [line for line in lines if not line.startswith("megadict: warning")]
        assert len(said) == 1 and said[0].startswith("megadict: ") and len(said[0]) < 2000, told
    return code


@pytest.fixture(scope="module")
def sources(fixture_bin, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("sound")
    subprocess.run([fixture_bin, "write", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def acts(megadict_bin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("acts") / "acts"
    words = ["data", "synth", "--out", folder, "--n_latents", 20, "--d", 12, "--k", 3, "--rows", 400]
    assert run(megadict_bin, words).returncode == 0
    return folder


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_damaged_folders_are_read_or_refused(megadict_bin, sources, acts, tmp_path):
    """Every third is judged, the others are imported."""
    codes = []
    for case in range(CASES):
        draw = random.Random(f"{SEED}.{case}")
        place = tmp_path / str(case)
        place.mkdir()
        folder, format_words, done = damaged(draw, sources, place)
        words = ["import", "--from", folder, "--out", place / "out", "--model.k", 5, *format_words]
        if case % 3 == 2:
            words = ["eval", "--run.dir", folder, "--data.path", acts]
        code = expect_sound(megadict_bin, words, [f"case {case}", *done])
        assert (place / "out").exists() == (code == 0 and words[0] == "import"), done
        codes.append(code)
        shutil.rmtree(place)
    assert codes.count(3) > CASES / 4
    assert codes.count(0) < CASES / 2


# --- folders that say little and would cost much; what is done to a sound OpenMOSS folder


def changed(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def width_of_nothing(folder):
    """Every tensor of the width that the settings say is one the reader makes itself."""
    changed(folder, d_model=2**31 - 1, expansion_factor=1e-9, use_decoder_bias=False)
    tensors = load_file(folder / "sae_weights.safetensors")
    save_file({name: tensors[name] for name in tensors if name != "b_D"}, folder / "sae_weights.safetensors")


def many_brackets(folder):
    (folder / "config.json").write_bytes(b'{"a": [' + b"[]," * 20_000_000 + b"0]}")


def many_texts(folder):
    texts = b"".join(b',"%d":""' % i for i in range(4_000_000))
    header = b'{"__metadata__":{"a":""' + texts + b"}}"
    (folder / "sae_weights.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def hole(folder):
    os.truncate(folder / "config.json", 2**29)


COSTLY = {width_of_nothing: "'W_E' is [12,40], the settings make it [2147483647,2]",
          many_brackets: "60000010 bytes, at most 4194304 are expected",
          many_texts: "too many texts in __metadata__", hole: "536870912 bytes"}  # fmt: skip


@pytest.mark.parametrize("damage", COSTLY, ids=lambda damage: damage.__name__)
def test_little_files_take_little_memory(megadict_bin, sources, tmp_path, damage):
    folder = tmp_path / "layers.3"
    shutil.copytree(sources / "relu_linear" / "openmoss.unit", folder)
    damage(folder)
    words = ["import", "--from", folder, "--out", tmp_path / "out"]
    assert expect_sound(megadict_bin, words, damage.__name__) == 3
    assert COSTLY[damage].encode() in watch(megadict_bin, words)[1]


@pytest.mark.parametrize("sizes", [[-3, 43], [float("nan"), 40], [], [39]], ids=str)
def test_group_sizes_that_are_none(megadict_bin, tmp_path, sizes):
    torch = pytest.importorskip("torch")
    folder = tmp_path / "layers.3"
    folder.mkdir()
    ones = {"W_enc": (12, 40), "b_enc": (40,), "W_dec": (40, 12), "b_dec": (12,)}
    state = {name: torch.ones(shape) for name, shape in ones.items()}
    state |= {"k": torch.tensor(5), "threshold": torch.tensor(0.5), "group_sizes": torch.tensor(sizes)}
    torch.save(state, folder / "ae.pt")
    trainer = {"dict_class": "MatryoshkaBatchTopKSAE", "activation_dim": 12, "dict_size": 40, "k": 5}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    assert expect_sound(megadict_bin, ["import", "--from", folder, "--out", tmp_path / "out"], sizes) == 3
