"""Several processes share a run: the same numbers as one, and none is left waiting."""

import contextlib
import dataclasses
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from processes import (
    LAWS,
    SHARED,
    assert_alike,
    assert_equal_states,
    in_processes,
    start_processes,
    steps_in_float64,
    train,
    train_synchronized,
    train_until,
)
from small_runs import QUICK, build, final

from cgh_models.cli.main import parse
from cgh_models.errors import InputError, Interrupted, NetworkError
from cgh_models.one_process import ALONE, OneProcess
from cgh_models.train import distributed
from cgh_models.train.arguments import check_shares
from cgh_models.train.distributed import Processes, joined
from cgh_models.train.liveness import meet
from cgh_models.train.metric_log import MetricLogger
from cgh_models.train.norm_sync import norm_sync_of, running_statistics, synced_norms
from cgh_models.train.run_folder import LOCK, lock_run_dir
from cgh_models.train.signals import StopSignals

# A run of several processes in float32: 24 steps, measured after each epoch.
RUN = ("cgh", "test_efficientnet_gn", SHARED, {})


# Four on two cores wait for each other more than they compute: the others with CGH_LONG=1.
OF_FOUR = LAWS if "CGH_LONG" in os.environ else ("cgh", "nnclr")
CASES = [(2, law) for law in LAWS] + [(4, law) for law in OF_FOUR]


@pytest.fixture(scope="module")
def laws(tmp_path_factory, image_root):
    """A folder with losses of 20 steps, and the state then, by law and process count."""
    root = tmp_path_factory.mktemp("laws")
    for count, names in ((1, LAWS), (2, LAWS), (4, OF_FOUR)):
        runs = [(root / f"{law}-{count}", *LAWS[law]) for law in names]
        assert in_processes(count, steps_in_float64, runs, image_root / "train") == [0] * count
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("count", "law"), CASES)
def test_several_processes_compute_what_one_does(laws, law, count):
    assert_alike(laws / f"{law}-1", laws / f"{law}-{count}")


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name, optimizer", [("byol", "muon"), ("lewel", "sgd")])
def test_with_synchronized_norms_all_processes_keep_equal_states_to_the_bit(
    image_root, tmp_path, name, optimizer
):
    """Without averaging running statistics, those of LEWEL's teacher in eval mode included."""
    work = (train_synchronized, name, optimizer, image_root / "train", tmp_path)
    assert in_processes(2, *work) == [0, 0]
    assert_equal_states(tmp_path)


def test_what_a_synchronized_norm_keeps_is_not_averaged_and_of_others_it_is():
    method = build("byol", arch="test_efficientnet").train()
    with synced_norms(method, "none", OneProcess()):
        assert len(running_statistics(method)) > 20
    with synced_norms(method, "sync", OneProcess()):
        assert not running_statistics(method)
        method.student.own = torch.nn.BatchNorm1d(3)  # after those that are synchronized
        assert len(running_statistics(method)) == 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, image_root):
    """A run of one process."""
    run = tmp_path_factory.mktemp("one") / "run"
    assert in_processes(1, train, [(run, *RUN, False)], image_root / "train") == [0]
    return run


def test_a_run_goes_on_with_another_number_of_processes(undisturbed, image_root, tmp_path):
    run, data = tmp_path / "run", image_root / "train"
    for count, step in ((1, 5), (2, 7), (4, 3)):
        # The signal comes to the last of them, and all save.
        codes = in_processes(count, train_until, step, count - 1, [(run, *RUN, count > 1)], data)
        assert codes == [75] * count
    assert in_processes(1, train, [(run, *RUN, True)], data) == [0]
    expected, found = rows(undisturbed), rows(run)
    assert [row["step"] for row in found] == list(range(25))
    for row, of_one in zip(found, expected, strict=True):
        for name in {"loss", "lr", "grad_norm", "feature_std", "knn_train"} & of_one.keys():
            close = pytest.approx(of_one[name], rel=1e-5 if name == "loss" else 1e-4)
            assert row[name] == close, (row, name)
    state = final(run)
    for name, tensor in final(undisturbed).items():
        if name.startswith("method.") and tensor.is_floating_point():
            assert torch.allclose(state[name], tensor, rtol=1e-5, atol=1e-5), name


def test_two_runs_of_two_processes_are_equal_to_the_bit(image_root, tmp_path):
    config = dataclasses.replace(SHARED, norm_sync="auto", base_lr=0.5)
    how = ("moco_v2", "test_resnet", config, {})
    runs = [(tmp_path / name, *how, False) for name in ("one", "two")]
    said = tmp_path / "said"
    assert in_processes(2, train, runs, image_root / "train", said=said) == [0, 0]
    first, second = (final(tmp_path / name) for name in ("one", "two"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert rows(tmp_path / "one")[-1]["loss"] == rows(tmp_path / "two")[-1]["loss"]
    said = said.read_text()
    assert "2 processes, 4 images of a batch each, norms: shuffle; one that is silent" in said
    assert said.count("done after 24 steps") == 2  # rank 0 speaks, of two runs
    made = json.loads((tmp_path / "one" / "config.json").read_text())
    assert made["versions"]["processes"] == 2


def test_an_error_of_one_process_ends_all_and_is_said(image_root, tmp_path):
    work = (_images_of_rank_0_alone, tmp_path, image_root / "train")
    assert in_processes(2, *work, said=tmp_path / "said") == [2, 2]
    said = (tmp_path / "said").read_text()
    assert "process 1 of 2: " in said and "no images" in said
    assert not (tmp_path / "run").exists()


def _images_of_rank_0_alone(folder, data):
    if os.environ["RANK"] == "1":
        data = folder / "empty"
        data.mkdir()
    train([(folder / "run", *RUN, False)], data)


def test_a_killed_process_leaves_none_waiting_and_the_run_goes_on(image_root, tmp_path):
    runs = [(tmp_path / "run", *RUN, False)]
    said = tmp_path / "said"
    work = (train_until, 9, 1, runs, image_root / "train", "KILL")
    assert in_processes(2, *work, said=said) == [3, -signal.SIGKILL]
    assert "another process of the run has ended" in said.read_text()
    again = [(tmp_path / "run", *RUN, True)]
    assert in_processes(2, train, again, image_root / "train") == [0, 0]
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(25))


@pytest.mark.slow
def test_a_stopped_process_is_noticed(image_root, tmp_path):
    runs = [(tmp_path / "run", *RUN, False)]
    said = tmp_path / "said"
    work = (train_until, 9, 1, runs, image_root / "train", "STOP")
    first, second = start_processes(2, *work, said=said)
    first.join(300)
    second.kill()
    assert first.exitcode == 3
    assert "process 1 of 2 has been silent for 20 s" in said.read_text()


def test_processes_that_begin_again_take_nothing_for_that_of_killed_ones():
    store = dist.HashStore()  # as torchrun's, it outlives them
    store.set_timeout(timedelta(seconds=20))
    names = []
    for last in (0, 1, 2, 0):  # of three processes this one comes last
        with ThreadPoolExecutor(3) as pool:
            met = {r: pool.submit(meet, store, r, 3, 20) for r in range(3) if r != last}
            time.sleep(0.3)
            assert not any(future.done() for future in met.values())
            names.append(meet(store, last, 3, 20))
            assert {future.result() for future in met.values()} == {names[-1]}
    assert len(set(names)) == 4


def test_a_process_that_never_begins_is_not_waited_for(capfd):
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=1))
    store.set("name/1", "of a killed one")
    for rank in (0, 1):
        with pytest.raises(NetworkError, match="not all of the 2 processes of the run began"):
            meet(store, rank, 2, 0.2)
    assert capfd.readouterr().err.startswith("process 1 of 2: error: not all")


def test_a_launcher_that_has_ended_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(distributed, "BEGIN", 1)
    names = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": 9}
    for name, value in {**names, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(NetworkError, match="cannot be reached"), joined():
        pass


def test_no_process_of_a_saved_run_ends_before_another_has_left_it(tmp_path):
    """torchrun sends TERM to all when the first has ended."""
    assert in_processes(2, _saved, tmp_path) == [0, 0]
    left = [float((tmp_path / f"left{rank}").read_text()) for rank in (0, 1)]
    assert min(left) > float((tmp_path / "leaves0").read_text())


def _saved(folder):
    rank = os.environ["RANK"]
    with contextlib.suppress(Interrupted), joined():
        time.sleep(1 if rank == "0" else 0)
        (folder / f"leaves{rank}").write_text(str(time.time()))
        raise Interrupted("saved")
    (folder / f"left{rank}").write_text(str(time.time()))


def test_a_signal_that_is_passed_on_is_the_same_one(image_root, tmp_path):
    """A cluster signals a process and its launcher, which passes it on; not an impatient user."""
    config = dataclasses.replace(SHARED, eval_every=-1)
    for name, passed_on, code in (("same", 5.0, 75), ("later", 0.0, 128 + signal.SIGTERM)):
        runs = [(tmp_path / name, *RUN[:2], config, {}, False)]
        work = (_signalled_twice, 5, 1, runs, image_root / "train", passed_on)
        assert in_processes(2, *work) == [75, code]


def _signalled_twice(step, rank, runs, data, passed_on):
    StopSignals.PASSED_ON = passed_on
    save = MetricLogger.save_checkpoint

    def and_again(*args, **named):
        save(*args, **named)
        if named.get("must") and args[1] > 0 and int(os.environ["RANK"]) == rank:
            os.kill(os.getpid(), signal.SIGTERM)

    MetricLogger.save_checkpoint = and_again
    train_until(step, rank, runs, data)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a full disk as Linux has it")
def test_a_run_begins_again_that_was_killed_as_it_began(tmp_path):
    """Before config.json was whole; and on a full disk, of which its lock is not to speak."""
    (tmp_path / ".config.json.1234ab.tmp").write_text("{")
    with lock_run_dir(tmp_path):
        pass
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).symlink_to("/dev/full")
    with lock_run_dir(tmp_path):
        pass
    (tmp_path / "notes.txt").write_text("of somebody")
    with pytest.raises(InputError, match="not an empty folder"), lock_run_dir(tmp_path):
        pass


def test_all_learn_of_a_restart_that_one_launcher_counted(image_root, tmp_path, monkeypatch):
    run, data = tmp_path / "run", image_root / "train"
    words = f"pretrain --data {data} --out {run} --recipe cifar --arch test_efficientnet_gn"
    words += " --batch-size 8 --epochs 1 --device cpu --set queue_length=32 --eval-every -1"
    assert in_processes(2, _command, words.split(), False) == [0, 0]
    assert in_processes(2, _command, words.split(), False) == [2, 2]
    assert in_processes(2, _command, words.split(), True) == [0, 0]


def _command(words, restarted):
    if restarted and os.environ["RANK"] == "1":
        os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"
    parse(words).run()


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "count", "hint"),
    [(16, 1, 3, "--batch-size 15"), (16, 4, 4, "--batch-size 32"), (4, 1, 4, "--batch-size 8")],
)
def test_a_batch_that_cannot_be_shared_is_refused(batch_size, accumulate, count, hint):
    processes = OneProcess()
    processes.count = count
    config = dataclasses.replace(QUICK, batch_size=batch_size, accumulate=accumulate)
    with pytest.raises(InputError, match=hint):
        check_shares(processes, config)
    check_shares(ALONE, config)


def test_cuda_graphs_are_of_one_process():
    processes = OneProcess()
    processes.count = 2
    with pytest.raises(InputError, match="leave it out"):
        check_shares(processes, dataclasses.replace(QUICK, cuda_graphs=True))


def test_one_process_and_several_are_asked_alike():
    members = {name for name in dir(OneProcess) if not name.startswith("_")}
    assert members <= {*dir(Processes), *Processes.__init__.__code__.co_names}


def test_norms_are_synchronized_as_the_authors_did():
    several = OneProcess()
    several.count = 2
    found = {name: norm_sync_of(build(name), QUICK, several) for name in ("cgh", "lewel", "byol")}
    assert found == {"cgh": "shuffle", "lewel": "none", "byol": "sync"}
    assert norm_sync_of(build("lewel", average_norms=False), QUICK, several) == "sync"
    assert norm_sync_of(build("byol"), QUICK, ALONE) == ""
    given = dataclasses.replace(QUICK, norm_sync="none")
    assert norm_sync_of(build("byol"), given, several) == "none"
    shuffled = dataclasses.replace(QUICK, norm_sync="shuffle")
    assert norm_sync_of(build("ressl"), shuffled, several) == "shuffle"
    with pytest.raises(
        InputError, match="the teacher of lewel_m is not shuffled; give none or sync"
    ):
        norm_sync_of(build("lewel_m"), shuffled, several)
