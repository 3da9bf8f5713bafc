"""The sweep command: groups, failures, resume, the array form, and that a point is its single run."""

import csv
import json
import os
import shutil
import signal
import time

import h5py
import pytest
from training import ranks_of, run, same_bits, start, synth

STEPS = 60


@pytest.fixture(scope="module")
def data(megadict_bin, tmp_path_factory):
    return synth(megadict_bin, tmp_path_factory.mktemp("data") / "acts", rows=8000)


def fields(data, **more):
    base = {
        "data.path": data,
        "model.n_latents": 67,
        "model.k": 3,
        "data.batch_size": 101,
        "data.tokens": 101 * STEPS,
        "optim.lr": "3e-3",
        "log.every_steps": 10,
    }
    base.update({name.replace("__", "."): value for name, value in more.items()})
    return base


def words(values):
    return [word for name, value in values.items() for word in (f"--{name}", value)]


def sweep_words(data, out, sets, *switches, **more):
    varied = {text.partition("=")[0] for text in sets}
    given = {name: value for name, value in fields(data, **more).items() if name not in varied}
    axes = [word for text in sets for word in ("--set", text)]
    return ["sweep", "--sweep.dir", out, *axes, *words(given), *switches]


def table(out):
    return json.loads((out / "sweep.json").read_text())["points"]


def by_name(out):
    return {row["name"]: row for row in table(out)}


def single_run(binary, data, out, ranks=1, **more):
    done = run(binary, ["train", "--run.dir", out, *words(fields(data, **more))], ranks=ranks)
    assert done.returncode == 0, done.stderr
    return out


GRID = ["model.k=2,4", "optim.lr=1e-3,4e-3"]


@pytest.mark.parametrize("ranks, mesh, groups", [(1, {}, 1), (4, {}, 4), (4, {"mesh__feature": 2}, 2)],
                         ids=["one rank", "four groups", "two groups of 1x2"])
def test_points_are_their_single_runs(megadict_bin, data, tmp_path, ranks, mesh, groups):
    out = tmp_path / "sweep"
    done = run(megadict_bin, sweep_words(data, out, GRID, **mesh), ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert f"4 points, {groups} group(s)" in done.stdout
    rows = by_name(out)
    assert len(rows) == 4 and all(row["status"] == "done" for row in rows.values())
    for k in (2, 4):
        row = rows[f"model.k={k}_optim.lr=0.004"]
        lone = single_run(megadict_bin, data, tmp_path / f"lone{k}", ranks // groups, model__k=k,
                          optim__lr="4e-3", **mesh)
        assert same_bits(lone / "final", out / "points" / row["name"] / "final")
        assert row["metrics"]["fvu"] == json.loads((lone / "final/eval.json").read_text())["fvu"]
    with open(out / "sweep.csv") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["fvu"]) for line in lines] == sorted(float(line["fvu"]) for line in lines)
    assert {"name", "model.k", "optim.lr", "l0", "fvu", "run", "status"} <= lines[0].keys()
    assert lines[0]["run"] == f"{out}/points/{lines[0]['name']}"


def test_a_second_start_fills_the_holes_only(megadict_bin, data, tmp_path):
    out = tmp_path / "sweep"
    assert run(megadict_bin, sweep_words(data, out, ["model.k=2,4"])).returncode == 0
    before = (out / "points/model.k=2/final/state.json").stat().st_mtime_ns
    shutil.rmtree(out / "points/model.k=4")
    done = run(megadict_bin, sweep_words(data, out, ["model.k=2,4,8"]))
    assert done.returncode == 0, done.stderr
    assert (out / "points/model.k=2/final/state.json").stat().st_mtime_ns == before
    assert {name: row["status"] for name, row in by_name(out).items()} == {
        "model.k=2": "done", "model.k=4": "done", "model.k=8": "done"}
    other = run(megadict_bin, sweep_words(data, out, ["model.k=2,4"], optim__beta1=0.5))
    assert other.returncode == 2
    assert "is finished with optim.beta1 = '0.9', the sweep now says '0.5'" in other.stderr


@pytest.mark.parametrize("ranks, mesh", [(1, {}), (2, {}), (4, {"mesh__feature": 2})])
def test_a_failed_point_does_not_stop_the_rest(megadict_bin, data, tmp_path, ranks, mesh):
    """One diverges (4), one is refused (2), one has no data (3); the others are done."""
    grid = tmp_path / "grid.ini"
    absent = tmp_path / "absent"
    grid.write_text("[points]\nwild = optim.lr=10 optim.warmup_steps=0 optim.beta2=0\n"
                    "good = model.k=4\nwide = model.k=5 optim.warmup_steps=1000000\n"
                    f"none = data.path={absent}\nlast = model.k=6\n")
    out = tmp_path / "sweep"
    given = fields(data, **mesh)
    lone = {name: given.pop(name) for name in ("model.k", "optim.lr", "data.path")}
    config = tmp_path / "base.ini"
    config.write_text("".join(f"{name} = {value}\n" for name, value in lone.items()))
    base = ["sweep", "--grid", grid, "--config", config, "--sweep.dir", out, *words(given)]
    done = run(megadict_bin, base, ranks=ranks)
    assert done.returncode == 1, done.stderr
    rows = by_name(out)
    assert {name: (row["status"], row["code"]) for name, row in rows.items()} == {
        "wild": ("failed", 4), "good": ("done", 0), "wide": ("failed", 2), "none": ("failed", 3),
        "last": ("done", 0)}
    assert "optim.warmup_steps = 1000000 is more than" in rows["wide"]["error"]
    # Left alone, unless asked for.
    stamp = (out / "points/wide/point.json").stat().st_mtime_ns
    assert run(megadict_bin, base, ranks=ranks).returncode == 1
    assert (out / "points/wide/point.json").stat().st_mtime_ns == stamp
    shutil.copytree(data, absent)
    again = run(megadict_bin, [*base, "--retry"], ranks=ranks)
    assert again.returncode == 1
    assert by_name(out)["none"]["status"] == "done"
    assert (out / "points/wide/point.json").stat().st_mtime_ns != stamp


def wait_until(true, process, limit_s=120):
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if true():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError(f"not within {limit_s} s")


LONG = {"data__tokens": 101 * 4000, "checkpoint__every_steps": 200}


def begun(out):
    """Every one of two points is on its way and has a checkpoint."""
    return all(list((out / "points" / name / "checkpoints").glob("step_*[0-9]"))
               for name in ("model.k=2", "model.k=4"))


@pytest.fixture(scope="module")
def long_runs(megadict_bin, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("long") / "sweep"
    done = run(megadict_bin, sweep_words(data, out, ["model.k=2,4"], **LONG), ranks=2)
    assert done.returncode == 0, done.stderr
    return out


def test_kill_9_of_the_whole_job_loses_nothing(megadict_bin, data, long_runs, tmp_path):
    out = tmp_path / "sweep"
    given = sweep_words(data, out, ["model.k=2,4"], **LONG)
    process = start(megadict_bin, given, ranks=2)
    wait_until(lambda: begun(out), process)
    for pid in ranks_of(out):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (out / "sweep.json").exists()
    collected = run(megadict_bin, [*given, "--collect"])
    assert collected.returncode == 0
    assert "interrupted" in {row["status"] for row in table(out)}
    done = run(megadict_bin, given, ranks=2)
    assert done.returncode == 0, done.stderr
    for name in ("model.k=2", "model.k=4"):
        assert same_bits(long_runs / "points" / name / "final", out / "points" / name / "final")
        assert "resuming" in (out / "points" / name / "log.txt").read_text()
    assert not list((out / "claims").iterdir())


def test_usr1_saves_all_groups(megadict_bin, data, long_runs, tmp_path):
    out = tmp_path / "sweep"
    given = sweep_words(data, out, ["model.k=2,4"], **LONG)
    process = start(megadict_bin, given, ranks=2)
    wait_until(lambda: begun(out), process)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert all(row["status"] == "interrupted" for row in table(out))
    assert run(megadict_bin, given, ranks=2).returncode == 0
    for name in ("model.k=2", "model.k=4"):
        assert same_bits(long_runs / "points" / name / "final", out / "points" / name / "final")


def test_array_form_runs_one_point(megadict_bin, data, tmp_path):
    out = tmp_path / "sweep"
    given = sweep_words(data, out, ["model.k=2,4,8"])
    count = run(megadict_bin, [*given, "--count"])
    assert count.stdout == "3\n"
    for point in (2, 0):
        done = run(megadict_bin, [*given, "--sweep.point", point], ranks=2)
        assert done.returncode == 0, done.stderr
    assert {row["index"]: row["status"] for row in table(out)} == {
        0: "done", 1: "waiting", 2: "done"}
    refused = run(megadict_bin, [*given, "--sweep.point", 3])
    assert refused.returncode == 2
    assert "sweep.point = 3: the grid has 3 points; allowed: 0 to 2" in refused.stderr
    lone = single_run(megadict_bin, data, tmp_path / "lone", 2, model__k=8)
    assert same_bits(lone / "final", out / "points/model.k=8/final")


def test_a_busy_point_is_left_to_who_has_it(megadict_bin, data, long_runs, tmp_path):
    """Refused where it is asked for alone; otherwise left out, and its winner's record stays."""
    out = tmp_path / "sweep"
    given = sweep_words(data, out, ["model.k=2,4"], **LONG)
    first = start(megadict_bin, [*given, "--sweep.point", 0])
    wait_until(lambda: (out / "points/model.k=2/metrics.jsonl").exists(), first)
    alone = run(megadict_bin, [*given, "--sweep.point", 0])
    assert alone.returncode == 2
    assert alone.stderr == ("megadict: point 0 is busy: another process works on it. "
                            "hint: wait until that one has ended\n")
    collected = run(megadict_bin, [*given, "--collect"])
    assert collected.returncode == 0
    assert {row["index"]: row["status"] for row in table(out)} == {0: "running", 1: "waiting"}
    os.kill(first.pid, signal.SIGSTOP)
    try:
        rest = run(megadict_bin, given)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert rest.returncode == 0, rest.stderr
    assert "point 0 is left out: another process works on it" in rest.stdout
    assert "1 of 2 points done, 0 failed, 0 open, 1 point(s) open elsewhere; table in" in rest.stdout
    _, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    assert {row["status"] for row in table(out)} == {"done"}
    for name in ("model.k=2", "model.k=4"):
        assert same_bits(long_runs / "points" / name / "final", out / "points" / name / "final")


def test_many_processes_fill_one_folder(megadict_bin, data, tmp_path):
    """No point fails because another process was faster, and the last table is whole."""
    out = tmp_path / "sweep"
    given = sweep_words(data, out, ["model.k=2,3,4,5,6,7"])
    racing = [start(megadict_bin, given) for _ in range(4)]
    seen = []
    while any(process.poll() is None for process in racing):
        if (out / "sweep.csv").exists():
            seen.append(len((out / "sweep.csv").read_text().splitlines()))
            json.loads((out / "sweep.json").read_text()) if (out / "sweep.json").exists() else None
        time.sleep(0.005)
    for process in racing:
        _, err = process.communicate(timeout=10)
        assert process.returncode == 0, err
    assert {row["status"] for row in table(out)} == {"done"} and len(table(out)) == 6
    assert set(seen) <= {7}
    assert not list(out.glob("*.tmp-*")) and not list((out / "claims").iterdir())
    for name in by_name(out):
        assert (out / "points" / name / "log.txt").read_text().count("done: ") == 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_obstacle_is_its_points_failure(megadict_bin, data, tmp_path, ranks):
    out = tmp_path / "sweep"
    given = sweep_words(data, out, ["model.k=2,4,8"])
    (out / "points/model.k=8/point.json/x").mkdir(parents=True)
    (out / "points/model.k=2").write_text("")
    for switches in ([], ["--retry"]):
        done = run(megadict_bin, [*given, *switches], ranks=ranks)
        assert done.returncode == 1, done.stderr
        rows = by_name(out)
        assert (rows["model.k=2"]["status"], rows["model.k=2"]["code"]) == ("failed", 2)
        assert rows["model.k=2"]["error"] == f"'{out}/points/model.k=2' is no folder"
        assert rows["model.k=4"]["status"] == "done"
        assert "point 2 failed with 1" in done.stdout and "point 2 has no record of its end" in done.stdout
    (out / "points/model.k=2").unlink()
    shutil.rmtree(out / "points/model.k=8/point.json")
    assert run(megadict_bin, given, ranks=ranks).returncode == 0
    assert {row["status"] for row in table(out)} == {"done"}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_full_disk_is_its_points_failure(megadict_bin, data, tmp_path, ranks):
    """Rank 0 alone writes the log: its error is the whole group's, and nobody else's."""
    out = tmp_path / "sweep"
    full = out / "points/model.k=4"
    full.mkdir(parents=True)
    (full / "metrics.jsonl").symlink_to("/dev/full")
    done = run(megadict_bin, sweep_words(data, out, ["model.k=2,4,8"], mesh__sweep=(ranks + 1) // 2), ranks=ranks)
    assert done.returncode == 1, done.stderr
    rows = by_name(out)
    assert {name: (row["status"], row["code"]) for name, row in rows.items()} == {
        "model.k=2": ("done", 0), "model.k=4": ("failed", 1), "model.k=8": ("done", 0)}
    assert "metrics.jsonl': No space left on device" in rows["model.k=4"]["error"]


def test_sorting(megadict_bin, data, tmp_path):
    out = tmp_path / "sweep"
    given = sweep_words(data, out, ["model.k=2,4,8"])
    assert run(megadict_bin, given, ranks=3).returncode == 0
    for sort, order in (("model.k", [2, 4, 8]), ("-l0", [8, 4, 2]), ("index", [2, 4, 8])):
        assert run(megadict_bin, [*given, "--collect", f"--sort={sort}"]).returncode == 0
        assert [int(row["settings"]["model.k"]) for row in table(out)] == order
    bad = run(megadict_bin, [*given, "--sort", "fvw"])
    assert bad.returncode == 2 and "did you mean fvu?" in bad.stderr


REFUSED = [
    (["model.k=2,2"], 1, {}, "holds a point twice"),
    (["model.q=2,3"], 1, {}, "unknown name 'model.q'"),
    ([], 1, {}, "the grid varies nothing"),
    (["model.k=2,4"], 3, {"mesh__sweep": 2}, "mesh.sweep = 2 does not cut 3 rank(s) into equal groups"),
    (["model.k=2,4"], 3, {"mesh__data": 2}, "mesh.data 2 does not divide 3 ranks of a group"),
    (["run.dir=a,b"], 1, {}, "run.dir cannot be set"),
    (["model.k=2,4"], 2, {"mesh__sweep": 2, "sweep__point": 0}, "one point has all ranks"),
]


@pytest.mark.parametrize("sets, ranks, more, reason", REFUSED, ids=[case[3] for case in REFUSED])
def test_refusals_write_nothing(megadict_bin, data, tmp_path, sets, ranks, more, reason):
    out = tmp_path / "sweep"
    done = run(megadict_bin, sweep_words(data, out, sets, **more), ranks=ranks)
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stderr.count("megadict:") == 1
    assert not out.exists()


BAD_GRIDS = [
    ("", "the grid varies nothing"),
    ("[model]\nk = 2, 4\nq = 5\n", "grid.ini:3: unknown name 'model.q'"),
    ("[model]\nk = 2, 4, 2\n", "holds a point twice: model.k=2"),
    ("[points]\na = model.k=2\nb = model.k=2\n", "holds a point twice: b is a"),
    ("[model]\nk = 2, four\n", "grid.ini:2): not an integer"),
    ("[model\nk = 2, 4\n", "grid.ini"),
    (None, "grid.ini"),
]


@pytest.mark.parametrize("text, reason", BAD_GRIDS, ids=[str(case[0]) for case in BAD_GRIDS])
def test_a_bad_grid_file_is_refused(megadict_bin, data, tmp_path, text, reason):
    out, grid = tmp_path / "sweep", tmp_path / "grid.ini"
    if text is not None:
        grid.write_text(text)
    done = run(megadict_bin, ["sweep", "--grid", grid, "--sweep.dir", out, "--data.path", data])
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert not out.exists()


COUNTS = {"gpt2_small_lr.ini": 14, "gpt2_small_k.ini": 12, "gpt2_small_width.ini": 12}


def test_the_grids_that_come_along(megadict_bin, repo_root):
    grids = sorted((repo_root / "configs" / "sweeps").glob("*.ini"))
    assert {path.name for path in grids} == COUNTS.keys()
    for path in grids:
        listed = run(megadict_bin, ["sweep", "--grid", path, "--list"])
        assert listed.returncode == 0, listed.stderr
        assert len(listed.stdout.splitlines()) == COUNTS[path.name]


def test_a_chunk_that_cannot_be_read_fails_its_points_alone(megadict_bin, data, tmp_path):
    """One rank of a group meets it, on the way or while it resamples; the other group goes on."""
    bad = tmp_path / "bad"
    shutil.copytree(data, bad)
    shard = min(bad.glob("*.h5"))
    with h5py.File(shard) as file:
        rows = file["activations"]
        place = rows.id.get_chunk_info(rows.id.get_num_chunks() - 1).byte_offset
    with shard.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 0xFF]))
    out = tmp_path / "sweep"
    given = sweep_words(data, out, [f"data.path={data},{bad}", "model.k=2,4"], mesh__sweep=2, mesh__data=2,
                        dead__resample_steps=2, dead__resample_rows=2000)
    done = run(megadict_bin, given, ranks=4)
    assert done.returncode == 1, done.stderr
    for row in table(out):
        if row["settings"]["data.path"] == str(data):
            assert (row["status"], row["code"]) == ("done", 0)
        else:
            assert (row["status"], row["code"]) == ("failed", 3)
            assert "does not match its checksum" in row["error"]


def test_collect_refuses_what_is_no_table_of_this_grid(megadict_bin, data, tmp_path):
    out = tmp_path / "sweep"
    given = sweep_words(data, out, ["model.k=2,4"])
    none = run(megadict_bin, [*given, "--collect"])
    assert none.returncode == 2 and "holds no sweep" in none.stderr
    assert run(megadict_bin, given, ranks=2).returncode == 0
    kept = (out / "sweep.csv").read_bytes()
    other = run(megadict_bin, [*sweep_words(data, out, ["model.k=3,5"]), "--collect"])
    assert other.returncode == 2 and "holds none of the grid's 2 points" in other.stderr
    changed = run(megadict_bin, [*sweep_words(data, out, ["model.k=2,4"], optim__lr="1e-3"), "--collect"])
    assert changed.returncode == 2 and "the sweep now says" in changed.stderr
    assert (out / "sweep.csv").read_bytes() == kept
    for line in (none.stderr, other.stderr, changed.stderr):
        assert line.count("\n") == 1


def test_a_point_that_train_works_on_is_busy(megadict_bin, data, long_runs, tmp_path):
    """A run of the point's own folder by `train`, not by another sweep."""
    out = tmp_path / "sweep"
    point = out / "points" / "model.k=2"
    long = fields(data, **LONG)
    long["model.k"] = 2
    train = start(megadict_bin, ["train", "--run.dir", point, *words(long)])
    wait_until(lambda: (point / "checkpoints").exists(), train)
    given = sweep_words(data, out, ["model.k=2,4"], **LONG)
    alone = run(megadict_bin, [*given, "--sweep.point", 0])
    assert alone.returncode == 2 and "point 0 is busy" in alone.stderr
    train.send_signal(signal.SIGUSR1)
    train.communicate(timeout=60)
    assert train.returncode == 75
    done = run(megadict_bin, given, ranks=2)
    assert done.returncode == 0, done.stderr
    assert "resuming" in (point / "log.txt").read_text()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_lines_that_a_points_log_did_not_take_are_told(megadict_bin, data, tmp_path):
    out = tmp_path / "sweep"
    point = out / "points" / "model.k=2"
    point.mkdir(parents=True)
    (point / "log.txt").symlink_to("/dev/full")
    done = run(megadict_bin, sweep_words(data, out, ["model.k=2,4"]))
    assert done.returncode == 0, done.stderr
    assert "log.txt' lacks lines: No space left on device" in done.stderr
