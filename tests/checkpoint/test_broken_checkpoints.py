"""Truncated and randomly damaged checkpoints: a clean result or a CheckpointError that names the file."""
import random
import subprocess
import sys
from pathlib import Path

import checkpoint_forge as forge
import checkpoint_mutants as mutants
import pytest

from jea.checkpoint import CheckpointError, read


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return mutants.samples(tmp_path_factory.mktemp("samples"))


def test_the_samples_are_good(originals, tmp_path):
    assert len(originals) == 9
    for name, data in originals.items():
        assert mutants.try_to_read(tmp_path / name, data) == "read"


def test_truncation_at_every_boundary_is_refused(originals, tmp_path):
    for name, data in originals.items():
        if name == mutants.INNER:
            continue
        path = tmp_path / name
        cuts = mutants.boundaries(data)
        for cut in cuts[::1 + len(cuts) // 150]:
            if name == "plain.pkl" and cut == len(data) - 28:
                continue  # the whole pickle without the checksum behind it, which is optional
            path.write_bytes(data[:cut])
            with pytest.raises(CheckpointError) as caught:
                read(path)
            assert str(caught.value).startswith(f"{path}: ")


def test_a_flipped_bit_in_the_numbers_is_noticed(originals, tmp_path):
    """Zip and Jittor's pickle have checksums; the other two containers have none."""
    for name in ("ours.pth", "x.npz", "plain.pkl"):
        at = originals[name].index(b"\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40")  # 1, 2, 3 in float32
        damaged = bytearray(originals[name])
        damaged[at + 2] ^= 4
        path = tmp_path / name
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="checksum"):
            read(path)


def test_random_damage(originals, tmp_path):
    generator = random.Random(20210505)
    outcomes = [mutants.try_to_read(tmp_path / name, mutants.mutant(data, generator))
                for name, data in originals.items() for _ in range(60)]
    assert len(outcomes) == 540 and outcomes.count("refused") > 300


@pytest.mark.slow
def test_random_damage_20_000_times(tmp_path):
    """In a process with 256 MB of address space to spare, so that a large allocation fails the test."""
    done = subprocess.run([sys.executable, Path(mutants.__file__), tmp_path, "3000", "1"], capture_output=True,
                          text=True, env=forge.ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "total 27000" in done.stdout
