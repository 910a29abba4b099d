import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import jea.data
from jea.data import DataError, Dataset, Loader, map_ordered
from jea.errors import ConfigError

ROOT = Path(jea.data.__file__).parents[2]


class Toy(Dataset):
    """Sample k: its number, the first draws of its generator, and facts about the process that made it."""

    def __init__(self, size=11):
        self.size = size

    def __len__(self):
        return self.size

    def train_sample(self, index, rng):
        return {"image": np.concatenate([[index], rng.random(3)]).astype(np.float32).reshape(1, 2, 2),
                "label": rng.integers(0, 21, (2, 2)).astype(np.int32)}


class Faulty(Toy):
    def train_sample(self, index, rng):
        if index == 5:
            raise DataError("pictures/5.jpg: picture is broken (made up)")
        return super().train_sample(index, rng)


class Deadly(Toy):
    def train_sample(self, index, rng):
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_sample(index, rng)


class Facts(Toy):
    def train_sample(self, index, rng):
        return {"pid": np.array(os.getpid()), "jittor": np.array("jittor" in sys.modules),
                "torch": np.array("torch" in sys.modules),
                "sigint": np.array(signal.getsignal(signal.SIGINT) is signal.SIG_IGN),
                "threads": np.array(int(os.environ.get("OMP_NUM_THREADS", 0)))}


class Unsendable(Toy):
    def __reduce__(self):
        raise TypeError("holds an open file")


def same(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype and (a[key] == b[key]).all(), key
    return True


def test_batches():
    loader = Loader(Toy(), batch_size=4, seed=3)
    batches = list(loader.epoch(0))
    assert len(loader) == len(batches) == 2
    for batch in batches:
        assert batch["image"].shape == (4, 1, 2, 2) and batch["image"].dtype == np.float32
        assert batch["label"].shape == (4, 2, 2) and batch["label"].dtype == np.int32
        assert batch["index"].dtype == np.int64 and (batch["image"][:, 0, 0, 0] == batch["index"]).all()
    whole = Loader(Toy(), batch_size=4, seed=3, drop_last=False)
    assert len(whole) == 3 and [len(b["index"]) for b in whole.epoch(0)] == [4, 4, 3]
    assert sorted(np.concatenate([b["index"] for b in whole.epoch(0)])) == list(range(11))


def test_order_and_draws_are_the_documented_function():
    pcg = np.random.PCG64
    order = np.random.Generator(pcg([3, 2])).permutation(11)
    loader = Loader(Toy(), batch_size=11, seed=3)
    batch = next(iter(loader.epoch(2)))
    assert (batch["index"] == order).all()
    for row, index in enumerate(order):
        draws = np.random.Generator(pcg([3, 2, index + 1])).random(3).astype(np.float32)
        assert (batch["image"][row].ravel()[1:] == draws).all()


def test_epochs_seeds_and_samples_differ():
    batches = [next(iter(Loader(Toy(), batch_size=11, seed=seed).epoch(epoch)))
               for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    draws = {tuple(np.sort(b["image"][:, 0, 0, 1])) for b in batches}
    assert len(draws) == 4 and all(len(set(d)) == 11 for d in draws)
    assert len({tuple(b["index"]) for b in batches}) == 4


def test_shares_of_a_batch_make_it_up():
    whole = list(Loader(Toy(), batch_size=6, seed=3).epoch(1))
    parts = [list(Loader(Toy(), batch_size=6, seed=3, share=(k, 3)).epoch(1)) for k in range(3)]
    assert [len(part) for part in parts] == [1, 1, 1] and len(whole) == 1
    for k in range(3):
        assert same(parts[k], [{key: value[k::3] for key, value in batch.items()} for batch in whole])


def test_workers_resume_and_early_exit_change_nothing():
    plain = Loader(Toy(23), batch_size=3, seed=5)
    epochs = [list(plain.epoch(e)) for e in range(3)]
    for num_workers in (1, 3):
        with Loader(Toy(23), batch_size=3, seed=5, num_workers=num_workers) as loader:
            for batch in loader.epoch(0):
                break
            assert same([batch], epochs[0][:1])
            assert same(loader.epoch(1), epochs[1])
            assert same(loader.epoch(2, start_batch=4), epochs[2][4:])
            first, second = loader.epoch(0), loader.epoch(1)  # two at once
            assert same([next(first), next(second), next(first)], [epochs[0][0], epochs[1][0], epochs[0][1]])
            assert list(loader.epoch(0, start_batch=7)) == []


def test_workers_are_reused_and_clean():
    with Loader(Facts(8), batch_size=1, num_workers=2) as loader:
        batches = list(loader.epoch(0)) + list(loader.epoch(1))
    pids = {int(b["pid"][0]) for b in batches}
    assert 1 <= len(pids) <= 2 and os.getpid() not in pids
    for batch in batches:
        assert not batch["jittor"][0] and not batch["torch"][0]
        assert batch["sigint"][0] and batch["threads"][0] == 1
    assert all(not running(pid) for pid in pids)


def test_starting_workers_leaves_this_process_as_it_was():
    before = (dict(os.environ), sys.modules["__main__"], signal.pthread_sigmask(signal.SIG_BLOCK, ()),
              signal.getsignal(signal.SIGINT))
    with Loader(Toy(), batch_size=4, num_workers=1) as loader:
        list(loader.epoch(0))
    assert before == (dict(os.environ), sys.modules["__main__"], signal.pthread_sigmask(signal.SIG_BLOCK, ()),
                      signal.getsignal(signal.SIGINT))


def running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_error_arrives_unchanged_and_the_loader_lives_on(num_workers):
    with Loader(Faulty(), batch_size=1, num_workers=num_workers) as loader:
        with pytest.raises(DataError) as error:
            list(loader.epoch(0))
        assert str(error.value) == "pictures/5.jpg: picture is broken (made up)"
        first = next(iter(loader.epoch(0)))
        assert first["index"][0] != 5


def test_dead_worker_is_named_and_the_loader_lives_on():
    with Loader(Deadly(), batch_size=1, seed=0, num_workers=1) as loader:
        with pytest.raises(DataError, match="data worker died .*out of memory.*num_workers=0"):
            list(loader.epoch(0))
        at = list(np.random.Generator(np.random.PCG64([0, 0])).permutation(11)).index(5)
        assert len(list(loader.epoch(0, start_batch=at + 1))) == 10 - at > 0


class Big(Dataset):
    """Samples that no pipe holds at once."""

    def __len__(self):
        return 8

    def train_sample(self, index, rng):
        return {"pid": np.full(4_000_000, os.getpid())}


def test_worker_killed_in_the_middle_of_a_result():
    with Loader(Big(), batch_size=1, num_workers=1) as loader:
        batches = loader.epoch(0)
        pid = int(next(batches)["pid"][0, 0])
        time.sleep(0.5)  # by now it waits for us to read the rest of the second result
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(DataError, match="a data worker died"):
            next(batches)
        assert len(list(loader.epoch(1))) == 8


def test_dataset_that_cannot_be_sent():
    with Loader(Unsendable(), batch_size=1, num_workers=1) as loader:
        with pytest.raises(DataError, match="cannot send the data set to worker.*holds an open file"):
            next(iter(loader.epoch(0)))
    assert len(list(Loader(Unsendable(), batch_size=1).epoch(0))) == 11


@pytest.mark.parametrize("settings, error, message", [
    (dict(batch_size=12), DataError, "11 samples, fewer than one batch of 12"),
    (dict(batch_size=0), ValueError, "batch_size >= 1"), (dict(batch_size=1, seed=-1), ValueError, "seed >= 0"),
    (dict(batch_size=1, num_workers=-1), ValueError, "num_workers >= 0"),
    (dict(batch_size=1, prefetch=0), ValueError, "prefetch >= 1"),
    (dict(batch_size=5, share=(0, 2)), ValueError, "an n that divides batch_size"),
    (dict(batch_size=4, share=(2, 2)), ValueError, "0 <= k < n"),
    (dict(batch_size=4, share=(0, 2), drop_last=False), ValueError, "and drop_last")])
def test_wrong_settings(settings, error, message):
    with pytest.raises(error, match=message):
        Loader(Toy(), **settings)


def test_batch_larger_than_the_data_without_drop_last():
    assert [len(b["index"]) for b in Loader(Toy(), batch_size=12, drop_last=False).epoch(0)] == [11]
    with pytest.raises(DataError, match="0 samples"):
        Loader(Toy(0), batch_size=1, drop_last=False)


@pytest.mark.parametrize("start_batch", [-1, 3])
def test_start_batch_outside_of_the_epoch(start_batch):
    with pytest.raises(ValueError, match=f"start_batch is {start_batch}; an epoch has 2 batches"):
        Loader(Toy(), batch_size=4).epoch(0, start_batch=start_batch)


def square(x):
    if x == 7:
        raise DataError("seven")
    time.sleep(0.02 * (x % 3 == 0))
    return x * x


def test_map_ordered():
    for num_workers in (0, 2):
        assert list(map_ordered(square, range(7), num_workers)) == [0, 1, 4, 9, 16, 25, 36]
        results = map_ordered(square, range(9), num_workers)
        assert [next(results) for _ in range(7)] == [0, 1, 4, 9, 16, 25, 36]
        with pytest.raises(DataError, match="^seven$"):
            next(results)


def test_map_ordered_takes_no_more_than_it_may():
    taken = []

    def items():
        for k in range(7):
            taken.append(k)
            yield k
    results = map_ordered(square, items(), 1, prefetch=2)
    assert next(results) == 0 and len(taken) == 2
    results.close()


SCRIPT = textwrap.dedent("""
    import sys
    import numpy as np
    print("main", flush=True)
    sys.modules["jittor"] = sys  # what a training script has imported, and a worker must not
    from jea.data import Loader
    from test_loader import Facts, Toy
    {body}
""")
UNGUARDED = SCRIPT.format(body=textwrap.dedent("""
    with Loader(Facts(6), batch_size=2, seed=1, num_workers=2) as loader:
        batches = list(loader.epoch(0))
    print(len(batches), sum(int(b["jittor"].sum()) for b in batches))
"""))
OWN_CLASS = SCRIPT.format(body=textwrap.dedent("""
    class Mine(Toy):
        pass

    if __name__ == "__main__":
        with Loader(Mine(6), batch_size=2, seed=1, num_workers=1) as loader:
            print(len(list(loader.epoch(0))), 0)
"""))


def run(arguments, **options):
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


@pytest.mark.parametrize("how", ["-c", "stdin", "script"])
def test_mains_without_a_guard(tmp_path, how):
    if how == "-c":
        out = run(["-c", UNGUARDED])
    elif how == "stdin":
        out = run(["-"], input=UNGUARDED)
    else:
        (tmp_path / "train_me.py").write_text(UNGUARDED)
        out = run([str(tmp_path / "train_me.py")])
    assert out == ["main", "3 0", ""]  # the script ran once, in one process


def test_dataset_defined_in_a_guarded_script(tmp_path):
    (tmp_path / "own.py").write_text(OWN_CLASS)
    assert run([str(tmp_path / "own.py")]) == ["main", "main", "3 0", ""]  # the worker needs the script


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks at processes through /proc")
def test_workers_end_with_a_parent_that_was_killed():
    script = SCRIPT.format(body=textwrap.dedent("""
        import time
        loader = Loader(Facts(6), batch_size=1, num_workers=2)
        print(*{int(b["pid"][0]) for b in loader.epoch(0)}, flush=True)
        time.sleep(60)
    """))
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))
    parent = subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout.readline() == "main\n"
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert pids and all(running(pid) for pid in pids)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    deadline = time.time() + 10
    while any(running(pid) for pid in pids) and time.time() < deadline:
        time.sleep(0.05)
    assert not any(running(pid) for pid in pids)


def test_ctrl_c_reaches_the_parent_only():
    script = SCRIPT.format(body=textwrap.dedent("""
        import os, signal, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
        loader = Loader(Facts(6), batch_size=1, num_workers=2)
        batches = loader.epoch(0)
        try:
            next(batches)
            os.killpg(0, signal.SIGINT)  # what a terminal does
            time.sleep(5)
        except KeyboardInterrupt:
            print("stopped", 1 + len(list(batches)))  # the workers go on
        loader.close()
    """))
    assert run(["-c", script], start_new_session=True) == ["main", "stopped 6", ""]


def test_a_data_set_whose_file_imports_jittor_is_told_so(tmp_path, monkeypatch):
    """A worker that imported Jittor would take seconds, and fail while Jittor starts processes of its own."""
    (tmp_path / "both.py").write_text(
        "from jea._jittor import jt\nfrom jea.data import Dataset\n\n\nclass Both(Dataset):\n    def __len__(self):\n"
        "        return 4\n\n    def train_sample(self, index, rng):\n        return {'x': index}\n")
    monkeypatch.syspath_prepend(tmp_path)
    import both
    with pytest.raises(ConfigError, match="file of its own, or say train.num_workers=0"):
        with Loader(both.Both(), batch_size=2, num_workers=1, seed=0) as loader:
            next(iter(loader.epoch(0)))
