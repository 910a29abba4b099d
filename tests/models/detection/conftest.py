"""Detectors with the fixtures' weights, made once for a module."""
import json

import pytest
from detection_fixtures import FIXTURES, FOLDER, load


@pytest.fixture(scope="session")
def manifest_of():
    return lambda name: json.loads((FOLDER / f"{name}.json").read_text())


@pytest.fixture(scope="module", params=FIXTURES)
def case(request, tmp_path_factory):
    return load(request.param, tmp_path_factory.mktemp("pth"))
