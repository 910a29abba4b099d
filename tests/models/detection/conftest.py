"""Detectors with the fixtures' weights, made once for a module; tests that are for some of them alone."""
import json

import pytest
from detection_fixtures import FIXTURES, FOLDER, load

ONLY = {"two stages": lambda name: "retinanet" not in name, "masks": lambda name: "maskrcnn" in name,
        "stored matches": lambda name: name.startswith("mm_") or "retinanet" in name}


@pytest.fixture(scope="session")
def manifest_of():
    return lambda name: json.loads((FOLDER / f"{name}.json").read_text())


@pytest.fixture(scope="module", params=FIXTURES)
def case(request, tmp_path_factory):
    return load(request.param, tmp_path_factory.mktemp("pth"))


def pytest_configure(config):
    config.addinivalue_line("markers", "only(what): for the fixtures of detectors that have it")


def pytest_collection_modifyitems(config, items):
    """Leave out what a fixture has not, so that it is no skipped test."""
    def fits(item):
        mark = item.get_closest_marker("only")
        return mark is None or ONLY[mark.args[0]](item.callspec.params["case"])
    out = [item for item in items if not fits(item)]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if fits(item)]
