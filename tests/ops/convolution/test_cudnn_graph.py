"""What plan.h tells cuDNN about a convolution, against what its shape asks for: real headers, stubs that write it
down."""
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from jea.environment import cuda_home

ROOT = Path(__file__).parents[3]
OPS, RECORDER = ROOT / "jea" / "ops", ROOT / "tests" / "gpu" / "cudnn_recorder.h"
FLOAT, HALF, BFLOAT16 = 0, 2, 9
FORWARD, DATA, WEIGHT = 0, 1, 2


def include_folders() -> list:
    """Folders with cudnn.h and cuda_runtime.h: NVIDIA's wheels, a toolkit."""
    places = [str(folder / "include") for folder in cuda_home.wheel_folders()]
    places += os.environ.get("CPATH", "").split(":") + ["/usr/local/cuda/include", "/usr/include"]
    found = []
    for name in ("cudnn_graph.h", "cuda_runtime.h"):
        folder = next((place for place in places if place and Path(place, name).is_file()), None)
        if folder is None:
            return []
        found.append(folder)
    return found


INCLUDES = include_folders()
pytestmark = pytest.mark.skipif(not INCLUDES or shutil.which("g++") is None,
                                reason="the headers of CUDA and cuDNN 9 are not installed (pip install 'jea[cuda13]')")

# With a clock of its own: engine 9 takes 3 ms, the others 5.
HARNESS = r"""
#include "%s"
#include "convolution/cudnn/plan.h"
#define AS(name, type) extern "C" cudnnStatus_t name type
AS(cudnnBackendCreateDescriptor, (cudnnBackendDescriptorType_t t, cudnnBackendDescriptor_t* d)) { return (cudnnStatus_t)stub_cudnnBackendCreateDescriptor(t, d); }
AS(cudnnBackendDestroyDescriptor, (cudnnBackendDescriptor_t d)) { return (cudnnStatus_t)stub_cudnnBackendDestroyDescriptor(d); }
AS(cudnnBackendFinalize, (cudnnBackendDescriptor_t d)) { return (cudnnStatus_t)stub_cudnnBackendFinalize(d); }
AS(cudnnBackendSetAttribute, (cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t n, cudnnBackendAttributeType_t t, int64_t c, const void* v)) { return (cudnnStatus_t)stub_cudnnBackendSetAttribute(d, n, t, c, v); }
AS(cudnnBackendGetAttribute, (cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t n, cudnnBackendAttributeType_t t, int64_t r, int64_t* c, void* v)) { return (cudnnStatus_t)stub_cudnnBackendGetAttribute(d, n, t, r, c, v); }
AS(cudnnBackendExecute, (cudnnHandle_t h, cudnnBackendDescriptor_t p, cudnnBackendDescriptor_t v)) { return (cudnnStatus_t)stub_cudnnBackendExecute(h, p, v); }
extern "C" const char* cudnnGetErrorString(cudnnStatus_t) { return "cuDNN says no"; }
extern "C" cudaError_t cudaEventCreate(cudaEvent_t*) { return cudaSuccess; }
extern "C" cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
extern "C" cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
extern "C" cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
extern "C" cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) { *ms = recorder::running() == 9 ? 3.f : 5.f; return cudaSuccess; }
struct Scratch {
    size_t bytes;
    void* data;
    explicit Scratch(size_t bytes) : bytes(bytes), data(bytes ? aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr) {}
    Scratch(const Scratch&) = delete;
    ~Scratch() { free(data); }
};
std::string reorders;
namespace jea {
void fill_with_numbers(void*, int64_t bytes, cudnnDataType_t) { if (bytes < 1) abort(); }
void reorder_weight(bool last, const void* from, cudnnDataType_t from_type, void* to, cudnnDataType_t to_type, int64_t o,
                    int64_t i, int64_t taps) {
    char text[160];
    snprintf(text, sizeof text, "%%s[%%d, %%ld, %%d, %%ld, %%d, %%ld, %%ld, %%ld]", reorders.empty() ? "" : ", ", last, (long)from,
             from_type, (long)to, to_type, (long)o, (long)i, (long)taps);
    reorders += text;
}
}
int main(int argc, char** argv) {
    std::vector<long> n;
    for (int i = 1; i < argc; i++) n.push_back(atol(argv[i]));
    const jea::Convolution c{(jea::Pass)n[0], (cudnnDataType_t)n[1], n[2] != 0, n[3] != 0, n[4], n[5], n[6], n[7], n[8], n[9],
                             n[10], n[11], n[12], n[13], n[14] != 0, n[15] != 0, n[16] != 0};
    jea::Engine kept;
    kept.index = n[17];
    if (kept.index >= 0) kept.knobs.emplace_back(2, n[18]);
    jea::Trial trial;
    trial.engines = n[19];
    const jea::Answer a = jea::answer<Scratch>(c, kept, trial, (cudnnHandle_t)77);
    printf("{\"plan\": %%d, \"workspace\": %%ld, \"nanoseconds\": %%ld, \"proposed\": %%ld, \"tried\": %%ld, \"engine\": %%ld, "
           "\"knobs\": [[%%ld, %%ld]], \"count\": %%ld, \"refused\": \"%%s\", \"bytes\": %%d", a.plan != 0, (long)a.workspace,
           (long)a.nanoseconds, (long)a.proposed, (long)a.tried, (long)a.engine, (long)a.knob[0][0], (long)a.knob[0][1],
           (long)a.knobs, a.refused, (int)sizeof a);
    if (a.plan) {
        void* const bias = n[14] ? (void*)4096 : nullptr;
        void* const residual = n[15] ? (void*)8192 : nullptr;
        void *const x = (void*)1024, *const w = (void*)2048, *const y = (void*)3072, *const plan = (void*)a.plan;
        const auto forward = (void (*)(const void*, const void*, const void*, long, void*, const void*, const void*))a.forward;
        const auto backward = (void (*)(const void*, const void*, const void*, const void*, long, const void*, void*, void*))a.backward;
        if (n[0] == 0) forward(plan, x, w, n[20], y, bias, residual);
        if (n[0] == 1) backward(plan, nullptr, nullptr, w, n[20], y, x, nullptr);
        if (n[0] == 2) backward(nullptr, plan, x, nullptr, n[20], y, nullptr, w);
    }
    printf(", \"reorders\": [%%s]}", reorders.c_str());
}
"""


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cudnn")
    (folder / "harness.cc").write_text(HARNESS % RECORDER)
    done = subprocess.run(["g++", "-std=c++17", "-O1", "-Wall", "-Werror", "-Wno-terminate", f"-I{OPS}",
                           *(f"-I{include}" for include in INCLUDES), str(folder / "harness.cc"), "-o",
                           str(folder / "harness")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "harness"


NAMES = {}  # number -> name, of attributes and of descriptors
if INCLUDES:
    _TEXT = Path(INCLUDES[0], "cudnn_graph.h").read_text()
    NAMES = {kind: {int(number): name for name, number in re.findall(rf"CUDNN_{kind}_(\w+)[^=,\n]*= (\d+)", _TEXT)}
             for kind in ("ATTR", "BACKEND")}


class Descriptor(dict):
    """attribute -> its values; `kind` is its descriptor's name."""
    kind = ""
    finalized = False


def run(harness, tmp_path, pass_, type_, sizes, *, tf32=0, deterministic=0, epilogue=(0, 0, 0), kept=(-1, 0), trials=10,
        refuse=None, weight_type=None):
    log = tmp_path / "log"
    log.unlink(missing_ok=True)
    numbers = [pass_, type_, tf32, deterministic, *sizes, *epilogue, *kept, trials,
               type_ if weight_type is None else weight_type]
    environment = dict(os.environ, JEA_STUB_CUDNN=str(log), **({"JEA_STUB_REFUSE": str(refuse)} if refuse else {}))
    done = subprocess.run([str(harness), *map(str, numbers)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    made, executed = {}, []
    for line in log.read_text().splitlines():
        what, number, *rest = line.split()
        number = int(number)
        if what == "create":
            made[number] = Descriptor()
            made[number].kind = NAMES["BACKEND"][int(rest[0])]
        elif what == "set":
            name, values = NAMES["ATTR"][int(rest[0])], rest[1:]
            assert not made[number].finalized, f"{name} is set after the end"
            made[number][name] = [made[int(v[1:])] if v[0] == "#" else float(v) for v in values]
        elif what == "finalize":
            made[number].finalized = True
        else:
            executed.append((made[number], made[int(rest[0][1:])]))
    return json.loads(done.stdout), made, executed


SIZES = {  # batch, height, width, channels, out_channels, kernel_h, kernel_w, stride, padding, dilation
    "1x1": (2, 33, 17, 64, 256, 1, 1, 1, 0, 1),
    "3x3": (1, 65, 65, 16, 8, 3, 3, 1, 1, 1),
    "strided": (3, 33, 20, 3, 64, 3, 3, 2, 1, 1),
    "dilated": (2, 19, 19, 8, 8, 3, 3, 1, 8, 8),
    "oblong": (1, 9, 11, 4, 6, 1, 3, 1, 2, 1),
}


def expected_tensors(sizes) -> dict:
    """name -> (sizes, strides) of channels-last memory, from numpy's strides."""
    b, h, w, c, o, kh, kw, stride, padding, dilation = sizes
    out_h, out_w = ((n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k in ((h, kh), (w, kw)))

    def last(n, channels, rows, columns):
        return [n, channels, rows, columns], [rows * columns * channels, 1, columns * channels, channels]
    return {"X": last(b, c, h, w), "W": last(o, c, kh, kw), "Y": last(b, o, out_h, out_w)}


@pytest.mark.parametrize("type_", (FLOAT, HALF, BFLOAT16), ids=("float32", "float16", "bfloat16"))
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("pass_", (FORWARD, DATA, WEIGHT), ids=("forward", "data", "weight"))
def test_the_graph_is_the_convolution(harness, tmp_path, pass_, sizes, type_):
    said, made, executed = run(harness, tmp_path, pass_, type_, sizes)
    assert said["plan"] and not said["refused"] and said["bytes"] == 712
    plan, pack = executed[-1]
    graph = plan["EXECUTION_PLAN_ENGINE_CONFIG"][0]  # of the heuristics: only their graph is known
    assert graph.kind == "ENGINECFG_DESCRIPTOR" and plan["EXECUTION_PLAN_HANDLE"] == [77]
    graph, = [d for d in made.values() if d.kind == "OPERATIONGRAPH_DESCRIPTOR"]
    assert graph["OPERATIONGRAPH_HANDLE"] == [77]
    operation, = graph["OPERATIONGRAPH_OPS"]
    kind, prefix, names = (("FORWARD", "FORWARD", ("X", "W", "Y")), ("BACKWARD_DATA", "BWD_DATA", ("DX", "W", "DY")),
                           ("BACKWARD_FILTER", "BWD_FILTER", ("X", "DW", "DY")))[pass_]
    assert operation.kind == f"OPERATION_CONVOLUTION_{kind}_DESCRIPTOR"
    attribute = f"OPERATION_CONVOLUTION_{prefix}_"
    assert operation[attribute + "ALPHA"] == [1] and operation[attribute + "BETA"] == [0]
    convolution, = operation[attribute + "CONV_DESC"]
    stride, padding, dilation = sizes[7:]
    assert convolution == {
        "CONVOLUTION_SPATIAL_DIMS": [2], "CONVOLUTION_COMP_TYPE": [FLOAT], "CONVOLUTION_CONV_MODE": [1],
        "CONVOLUTION_PRE_PADDINGS": [padding] * 2, "CONVOLUTION_POST_PADDINGS": [padding] * 2,
        "CONVOLUTION_DILATIONS": [dilation] * 2, "CONVOLUTION_FILTER_STRIDES": [stride] * 2}
    for identity, name in enumerate(names, 1):
        tensor, = operation[attribute + name]
        shape, strides = expected_tensors(sizes)[name[-1]]
        assert tensor == {"TENSOR_DATA_TYPE": [type_], "TENSOR_DIMENSIONS": shape, "TENSOR_STRIDES": strides,
                          "TENSOR_UNIQUE_ID": [identity], "TENSOR_BYTE_ALIGNMENT": [16], "TENSOR_IS_VIRTUAL": [0]}, name
    assert pack["VARIANT_PACK_UNIQUE_IDS"] == [1, 2, 3]
    check_weight(pack, said["reorders"], pass_, sizes, type_, type_)
    assert len(pack["VARIANT_PACK_WORKSPACE"]) == 1
    for descriptor in (graph, operation, convolution, plan, pack):
        assert descriptor.finalized


def check_weight(pack, reorders, pass_, sizes, type_, weight_type):
    """The pointers; a weight that does not lie as cuDNN wants it goes through memory of its own."""
    x, w, y = pack["VARIANT_PACK_DATA_POINTERS"][:3]
    o, i, taps = sizes[4], sizes[3], sizes[5] * sizes[6]
    assert (x, y) == (1024, 3072)
    if taps == 1 and weight_type == type_:
        assert w == 2048 and not reorders
    elif pass_ == WEIGHT:
        assert w != 2048 and reorders == [[0, w, type_, 2048, weight_type, o, i, taps]]
    else:
        assert w != 2048 and reorders == [[1, 2048, weight_type, w, type_, o, i, taps]]


@pytest.mark.parametrize("sizes", (SIZES["1x1"], SIZES["3x3"]), ids=("1x1", "3x3"))
@pytest.mark.parametrize("pass_", (FORWARD, DATA, WEIGHT), ids=("forward", "data", "weight"))
def test_float32_weights_of_half_precision_products(harness, tmp_path, pass_, sizes):
    said, _, executed = run(harness, tmp_path, pass_, HALF, sizes, weight_type=FLOAT)
    check_weight(executed[-1][1], said["reorders"], pass_, sizes, HALF, FLOAT)


@pytest.mark.parametrize("epilogue", ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1)), ids=str)
def test_bias_residual_and_relu_follow_in_order(harness, tmp_path, epilogue):
    sizes = SIZES["strided"]
    said, made, executed = run(harness, tmp_path, FORWARD, HALF, sizes, epilogue=epilogue)
    graph, = [d for d in made.values() if d.kind == "OPERATIONGRAPH_DESCRIPTOR"]
    convolution, *steps = graph["OPERATIONGRAPH_OPS"]
    bias, residual, relu = epilogue
    shape, strides = expected_tensors(sizes)["Y"]
    flowing, = convolution["OPERATION_CONVOLUTION_FORWARD_Y"]
    wanted = [(0, 5)] * residual + [(0, 4)] * bias + [(100, None)] * relu  # add the residual, add the bias, ReLU
    assert len(steps) == len(wanted)
    for step, (mode, summand) in zip(steps, wanted):
        assert step.kind == "OPERATION_POINTWISE_DESCRIPTOR" and step.finalized
        what, = step["OPERATION_POINTWISE_PW_DESCRIPTOR"]
        assert what == {"POINTWISE_MODE": [mode], "POINTWISE_MATH_PREC": [FLOAT]}
        assert flowing["TENSOR_IS_VIRTUAL"] == [1] and flowing["TENSOR_DATA_TYPE"] == [FLOAT]
        assert flowing["TENSOR_DIMENSIONS"] == shape and step["OPERATION_POINTWISE_XDESC"] == [flowing]
        if summand is None:
            assert "OPERATION_POINTWISE_BDESC" not in step
        else:
            b, = step["OPERATION_POINTWISE_BDESC"]
            assert b["TENSOR_UNIQUE_ID"] == [summand] and b["TENSOR_IS_VIRTUAL"] == [0]
            assert b["TENSOR_DIMENSIONS"] == (shape if summand == 5 else [1, sizes[4], 1, 1])
            assert b["TENSOR_DATA_TYPE"] == [HALF if summand == 5 else FLOAT]
        flowing, = step["OPERATION_POINTWISE_YDESC"]
    assert flowing["TENSOR_UNIQUE_ID"] == [3] and flowing["TENSOR_IS_VIRTUAL"] == [0] and flowing["TENSOR_STRIDES"] == strides
    identities = [tensor["TENSOR_UNIQUE_ID"][0] for tensor in made.values() if tensor.kind == "TENSOR_DESCRIPTOR"]
    assert len(identities) == len(set(identities))
    assert executed[-1][1]["VARIANT_PACK_UNIQUE_IDS"] == [1, 2, 3] + [4] * bias + [5] * residual
    assert executed[-1][1]["VARIANT_PACK_DATA_POINTERS"][3:] == [4096] * bias + [8192] * residual
    check_weight(executed[-1][1], said["reorders"], FORWARD, sizes, HALF, HALF)


def test_the_fastest_engine_that_is_exact(harness, tmp_path):
    def engine(**options):
        return run(harness, tmp_path, FORWARD, options.pop("type_", FLOAT), SIZES["3x3"], **options)[0]
    found = engine()  # engine 7 multiplies with TF32
    assert (found["engine"], found["tried"], found["proposed"], found["workspace"]) == (9, 2, 3, 9000)
    assert found["knobs"] == [[2, 90]] and found["count"] == 1 and 2.9e6 < found["nanoseconds"] < 3.1e6
    assert (engine(tf32=1)["engine"], engine(tf32=1)["tried"]) == (9, 3)
    assert (engine(type_=HALF)["engine"], engine(type_=HALF)["tried"]) == (9, 3)
    assert (engine(deterministic=1)["engine"], engine(deterministic=1)["tried"]) == (8, 1)
    by_rule = engine(trials=0)
    assert by_rule["engine"] == 8 and by_rule["nanoseconds"] == 0  # the first one, not run
    assert engine(trials=0, type_=HALF)["engine"] == 7


def test_a_kept_engine_is_taken_without_trial(harness, tmp_path):
    said, made, executed = run(harness, tmp_path, FORWARD, HALF, SIZES["3x3"], kept=(8, 31))
    assert said["engine"] == 8 and said["tried"] == 0 and said["workspace"] == 8000 and len(executed) == 1
    assert not [d for d in made.values() if d.kind == "ENGINEHEUR_DESCRIPTOR"]
    config, = executed[0][0]["EXECUTION_PLAN_ENGINE_CONFIG"]
    engine, = config["ENGINECFG_ENGINE"]
    assert engine["ENGINE_GLOBAL_INDEX"] == [8] and engine["ENGINE_OPERATION_GRAPH"][0].kind == "OPERATIONGRAPH_DESCRIPTOR"
    assert config["ENGINECFG_KNOB_CHOICES"] == [{"KNOB_CHOICE_KNOB_TYPE": [2], "KNOB_CHOICE_KNOB_VALUE": [31]}]


def test_what_cudnn_refuses_comes_back_as_words(harness, tmp_path):
    pointwise = 13
    said, _, executed = run(harness, tmp_path, FORWARD, HALF, SIZES["3x3"], epilogue=(1, 0, 0), refuse=pointwise)
    assert not said["plan"] and said["refused"] == "the graph: cuDNN says no" and not executed
    assert run(harness, tmp_path, FORWARD, HALF, SIZES["3x3"], refuse=pointwise)[0]["plan"]
