"""Reference tensors of the upstream implementations (tests/fixtures) and what tests share."""
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

FIXTURES = Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
import recipe  # noqa: E402  (weights and inputs as functions of their names)


@pytest.fixture(scope="session")
def fixtures():
    return FIXTURES


@pytest.fixture(scope="session", autouse=True)
def jittor_stays_at_home():
    """Jittor records a JITTOR_HOME that it has once seen for every process to come: no test may move the user's (and
    have all later ones compile everything anew)."""
    from jea.environment.jittor_home import jittor_home
    home = jittor_home()
    yield
    assert jittor_home() == home


@pytest.fixture(scope="session")
def demo_home(tmp_path_factory):
    """A JEA_HOME for all tests of the demo: its pictures are made once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def no_orthogonal_start(monkeypatch):
    """Weights with spectral normalisation start at 0: drawing orthogonal ones takes seconds for the larger GANs."""
    monkeypatch.setattr("jea.nn.spectral_norm.orthogonal", lambda shape: np.zeros(shape, np.float32))


@pytest.fixture(scope="session")
def reference():
    """reference("eanet50_s16") -> manifest (dict), arrays (npz), input(name) and, lazily, state(): upstream's
    weights."""
    def load(name):
        manifest = json.loads((FIXTURES / f"{name}.json").read_text())
        arrays = np.load(FIXTURES / f"{name}.npz")

        def state():
            return recipe.fill_state(manifest["state"], manifest.get("recipe_prefix", ""))

        def make_input(key):
            return recipe.input_array(key, manifest["inputs"][key]["shape"])
        return SimpleNamespace(manifest=manifest, arrays=arrays, state=state, input=make_input)
    return load


@pytest.fixture(scope="session")
def write_pth(tmp_path_factory):
    """write_pth("eanet50_s16", wrap="net", ...) -> path of a genuine PyTorch file, or one of jea's without torch."""
    folder, made = tmp_path_factory.mktemp("pth"), {}

    def write(name, **options):
        key = (name, tuple(sorted(options.items())))
        if key not in made:
            path = folder / f"{name}-{len(made)}.pth"
            try:
                import write_pth as genuine
                genuine.write_pth(str(path), str(FIXTURES / f"{name}.json"), **options)
            except ImportError:
                from jea.checkpoint.loading import write as write_own
                manifest = json.loads((FIXTURES / f"{name}.json").read_text())
                state = recipe.fill_state(manifest["state"], manifest.get("recipe_prefix", ""))
                prefix = options.get("prefix", "")
                write_own(path, {prefix + k: v for k, v in state.items()}, wrapper=options.get("wrap") or "")
            made[key] = path
        return made[key]
    return write


@pytest.fixture
def close():
    """close(got, wanted, tolerance): largest difference relative to the largest magnitude of `wanted`."""
    def check(got, wanted, tolerance, what=""):
        got, wanted = np.asarray(got), np.asarray(wanted)
        assert got.shape == wanted.shape, f"{what}: shape {got.shape}, wanted {wanted.shape}"
        error = float(np.abs(got.astype(np.float64) - wanted).max() / max(np.abs(wanted).max(), 1e-30))
        assert error <= tolerance, f"{what}: relative error {error:.2e} > {tolerance:.0e}"
        return error
    return check


@pytest.fixture
def cuda():
    """Runs a test on a GPU; it skips where there is none that Jittor can use. For tests with the mark cuda."""
    from jea._jittor import jt
    if not jt.has_cuda:
        pytest.skip("no GPU that Jittor can use")
    with jt.flag_scope(use_cuda=1):
        yield


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    """Runs a test on the CPU and, where there is one, on a GPU (pytest -m cuda)."""
    from jea._jittor import jt
    if request.param == "cuda":
        request.getfixturevalue("cuda")
        yield "cuda"
    else:
        with jt.flag_scope(use_cuda=0):
            yield "cpu"


def pytest_sessionfinish(session, exitstatus):
    session.config.jea_exit_status = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """End the process here, with pytest's status.

    Jittor's teardown at interpreter exit has crashed (once in five full runs) after all tests had passed.
    """
    if "jittor" in sys.modules and hasattr(config, "jea_exit_status"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.jea_exit_status)
