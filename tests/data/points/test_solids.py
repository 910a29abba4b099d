"""The synthetic solids: the same on every machine, what they promise, and parts where they belong."""
import numpy as np
import pytest

from jea.data import DATASETS, DataError, Loader, SolidParts, Solids
from jea.data.points.solids import COMPOSITES, NOISE, SOLIDS, box, cylinder, revolved
from jea.data.views.clouds import sample_surface

EXACT = {"noise": 0.0, "num_points": 400}


def area(mesh):
    a, b, c = (mesh[0][mesh[1][:, k]] for k in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2


def test_pieces_by_hand():
    assert area(box(1, 2, 3)) == pytest.approx(22)
    sine = np.sin(np.pi / 24)  # of half a step of the 24 corners
    ring = 24 * 2 * 0.5 * sine  # circumference of the polygon of radius 0.5
    disk = 24 * 0.5 * 0.25 * np.sin(2 * np.pi / 24)
    assert area(cylinder(0.5, 2)) == pytest.approx(2 * ring + 2 * disk)
    assert area(revolved([(0.5, 0), (0.5, 1)])) == pytest.approx(ring)
    vertices, triangles = cylinder(0.5, 2, 0.0)
    assert vertices[:, 2].min() == -1 and vertices[:, 2].max() == 1 and triangles.max() < len(vertices)
    assert np.abs(vertices[vertices[:, 2] == 1][:, :2]).max() == 0  # a cone's tip


@pytest.mark.parametrize("cls", [Solids, SolidParts])
def test_a_cloud_depends_on_seed_split_and_index_only(cls):
    data = cls(num_points=64)
    wanted = data.cloud(17)
    data.cloud(3)
    again = cls(num_points=64, num_train=18).cloud(17, np.random.default_rng(9))
    assert np.array_equal(wanted[0], again[0]) and wanted[1:2] == again[1:2] and wanted[3] == again[3] == "train_0017"
    others = [cls(num_points=64, seed=1), cls(num_points=64, split="val")]
    n = data.num_classes  # the same class in another round
    others = [other.cloud(17)[0] for other in others] + [data.cloud(17 + n)[0]]
    assert not any(np.array_equal(wanted[0], other) for other in others)
    with pytest.raises(IndexError):
        cls(split="val", num_val=3).cloud(3)


def test_known_numbers():
    # Whoever changes these changes the data set, and the figures that were measured on it.
    points, category, _, _ = Solids(split="val", num_points=128).cloud(4)
    assert category == 4 and points[127] == pytest.approx([-0.63827145, -0.1484717, 0.0399619], abs=1e-5)
    points, category, parts, _ = SolidParts(split="val", num_points=128).cloud(3)
    assert category == 3 and np.bincount(parts).tolist()[8:] == [119, 9]
    assert points[5] == pytest.approx([0.410922, 0.48630306, -0.32675344], abs=1e-5)


def test_clouds_are_what_is_promised():
    data = Solids(num_points=400)
    assert (len(data), data.num_classes, data.class_names, data.parts) == (4000, 10, tuple(SOLIDS), None)
    assert len(Solids(split="val")) == 400
    for k in range(20):
        points, category, parts, _ = data.cloud(k)
        assert points.shape == (400, 3) and points.dtype == np.float32 and parts is None and category == k % 10
        assert np.linalg.norm(points, axis=1).max() < 1 + 6 * NOISE
    exact = Solids(**EXACT)
    for k in range(10):
        points = exact.cloud(k)[0]
        assert np.linalg.norm(points, axis=1).max() == pytest.approx(1, abs=1e-6)
        assert np.abs(points.mean(0)).max() < 1e-6
    sample = data.test_sample(3)
    assert sample["points"].shape == (3, 400) and sample["category"] == 3 and data.load(3)[1] == 3


def test_the_turn_is_about_the_vertical_axis():
    data = Solids(**EXACT, num_train=1000)
    box_class = list(SOLIDS).index("box")
    angles = []
    for k in range(box_class, 400, 10):
        points = data.cloud(k)[0].astype(np.float64)
        top = points[:, 2] > points[:, 2].max() - 1e-4
        assert 10 < top.sum() < 200  # the top stays level ...
        side = points[~top & (points[:, 2] > points[:, 2].min() + 1e-4)]
        corner = side[np.linalg.norm(side[:, :2], axis=1).argmax()]
        angles.append(np.arctan2(corner[1], corner[0]))
    assert len(np.unique(np.floor(np.array(angles) / (np.pi / 4)))) == 8  # ... and points in every direction


def test_parts():
    data = SolidParts(num_points=600)
    assert (data.num_classes, data.class_names) == (6, tuple(COMPOSITES))
    assert data.parts == ((0, 1), (2, 3, 4), (5, 6, 7), (8, 9), (10, 11, 12), (13, 14)) and len(data.part_names) == 15
    assert data.part_names[2] == "chair back" and data.part_names[12] == "rocket fins"
    for k in range(60):
        points, category, parts, _ = data.cloud(k)
        assert parts.dtype == np.int32 and set(np.unique(parts)) == set(data.parts[category])
        assert min(np.bincount(parts)[list(data.parts[category])]) > 18  # each part can be learned
    assert SolidParts.train_sample(data, 0, np.random.default_rng(0))["parts"].shape == (600,)


@pytest.mark.parametrize("category, above, below", [("table", 0, 1), ("chair", 2, 4), ("lamp", 7, 5),
                                                     ("rocket", 11, 12),
                                                     ("hammer", 14, 13)])
def test_parts_are_where_they_belong(category, above, below):
    data = SolidParts(**EXACT)
    for k in range(list(COMPOSITES).index(category), 60, 6):
        points, _, parts, _ = data.cloud(k)
        assert points[parts == above][:, 2].min() > points[parts == below][:, 2].max() - 0.12
        assert points[parts == above][:, 2].mean() > points[parts == below][:, 2].mean() + 0.3


def test_a_mugs_handle_stands_out():
    data = SolidParts(**EXACT)
    for k in range(3, 60, 6):
        points, _, parts, _ = data.cloud(k)
        centre = (points[parts == 8][:, :2].max(0) + points[parts == 8][:, :2].min(0)) / 2
        radius = np.linalg.norm(points[:, :2] - centre, axis=1)
        assert radius[parts == 9].max() > radius[parts == 8].max() * 1.2
        assert radius[parts == 9].min() > radius[parts == 8].max() * 0.9


def test_every_piece_can_be_sampled():
    def middle(low, high):
        return ((low + high) / 2)
    for name, make in SOLIDS.items():
        points, _ = sample_surface(*make(middle), 50, np.random.default_rng(0))
        assert np.isfinite(points).all(), name


def test_loader_and_faults():
    data = DATASETS["solids"](num_points=32, num_train=20)
    with Loader(data, batch_size=5) as loader:
        batch = next(loader.epoch(0))
    assert batch["points"].shape == (5, 3, 32) and batch["category"].dtype == np.int32
    with pytest.raises(DataError, match="solids: unknown split 'test'; there are train, val"):
        Solids(split="test")
    for options in ({"num_train": 0}, {"seed": -1}, {"noise": -1}):
        with pytest.raises(DataError, match="expected at least one cloud"):
            DATASETS["solid_parts"](**options)
