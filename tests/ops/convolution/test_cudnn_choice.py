"""When convolutions run on cuDNN's graph interface, and what stays on disk: verdicts and engines."""
import json
import os
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from jea._jittor import jt
from jea.ops.convolution.cudnn import check, operator, plans


@pytest.fixture
def card(tmp_path, monkeypatch):
    """A card that cuDNN can use, of which nothing is known yet; `card.refused` names what cuDNN refuses."""
    state = SimpleNamespace(folder=tmp_path / "card", refused=set(), asked=[], compared=[], errors={"the result": 1e-7})

    def plan(pass_, dtype, sizes, *, bias=False, residual=False, relu=False):
        epilogue = bias or residual or relu
        state.asked.append((pass_, epilogue))
        refused = {pass_, "epilogue" if epilogue else pass_} & state.refused
        return plans.Plan(refused="no engine") if refused else plans.Plan(address=1, forward=2, backward=3)

    def compare(dtype, **geometry):
        state.compared.append((dtype, geometry))
        if isinstance(state.errors, BaseException):
            raise state.errors
        return state.errors
    monkeypatch.setattr(check, "missing", lambda dtype="float32": "")
    monkeypatch.setattr(check, "compare", compare)
    monkeypatch.setattr(plans, "plan", plan)
    monkeypatch.setattr(plans, "folder", lambda: state.folder)
    monkeypatch.setattr(plans, "tf32", lambda: False)
    monkeypatch.setattr(operator, "_already_said", set())
    monkeypatch.setattr(plans, "trials", 10)
    monkeypatch.setattr(plans, "deterministic", False)
    check._verdicts.cache_clear()
    yield state
    check._verdicts.cache_clear()


SIZES = dict(zip(plans.SIZES, (2, 9, 9, 8, 16, 3, 3, 1, 1, 1)))


def planned(epilogue=(), gradients=(True, True), dtype="float32", **sizes):
    return operator.planned({**SIZES, **sizes}, (2, 9, 9, 16), dtype,
                             {name: name in epilogue for name in ("bias", "residual", "relu")}, gradients)


def test_a_kind_is_checked_once_and_its_verdict_kept(card):
    assert planned()[0].forward.address == 1 and planned(batch=7)[0]
    assert card.compared == [("float32", {"kernel": 3, "stride": 1, "dilation": 1, "epilogue": False})]
    planned(dilation=4, stride=2, dtype="float16", epilogue=("relu",))
    assert card.compared[1:] == [("float16", {"kernel": 3, "stride": 2, "dilation": 2, "epilogue": True})]
    check._verdicts.cache_clear()  # another process
    assert planned()[0] and len(card.compared) == 2
    assert set(check.verdicts()) == {"float32 3x3", "float16 3x3 strided dilated with bias, residual, ReLU"}


@pytest.mark.parametrize("errors, said", (
    ({"the result": 1e-7, "the gradient of x": 3e-3},
     "the gradient of x differs by 3e-03 of the largest (allowed 1e-05)"),
    ({"the result": float("nan")}, "the result differs by nan"), (RuntimeError("CUDNN_STATUS\nmore"), "CUDNN_STATUS")))
def test_what_is_wrong_is_turned_off_and_said_once(card, errors, said, capfd):
    card.errors = errors
    for _ in range(2):
        call, reason = planned()
        assert call is None and said in reason
    shown = capfd.readouterr().err
    assert shown.count("\n") == 1 and "float32 3x3 are Jittor's own" in shown and said in shown
    check._verdicts.cache_clear()
    assert said in planned()[1] and len(card.compared) == 1  # kept
    card.errors = {"the result": 0.}
    assert planned(kernel_h=1, kernel_w=1)[0]  # another kind is not concerned


def test_what_two_processes_died_in_is_turned_off(card):
    dead = subprocess.Popen(["true"])
    dead.wait()

    def begun(entry):
        check._keep("float32 3x3", entry)
        check._verdicts.cache_clear()
    begun(f"begun 2 by {dead.pid}")
    assert planned() == (None, check.DIED) and not card.compared
    begun(f"begun 1 by {dead.pid}")  # once it may have been the user
    assert planned()[0] and len(card.compared) == 1 and check.verdicts()["float32 3x3"] == check.RIGHT
    begun(f"begun 2 by {os.getppid()}")  # another rank, which lives, is at it, after one death
    assert planned()[0] and len(card.compared) == 2
    assert check.deaths(None) == 0 and check.deaths(f"begun 1 by {os.getpid()}") == 1


def test_ctrl_c_in_a_check_says_nothing(card):
    card.errors = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        planned()
    assert check.verdicts() == {} and plans.trials == 10
    card.errors = {"the result": 0.}
    check._verdicts.cache_clear()
    assert planned()[0]


def test_the_entry_is_there_while_the_check_runs(card, monkeypatch):
    seen = []
    monkeypatch.setattr(check, "compare", lambda *_, **__: seen.append(plans.read_json(card.folder / "verdicts.json")) or {"x": 0.})
    planned()
    assert list(seen[0].values()) == [{"float32 3x3": f"begun 1 by {os.getpid()}"}]


def test_verdicts_of_other_kernels_say_nothing(card, monkeypatch):
    planned()
    check._verdicts.cache_clear()
    monkeypatch.setattr(plans, "sources", lambda: "others")
    planned()
    assert len(card.compared) == 2


def test_broken_and_unwritable_tables_cost_time_only(card, monkeypatch, capfd):
    card.folder.mkdir()
    (card.folder / "verdicts.json").write_text("{")
    assert planned()[0]
    assert "right" in (card.folder / "verdicts.json").read_text()
    monkeypatch.setattr(plans, "folder", lambda: card.folder / "verdicts.json" / "below a file")
    check._verdicts.cache_clear()
    monkeypatch.setattr(plans, "_said", [])
    assert planned()[0] and "cannot be written" in capfd.readouterr().err


def test_only_wanted_passes_are_asked_for(card):
    planned(gradients=(False, False))
    assert card.asked == [("forward", False)]
    card.refused = {"data"}
    assert planned(gradients=(False, True))[0]  # the first convolution: the picture has no gradient
    assert planned() == (None, "cuDNN: no engine")


def test_an_epilogue_that_cudnn_does_not_fuse_stands_beside_it(card):
    assert planned(epilogue=("bias", "relu"))[0].fused
    card.refused = {"epilogue"}
    call, _ = planned(epilogue=("bias", "relu"))
    assert call.forward.address and not call.fused and call.relu


def test_a_call_is_planned_once(card, monkeypatch):
    applied = []
    monkeypatch.setattr(operator, "Convolution", SimpleNamespace(apply=lambda *given: applied.append(given[-1])))
    monkeypatch.setattr(plans, "calls", {})
    x, weight, bias = jt.randn(2, 9, 9, 8), jt.randn(16, 8, 3, 3), jt.randn(16)
    with jt.flag_scope(use_cuda=0):
        for _ in range(2):
            operator.conv2d(x, weight, padding=1)
        asked = len(card.asked)
        assert asked == 3 and applied[0] is applied[1] and len(plans.calls) == 1
        for given in ({"x": x.stop_grad()}, {"bias": bias}, {"relu": True}, {"stride": 2}, {"weight": weight.float16()},
                      {"impl": "fused"}):
            operator.conv2d(**{"x": x, "weight": weight, "padding": 1, **given})
    assert len({id(call) for call in applied}) == 7 and len(plans.calls) == 6  # what is asked for by name is not kept
    plans.choose_by_rule()
    assert not plans.calls


def test_refused_shapes_run_as_jittors_own_and_say_so_once(card, monkeypatch, capfd):
    card.refused = {"forward"}
    x, weight = jt.randn(2, 9, 9, 8), jt.randn(16, 8, 3, 3)
    with jt.flag_scope(use_cuda=0):
        wanted = operator.conv2d(x, weight, padding=1, impl="ref").numpy()
        monkeypatch.setattr(operator, "jt",
                            SimpleNamespace(flags=SimpleNamespace(use_cuda=1, no_grad=0), maximum=jt.maximum))
        got = [operator.conv2d(x, weight, padding=1) for _ in range(2)]
    assert all(np.allclose(y.numpy(), wanted, atol=1e-5) for y in got)
    shown = capfd.readouterr().err
    assert shown.count("Jittor's own") == 1 and "3x3, stride 1, dilation 1, 8 to 16 channels: cuDNN: no engine" in shown


# -- engines on disk -------------------------------------------------------------------------------------------------

def answer(address=5, engine=9, knobs=((2, 90),), tried=3, refused=b""):
    flat = [number for knob in knobs for number in knob]
    return plans._ANSWER.pack(address, 6, 7, 4096, 2000, 10, tried, engine, len(knobs), *flat, *[0] * (48 - len(flat)),
                              refused)


def test_an_answer_is_read():
    found = plans.read_answer(answer())
    assert found == plans.Plan(5, 6, 7, 2000, 4096, 3, 9, ((2, 90),), "")
    assert plans.read_answer(answer(address=0, refused=b"the graph: no")).refused == "the graph: no"
    assert plans.read_answer(bytes(plans._ANSWER.size)).refused  # a kernel that did nothing


@pytest.fixture
def table(tmp_path, monkeypatch):
    """plans with a library that answers `table.answer`; `table.numbers`: what it was asked."""
    state = SimpleNamespace(numbers=[], answer=answer(), path=tmp_path / "card" / "engines.json")

    def cuda_code(shape, dtype, inputs, *, data, **_):
        state.numbers.append(data)
        return SimpleNamespace(numpy=lambda: np.frombuffer(state.answer, np.uint8))
    monkeypatch.setattr(plans.kernels, "cuda_code", cuda_code)
    monkeypatch.setattr(plans, "folder", lambda: tmp_path / "card")
    for name, value in (("_plans", {}), ("_said", [True]), ("trials", 10), ("deterministic", False)):
        monkeypatch.setattr(plans, name, value)
    plans._table.cache_clear()
    yield state
    plans._table.cache_clear()


def test_engines_are_tried_once_for_a_shape(table, monkeypatch):
    for _ in range(2):
        assert plans.plan("forward", "float16", SIZES).engine == 9
    assert len(table.numbers) == 1 and table.numbers[0]["trials"] == 10 and table.numbers[0]["engine"] == -1
    entry, = json.loads(table.path.read_text()).values()
    assert entry == {"engine": 9, "knobs": [[2, 90]], "microseconds": 2.0, "workspace": 4096, "tried": 3}
    for different in ({"pass_": "data"}, {"dtype": "float32"}, {"sizes": dict(SIZES, stride=2)}, {"relu": True}):
        plans.plan(**{"pass_": "forward", "dtype": "float16", "sizes": SIZES, **different})
    assert len(table.numbers) == 5 and len(json.loads(table.path.read_text())) == 5
    monkeypatch.setattr(plans, "_plans", {})  # another process
    plans._table.cache_clear()
    plans.plan("forward", "float16", SIZES)
    assert {name: table.numbers[5][name]
            for name in ("engine", "knobs", "knob0", "value0", "pass", "type", "batch")} == {
        "engine": 9, "knobs": 1, "knob0": 2, "value0": 90, "pass": 0, "type": 2, "batch": 2}


def test_what_is_refused_is_not_kept(table):
    table.answer = answer(address=0, engine=-1, knobs=(), tried=0, refused=b"no engine")
    assert plans.plan("data", "float32", SIZES).refused == "no engine" and not table.path.exists()


def test_broken_entries_are_left_out(table):
    table.path.parent.mkdir()
    table.path.write_text(json.dumps({"a": {"engine": "x"}, "b": 3, "c": {"engine": 1, "knobs": [[1, 2]]}}))
    assert list(plans._table()) == ["c"]


def test_deterministic_takes_cudnns_first_proposal(table):
    plans.plan("weight", "float32", SIZES)
    plans.choose_by_rule()
    plans.plan("weight", "float32", SIZES)
    assert [(n["trials"], n["deterministic"]) for n in table.numbers] == [(10, 0), (0, 1)]
    assert len(json.loads(table.path.read_text())) == 1


def test_the_name_of_the_card_is_a_name_for_a_folder():
    assert plans.card() and set(plans.card()) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-")


def test_info_shows_the_verdicts(tmp_path, monkeypatch):
    import jea
    from jea.commands import info
    monkeypatch.setenv("JEA_HOME", str(tmp_path))
    assert "checked at its first use" in info.graphs()
    path = tmp_path / "convolutions" / "a-card" / "verdicts.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({f"jea {jea.__version__} abc": {"float32 1x1": check.RIGHT,
                                                               "float16 3x3": "wrong on this card",
                                                                  "float32 3x3": "begun 1 by 7"}}))
    assert info.graphs() == ("a-card: 1 kinds of convolutions checked and right; "
                             "as Jittor's own: float16 3x3: wrong on this card")
    path.write_text("[")
    assert "checked at its first use" in info.graphs()
