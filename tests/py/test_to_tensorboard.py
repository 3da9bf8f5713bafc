"""to_tensorboard.py, read back by TensorBoard itself."""

import json
import math
import struct

import pytest

import to_tensorboard
from megadict_tools.errors import main_guard
from megadict_tools.event_file import masked_crc32c, record


def convert(*arguments) -> int:
    return main_guard("to_tensorboard", lambda: to_tensorboard.main([str(a) for a in arguments]))


def read(folder) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def lines(steps):
    return [{"step": step, "tokens": step * 2048, "fvu": 1 / step, "lr": 3e-3,
             "dead_pct": None if step < 30 else 2.5, "losses/l1_loss": 0} for step in steps]


def append(run, found):
    run.mkdir(exist_ok=True)
    with open(run / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in found)


def expect(folder, wanted):
    found = read(folder)
    assert found.keys() == {"fvu", "lr", "dead_pct", "losses/l1_loss"}
    for tag, values in found.items():
        assert [(step, pytest.approx(value, rel=1e-6)) for step, value in values] == [
            (line["step"], line[tag]) for line in wanted if line[tag] is not None]


def test_checksums():
    # RFC 3720, B.4: CRC-32C of 32 zeros, of 32 ones, of 0 to 31
    for data, crc in ((bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)):
        rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
        assert masked_crc32c(data) == (rotated + 0xA282EAD8) & 0xFFFFFFFF
    assert struct.unpack("<Q", record(b"abc")[:8]) == (3,) and len(record(b"abc")) == 8 + 4 + 3 + 4


def test_round_trip_and_what_comes_later(tmp_path, capfd):
    run, out = tmp_path / "runs" / "a", tmp_path / "tb"
    run.parent.mkdir()
    first, second = lines(range(10, 200, 10)), lines(range(200, 300_000, 10_000))
    append(run, first)
    assert convert(run, "--out", out) == 0
    expect(out / "a", first)
    assert convert(run, "--out", out) == 0
    assert "0 new lines, 19 in all" in capfd.readouterr().out
    append(run, second)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 400000, "fv')  # being written
    assert convert(run, "--out", out) == 0
    expect(out / "a", first + second)
    assert len(list((out / "a").glob("events*"))) == 1


def test_after_a_resume_that_went_back(tmp_path):
    run, out = tmp_path / "a", tmp_path / "tb"
    append(run, lines(range(10, 200, 10)))
    assert convert(run, "--out", out) == 0
    (run / "metrics.jsonl").unlink()
    again = [line | {"lr": 1e-3} for line in lines(range(10, 400, 10))]
    append(run, again)
    assert convert(run, "--out", out) == 0
    expect(out / "a", again)


def test_what_an_interrupted_call_wrote_does_not_count(tmp_path):
    run, out = tmp_path / "a", tmp_path / "tb"
    append(run, lines(range(10, 50, 10)))
    assert convert(run, "--out", out) == 0
    state = (out / "a" / to_tensorboard.STATE_FILE).read_bytes()
    append(run, lines(range(50, 100, 10)))
    assert convert(run, "--out", out) == 0
    (out / "a" / to_tensorboard.STATE_FILE).write_bytes(state)  # events written, state not
    with open(next((out / "a").glob("events*")), "ab") as file:
        file.write(b"half a rec")
    assert convert(run, "--out", out) == 0
    expect(out / "a", lines(range(10, 100, 10)))
    (out / "a" / to_tensorboard.STATE_FILE).unlink()
    assert convert(run, "--out", out) == 0
    expect(out / "a", lines(range(10, 100, 10)))


def test_several_runs_and_odd_values(tmp_path):
    for name in ("1/run", "2/run"):
        (tmp_path / name).parent.mkdir()
        append(tmp_path / name, [{"step": 2**40, "fvu": math.inf, "l0": 1e300, "lr": 1e-3, "on": True,
                                  "text": "x"}])
    assert convert(tmp_path / "1/run", tmp_path / "2/run", "--out", tmp_path / "tb") == 0
    for name in ("1/run", "2/run"):
        assert read(tmp_path / "tb" / name) == {"lr": [(2**40, pytest.approx(1e-3))]}


def test_refusals(tmp_path, capfd):
    def refused(code, words, *arguments):
        capfd.readouterr()
        assert convert(*arguments) == code
        error = capfd.readouterr().err
        assert words in error and error.startswith("to_tensorboard: ") and error.count("\n") == 1, error

    run, out = tmp_path / "a", tmp_path / "tb"
    append(run, lines([10]))
    refused(3, "has no metrics.jsonl", tmp_path, "--out", out)
    refused(2, "--out", run)
    (tmp_path / "file").write_text("")
    refused(2, "cannot write into", run, "--out", tmp_path / "file")
    assert not out.exists()
    assert convert(run, "--out", out) == 0
    (out / "a" / to_tensorboard.STATE_FILE).write_text("{")
    refused(3, "is damaged", run, "--out", out)
    with open(run / "metrics.jsonl", "a") as file:
        file.write("not json\n")
    (out / "a" / to_tensorboard.STATE_FILE).unlink()
    refused(3, "near byte", run, "--out", out)
