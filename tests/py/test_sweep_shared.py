"""sweep.share_stream: one group reads, all train on its rows, each point as if it ran alone."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from test_sweep import LONG, STEPS, begun, by_name, data, fields, long_runs, sweep_words, table, wait_until, words
from training import metrics, ranks_of, run, same_bits, start, steps_logged

__all__ = ["data"]  # the fixture

SHARED = {"sweep__share_stream": "true"}

# Two groups' or four groups' worth of points, and one more; the wild one diverges.
POINTS = {
    "wild": {"optim.lr": "10", "optim.warmup_steps": "0", "optim.beta2": "0"},
    "narrow": {"model.k": "2"},
    "wide": {"model.n_latents": "90"},
    "centred": {"data.center": "true", "data.normalize": "unit_rms"},
    "relu": {"model.activation": "relu", "model.l1_coefficient": "0.1"},
}


def grid_of(folder, points, given):
    """A grid file of these points, and what is the same for all of them."""
    grid, base = folder / "grid.ini", folder / "base.ini"
    lines = [f"{name} = " + " ".join(f"{key}={value}" for key, value in own.items()) for name, own in points.items()]
    grid.write_text("[points]\n" + "\n".join(lines) + "\n")
    base.write_text("".join(f"{name} = {value}\n" for name, value in given.items()))
    return ["sweep", "--grid", grid, "--config", base, "--sweep.dir", folder / "sweep"]


@pytest.mark.parametrize("groups, mesh", [(4, {}), (2, {"mesh__feature": 2}), (2, {"mesh__data": 2})],
                         ids=["four groups", "two of 1x2", "two of 2x1"])
def test_points_are_their_single_runs(megadict_bin, data, tmp_path, groups, mesh):
    given = fields(data, data__micro_batch_size=37, **mesh)
    done = run(megadict_bin, [*grid_of(tmp_path, POINTS, given), "--mesh.sweep", groups,
                              "--sweep.share_stream", "true"], ranks=4)
    assert done.returncode == 1, done.stderr
    assert f"{groups} points at a time share one stream; group 0 reads it" in done.stdout
    assert {name: (row["status"], row["code"]) for name, row in by_name(tmp_path / "sweep").items()} == {
        name: ("failed", 4) if name == "wild" else ("done", 0) for name in POINTS}
    for name, own in POINTS.items():
        lone = tmp_path / name
        alone = run(megadict_bin, ["train", "--run.dir", lone, *words({**given, **own})], ranks=4 // groups)
        assert alone.returncode == (4 if name == "wild" else 0), alone.stderr
        if name != "wild":
            assert same_bits(lone / "final", tmp_path / "sweep/points" / name / "final")
            assert steps_logged(lone) == steps_logged(tmp_path / "sweep/points" / name)


def received(point):
    """Bytes of rows that rank 0 of the point's group got from the group that reads."""
    return json.loads((point / "communication.json").read_text())["sweep"]["rows"]["bytes"]


def test_one_group_reads_and_the_others_receive(megadict_bin, data, tmp_path):
    out = tmp_path / "sweep"
    done = run(megadict_bin, sweep_words(data, out, ["model.k=2,3,4"], **SHARED), ranks=3)
    assert done.returncode == 0, done.stderr
    points = sorted((out / "points").iterdir(), key=received)
    assert [received(point) for point in points] == [0] + 2 * [STEPS * 101 * 24 * 4]
    waits = [sum(line.get("data_wait_s", 0) for line in metrics(point)) for point in points]
    assert waits[0] > 0 and waits[1:] == [0, 0]


def opened_shards(pid, data):
    """Of this process, the shards to train on that are open now."""
    links = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(link))
        except OSError:
            pass  # closed meanwhile
    return [link for link in links if os.path.dirname(link) == str(data)]


def test_only_the_first_group_has_shards_open(megadict_bin, data, tmp_path):
    out = tmp_path / "sweep"
    process = start(megadict_bin, sweep_words(data, out, ["model.k=2,4"], **SHARED, **LONG), ranks=2)
    wait_until(lambda: begun(out), process)
    assert sorted(bool(opened_shards(pid, data)) for pid in ranks_of(out)) == [False, True]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


def expect_same_runs(out, expected):
    for name in ("model.k=2", "model.k=4"):
        assert same_bits(expected / "points" / name / "final", out / "points" / name / "final")


SHORTER = {"data__tokens": 101 * 1500, "checkpoint__every_steps": 100}


@pytest.mark.parametrize("ranks, more", [(2, LONG), (4, {"mesh__feature": 2, **SHORTER})],
                         ids=["two groups", "two of 1x2"])
def test_usr1_saves_all_groups_and_each_goes_on_where_it_was(megadict_bin, data, tmp_path, ranks, more):
    """The second start has one point back at its beginning: the other waits for it."""
    out, whole = tmp_path / "sweep", tmp_path / "whole"
    assert run(megadict_bin, sweep_words(data, whole, ["model.k=2,4"], **more), ranks=ranks).returncode == 0
    given = sweep_words(data, out, ["model.k=2,4"], **SHARED, **more)
    process = start(megadict_bin, given, ranks=ranks)
    wait_until(lambda: begun(out), process)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert all(row["status"] == "interrupted" for row in table(out))
    shutil.rmtree(out / "points/model.k=4")
    done = run(megadict_bin, given, ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert "resuming" in (out / "points/model.k=2/log.txt").read_text()
    expect_same_runs(out, whole)


def test_usr1_to_one_group_leaves_the_other_going(megadict_bin, data, long_runs, tmp_path):
    out = tmp_path / "sweep"
    given = sweep_words(data, out, ["model.k=2,4"], **SHARED, **LONG)
    for group in (0, 1):
        shutil.rmtree(out, ignore_errors=True)
        process = start(megadict_bin, given, ranks=2)
        wait_until(lambda: begun(out), process)
        os.kill(sorted(ranks_of(out), key=rank_in_job)[group], signal.SIGUSR1)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 75, err
        assert sorted(row["status"] for row in table(out)) == ["done", "interrupted"]
    assert run(megadict_bin, given, ranks=2).returncode == 0
    expect_same_runs(out, long_runs)


def rank_in_job(pid):
    environment = Path(f"/proc/{pid}/environ").read_bytes().decode()
    return int(re.search("OMPI_COMM_WORLD_RANK=([0-9]+)", environment)[1])


def test_a_killed_rank_ends_the_job_and_nothing_is_lost(megadict_bin, data, long_runs, tmp_path):
    out = tmp_path / "sweep"
    given = sweep_words(data, out, ["model.k=2,4"], **SHARED, **LONG)
    process = start(megadict_bin, given, ranks=2)
    wait_until(lambda: begun(out), process)
    os.kill(max(ranks_of(out), key=rank_in_job), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    done = run(megadict_bin, given, ranks=2)
    assert done.returncode == 0, done.stderr
    expect_same_runs(out, long_runs)


def test_a_shard_that_cannot_be_read_fails_the_points(megadict_bin, data, tmp_path):
    acts = shutil.copytree(data, tmp_path / "acts")
    shard = max(acts.glob("*.h5"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) * 3 // 4] ^= 0x10
    shard.write_bytes(content)
    out = tmp_path / "sweep"
    given = sweep_words(acts, out, ["model.k=2,4"], data__tokens=0, data__shuffle_buffer=1000, **SHARED)
    done = run(megadict_bin, given, ranks=4)
    assert done.returncode == 1, done.stderr
    assert {(row["status"], row["code"]) for row in table(out)} == {("failed", 3)}
    assert all(shard.name in row["error"] for row in table(out))
    absent = tmp_path / "gone"
    acts.rename(absent)
    given += ["--retry"]
    done = run(megadict_bin, given, ranks=4)
    assert done.returncode == 1, done.stderr
    assert {(row["status"], row["code"]) for row in table(out)} == {("failed", 3)}
    shutil.rmtree(absent)
    shutil.copytree(data, acts)
    assert run(megadict_bin, given, ranks=4).returncode == 0


REFUSED = [
    ("data.batch_size=101,50", "has data.batch_size = '50', point model.k=2_data.batch_size=101 has '101'"),
    ("run.seed=0,1", "has run.seed = '1', point model.k=2_run.seed=0 has '0'"),
    ("data.tokens=6060,5050", "has data.tokens = '5050'"),
    ("mesh.feature=1,2", "has mesh.feature = '2'"),
]


@pytest.mark.parametrize("varied, reason", REFUSED, ids=[case[0] for case in REFUSED])
def test_points_of_other_rows_are_refused(megadict_bin, data, tmp_path, varied, reason):
    out = tmp_path / "sweep"
    done = run(megadict_bin, sweep_words(data, out, ["model.k=2,4", varied], mesh__sweep=2, **SHARED), ranks=4)
    assert done.returncode == 2
    assert reason in done.stderr and "sweep.share_stream" in done.stderr
    assert done.stderr.count("megadict:") == 1
    assert not out.exists()


def test_one_group_has_nobody_to_share_with(megadict_bin, data, tmp_path):
    out = tmp_path / "sweep"
    done = run(megadict_bin, sweep_words(data, out, ["model.k=2,4"], **SHARED))
    assert done.returncode == 0
    assert "sweep.share_stream has no effect: there is one group" in done.stderr
