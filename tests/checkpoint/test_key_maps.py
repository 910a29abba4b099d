"""Names of other projects into ours and back."""
import numpy as np
import pytest

from jea.checkpoint import KeyMap
from jea.checkpoint.errors import Malformed
from jea.checkpoint.keymap import apply, select

NET = KeyMap(name="toy", marker="extractor.", rules=(("extractor.10.", "ten."), ("extractor.1.", "backbone.bn1."),
                                                     ("extractor.", "backbone.")), drop=("crit.", "fc."))
BACKBONE = KeyMap(name="toy backbone", marker="layer1.", rules=(("layer1.", "backbone.layer1."),),
                  drop=("fc.",), partial=("head.",))


@pytest.mark.parametrize("theirs, ours", [
    ("extractor.1.weight", "backbone.bn1.weight"), ("extractor.10.weight", "ten.weight"),
    ("extractor.2.weight", "backbone.2.weight"), ("fc0.weight", "fc0.weight"), ("my.extractor.1.w", "my.extractor.1.w"),
])
def test_prefixes_both_ways(theirs, ours):
    assert NET.to_ours(theirs) == ours and NET.to_theirs(ours) == theirs


def test_the_marker_selects():
    assert select((NET, BACKBONE), ["fc.w", "layer1.0.w"]) is BACKBONE
    assert select((NET, BACKBONE), ["fc.w", "extractor.0.w"]) is NET
    assert select((NET, BACKBONE), ["backbone.layer1.w", "my.extractor.1"]) is None


def test_apply_renames_and_drops():
    tensors = {"extractor.1.weight": 1, "extractor.1.num_batches_tracked": 2, "crit.weight": 3, "fc1.weight": 4}
    mapped, used, dropped = apply((BACKBONE, NET), tensors)
    assert mapped == {"backbone.bn1.weight": 1, "fc1.weight": 4} and used is NET
    assert dropped == ["extractor.1.num_batches_tracked", "crit.weight"]


def test_counters_are_dropped_without_a_map():
    mapped, used, dropped = apply((), {"bn.num_batches_tracked": np.array(1), "bn.weight": 2,
                                       "my_num_batches_tracked": 3})
    assert (mapped, used, dropped) == ({"bn.weight": 2, "my_num_batches_tracked": 3}, None, ["bn.num_batches_tracked"])


TIED = KeyMap(name="toy with twins", marker=("sa.q.", "old."), rules=(("old.", "new."),), twins=(("sa.q.", "sa.k."),))


def test_several_markers():
    assert select((TIED,), ["old.w"]) is TIED and select((TIED,), ["sa.q.w"]) is TIED
    assert select((TIED,), ["sa.k.w"]) is None


def test_twins():
    one, same, other = np.ones(3), np.ones(3), np.zeros(3)
    for tensors in ({"sa.q.w": one}, {"sa.k.w": one, "sa.q.w": same}, {"sa.q.w": one, "sa.k.w": same}):
        mapped, used, dropped = apply((TIED,), tensors)
        assert list(mapped) == ["sa.k.w"] and mapped["sa.k.w"] is one and used is TIED and not dropped
    with pytest.raises(Malformed, match="'?sa.k.w'? and '?sa.q.w'? are one tensor in this model, but differ"):
        apply((TIED,), {"sa.k.w": one, "sa.q.w": other})
    with pytest.raises(Malformed, match="both become"):
        apply((TIED,), {"old.w": one, "new.w": same})
    both = TIED.with_twins({"sa.k.w": one, "old.w": other})
    assert set(both) == {"sa.k.w", "sa.q.w", "old.w"} and both["sa.q.w"] is one


def test_what_can_be_written():
    assert NET.writable and TIED.writable and not BACKBONE.writable
    assert not KeyMap(name="4-D", marker="conv.", unit_axes=True).writable


def test_two_names_for_one_tensor_are_an_error():
    with pytest.raises(Malformed, match="'?backbone.bn1.w'? and '?extractor.1.w'? both become"):
        apply((NET,), {"backbone.bn1.w": 1, "extractor.1.w": 2})
