// Engines of cuDNN's for one convolution: proposed by cuDNN, tried on scratch memory, the fastest kept. See plans.py.
//
// Plans live as long as the process; Python holds their addresses.
#pragma once
#include <chrono>
#include <cstring>
#include <memory>
#include <cuda_runtime.h>
#include "convolution/cudnn/graph.h"

namespace jea {

// An engine of cuDNN's with its settings, as numbers that can be kept on disk.
struct Engine {
    int64_t index = -1;
    std::vector<std::pair<int64_t, int64_t>> knobs;  // type, value

    static Engine of(const Descriptor& config) {
        Engine found;
        std::vector<Descriptor> engine = descriptors(CUDNN_BACKEND_ENGINE_DESCRIPTOR, 1);
        config.get_all(CUDNN_ATTR_ENGINECFG_ENGINE, engine);
        found.index = engine.at(0).number(CUDNN_ATTR_ENGINE_GLOBAL_INDEX);
        std::vector<Descriptor> choices = descriptors(CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, CUDNN_KNOB_TYPE_COUNTS);
        config.get_all(CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, choices);
        for (const Descriptor& choice : choices) {
            const int64_t type = choice.number(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE);
            found.knobs.emplace_back(type, choice.number(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE));
        }
        return found;
    }

    Descriptor config(const Descriptor& graph) const {
        Descriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR), made(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
        engine.set(CUDNN_ATTR_ENGINE_OPERATION_GRAPH, graph).set(CUDNN_ATTR_ENGINE_GLOBAL_INDEX, index).finish("an engine");
        std::vector<Descriptor> choices;
        for (const auto& knob : knobs) {
            const auto type = static_cast<cudnnBackendKnobType_t>(knob.first);
            choices.emplace_back(CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
            choices.back().set(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, &type)
                .set(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, knob.second).finish("a setting");
        }
        made.set(CUDNN_ATTR_ENGINECFG_ENGINE, engine);
        if (!choices.empty()) made.set_all(CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, choices);
        made.finish("an engine's settings");
        return made;
    }
};

// Whether an engine computes what was asked for, by cuDNN's own notes on it.
inline bool is_exact(const Convolution& c, const Descriptor& config) {
    std::vector<Descriptor> engine = descriptors(CUDNN_BACKEND_ENGINE_DESCRIPTOR, 1);
    config.get_all(CUDNN_ATTR_ENGINECFG_ENGINE, engine);
    cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    int64_t count = 0;
    expect(cudnnBackendGetAttribute(engine.at(0).get(), CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                    CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &count, notes), "an engine's notes");
    const bool single = c.type == CUDNN_DATA_FLOAT;
    for (int64_t i = 0; i < count; i++) {
        switch (notes[i]) {
            case CUDNN_NUMERICAL_NOTE_TENSOR_CORE: if (single && !c.tf32) return false; break;
            case CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS: if (single) return false; break;
            case CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC: if (c.deterministic) return false; break;
            case CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION:
            case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6:
            case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13: return false;
            case CUDNN_NUMERICAL_NOTE_FFT:
            case CUDNN_NUMERICAL_NOTE_WINOGRAD: if (!single) return false; break;
            default: break;
        }
    }
    return true;
}

class Plan {
public:
    Plan(const Convolution& convolution, const Descriptor& config, Engine engine, cudnnHandle_t handle)
        : convolution(convolution), engine(std::move(engine)), handle_(handle), plan_(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
        plan_.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, &handle_)
            .set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config).finish("a plan");
        workspace = plan_.number(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
    }

    void run(void* x, void* w, void* y, void* bias, void* residual, void* scratch) const {
        const int64_t ids[5] = {kX, kW, kY, kBias, kResidual};
        void* const pointers[5] = {x, w, y, bias, residual};
        int64_t given_ids[5];
        void* given[5];
        int64_t count = 0;
        for (int i = 0; i < 5; i++) {
            if (!pointers[i]) continue;
            if (reinterpret_cast<uintptr_t>(pointers[i]) % 16) throw std::runtime_error("a tensor not aligned to 16 bytes");
            given_ids[count] = ids[i];
            given[count++] = pointers[i];
        }
        Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
        pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, given_ids, count)
            .set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, given, count)
            .set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, &scratch).finish("the pointers");
        expect(cudnnBackendExecute(handle_, plan_.get(), pack.get()), "running the convolution");
    }

    const Convolution convolution;
    Engine engine;
    int64_t workspace = 0, nanoseconds = 0;

private:
    cudnnHandle_t handle_;
    Descriptor plan_;
};

// The engines that cuDNN proposes, best guess first.
inline std::vector<Descriptor> proposals(const Descriptor& graph, cudnnBackendHeurMode_t mode, int most) {
    Descriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)
        .set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, &mode).finish("cuDNN's choice of engines");
    std::vector<Descriptor> found = descriptors(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, most);
    heuristics.get_all(CUDNN_ATTR_ENGINEHEUR_RESULTS, found);
    return found;
}

// Kernels, in plan.cuh. Numbers between 0.5 and 2 of a type:
void fill_with_numbers(void* memory, int64_t bytes, cudnnDataType_t type);
// A weight from the order (O, I, taps) to (O, taps, I), or back, between types:
void reorder_weight(bool to_channels_last, const void* from, cudnnDataType_t from_type, void* to, cudnnDataType_t to_type,
                    int64_t out_channels, int64_t channels, int64_t taps);

// How long engines may be tried for one convolution, and how many.
struct Trial {
    int engines = 10;
    double seconds = 2.0;
    int64_t most_workspace = int64_t{512} << 20;
};

// Memory for a trial: the same layout for all engines. Scratch as in run_plan.
template <class Scratch>
class TrialMemory {
public:
    explicit TrialMemory(const Convolution& c)
        : x_(c.x_values() * c.bytes_each() + 16), w_(c.w_values() * c.bytes_each() + 16),
          y_(c.y_values() * c.bytes_each() + 16), residual_(c.residual ? c.y_values() * c.bytes_each() + 16 : 0),
          bias_(c.bias ? c.out_channels * 4 + 16 : 0) {
        for (const Scratch* one : {&x_, &w_, &y_, &residual_})
            if (one->data) fill_with_numbers(one->data, static_cast<int64_t>(one->bytes), c.type);
        if (bias_.data) fill_with_numbers(bias_.data, static_cast<int64_t>(bias_.bytes), CUDNN_DATA_FLOAT);
    }

    void run(const Plan& plan) {
        const Scratch workspace(plan.workspace);
        plan.run(x_.data, w_.data, y_.data, bias_.data, residual_.data, workspace.data);
    }

private:
    Scratch x_, w_, y_, residual_, bias_;
};

inline bool succeeded(cudaError_t status) { return status == cudaSuccess; }

// The shortest of some runs in nanoseconds, or -1 where the engine does not run.
template <class Scratch>
int64_t time_of(const Plan& plan, TrialMemory<Scratch>& memory, int64_t best) {
    cudaEvent_t before, after;
    float shortest = -1.f;
    cudaEventCreate(&before);
    cudaEventCreate(&after);
    try {
        for (int i = 0; i < 4; i++) {  // the first one loads the code
            float milliseconds = 0.f;
            cudaEventRecord(before, 0);
            memory.run(plan);
            cudaEventRecord(after, 0);
            if (!succeeded(cudaEventSynchronize(after)) || !succeeded(cudaEventElapsedTime(&milliseconds, before, after))) {
                shortest = -1.f;
                break;
            }
            if (i > 0 && (shortest < 0.f || milliseconds < shortest)) shortest = milliseconds;
            if (i == 1 && best > 0 && milliseconds * 1e6f > 3.f * static_cast<float>(best)) break;
        }
    } catch (const std::runtime_error&) {
        shortest = -1.f;
    }
    cudaEventDestroy(before);
    cudaEventDestroy(after);
    return shortest < 0.f ? -1 : static_cast<int64_t>(shortest * 1e6f) + 1;
}

struct Found {
    std::unique_ptr<Plan> plan;
    int proposed = 0, tried = 0;
    std::string refused;  // why there is none
};

// The fastest plan; with trial.engines == 0 the first one that cuDNN proposes.
template <class Scratch>
Found find_plan(const Convolution& c, const Trial& trial, cudnnHandle_t handle) {
    const auto started = std::chrono::steady_clock::now();
    Found found;
    std::unique_ptr<TrialMemory<Scratch>> memory;
    try {
        const Descriptor graph = convolution_graph(c, handle);
        for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) {
            if (mode == CUDNN_HEUR_MODE_FALLBACK && found.plan) break;
            std::vector<Descriptor> configs;
            try {
                configs = proposals(graph, mode, 64);
            } catch (const std::runtime_error& error) {
                found.refused = error.what();
                continue;
            }
            found.proposed += static_cast<int>(configs.size());
            for (const Descriptor& config : configs) {
                const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - started;
                if (found.plan && (found.tried >= trial.engines || spent.count() > trial.seconds)) break;
                try {
                    if (!is_exact(c, config)) continue;
                    std::unique_ptr<Plan> plan(new Plan(c, config, Engine::of(config), handle));
                    if (plan->workspace > trial.most_workspace) continue;
                    if (trial.engines > 0) {
                        if (!memory) memory.reset(new TrialMemory<Scratch>(c));
                        plan->nanoseconds = time_of(*plan, *memory, found.plan ? found.plan->nanoseconds : 0);
                        if (plan->nanoseconds < 0) continue;
                    }
                    found.tried++;
                    if (!found.plan || plan->nanoseconds < found.plan->nanoseconds) found.plan = std::move(plan);
                } catch (const std::runtime_error& error) {
                    found.refused = error.what();  // this engine; the next may do
                }
            }
        }
        if (!found.plan && found.refused.empty())
            found.refused = "none of its " + std::to_string(found.proposed) + " engines computes it as exactly as asked for";
    } catch (const std::runtime_error& error) {
        found.refused = error.what();
    }
    return found;
}

// What Python reads, as 64-bit integers and text.
struct Answer {
    enum { kKnobs = 24 };
    int64_t plan = 0, forward = 0, backward = 0, workspace = 0, nanoseconds = 0, proposed = 0, tried = 0, engine = -1, knobs = 0;
    int64_t knob[kKnobs][2] = {};
    char refused[256] = {};
};

// A plan with a model's weight (O, I, kH, kW): as it is where that is cuDNN's order too, else reordered on the way. These two are
// called through their addresses.
inline bool is_packed(const Convolution& c, cudnnDataType_t weight_type) {
    return c.kernel_h * c.kernel_w == 1 && weight_type == c.type;
}

inline void* pointer(const void* p) { return const_cast<void*>(p); }

template <class Scratch>
void run_plan(const Plan& plan, void* x, void* w, void* y, void* bias = nullptr, void* residual = nullptr) {
    const Scratch workspace(plan.workspace);
    plan.run(x, w, y, bias, residual, workspace.data);
}

template <class Scratch>
void forward(const void* plan, const void* x, const void* w, long w_type, void* y, const void* bias, const void* residual) {
    const Plan& found = *static_cast<const Plan*>(plan);
    const Convolution& c = found.convolution;
    const auto type = static_cast<cudnnDataType_t>(w_type);
    const Scratch packed(is_packed(c, type) ? 0 : c.w_values() * c.bytes_each());
    if (packed.data) reorder_weight(true, w, type, packed.data, c.type, c.out_channels, c.channels, c.kernel_h * c.kernel_w);
    run_plan<Scratch>(found, pointer(x), packed.data ? packed.data : pointer(w), y, pointer(bias), pointer(residual));
}

// Either gradient, or both; a plan that is null leaves its one out.
template <class Scratch>
void backward(const void* data, const void* weight, const void* x, const void* w, long w_type, const void* dy, void* dx,
              void* dw) {
    const auto type = static_cast<cudnnDataType_t>(w_type);
    const Convolution& c = static_cast<const Plan*>(data ? data : weight)->convolution;
    const int64_t taps = c.kernel_h * c.kernel_w;
    const Scratch packed(is_packed(c, type) ? 0 : c.w_values() * c.bytes_each());
    if (data) {
        if (packed.data) reorder_weight(true, w, type, packed.data, c.type, c.out_channels, c.channels, taps);
        run_plan<Scratch>(*static_cast<const Plan*>(data), dx, packed.data ? packed.data : pointer(w), pointer(dy));
    }
    if (weight) {
        run_plan<Scratch>(*static_cast<const Plan*>(weight), pointer(x), packed.data ? packed.data : dw, pointer(dy));
        if (packed.data) reorder_weight(false, packed.data, c.type, dw, type, c.out_channels, c.channels, taps);
    }
}

// The plan for a convolution: by the engine that was kept, else by trial. The plan stays for the life of the process.
template <class Scratch>
Answer answer(const Convolution& c, const Engine& kept, const Trial& trial, cudnnHandle_t handle) {
    Found found;
    if (kept.index >= 0) {
        try {
            found.plan.reset(new Plan(c, kept.config(convolution_graph(c, handle)), kept, handle));
        } catch (const std::runtime_error&) {
            // of another cuDNN after all: try anew
        }
    }
    if (!found.plan) found = find_plan<Scratch>(c, trial, handle);
    Answer made;
    made.forward = reinterpret_cast<int64_t>(&forward<Scratch>);
    made.backward = reinterpret_cast<int64_t>(&backward<Scratch>);
    made.proposed = found.proposed;
    made.tried = found.tried;
    if (!found.plan) {
        std::strncpy(made.refused, found.refused.c_str(), sizeof made.refused - 1);
        return made;
    }
    const Engine& engine = found.plan->engine;
    made.workspace = found.plan->workspace;
    made.nanoseconds = found.plan->nanoseconds;
    made.engine = engine.index;
    made.knobs = static_cast<int64_t>(engine.knobs.size());
    for (int64_t i = 0; i < made.knobs && i < Answer::kKnobs; i++) {
        made.knob[i][0] = engine.knobs[i].first;
        made.knob[i][1] = engine.knobs[i].second;
    }
    made.plan = reinterpret_cast<int64_t>(found.plan.release());
    return made;
}

}  // namespace jea
