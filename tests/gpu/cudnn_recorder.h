// cuDNN's graph interface as stubs that write down what they are told, a line each, to the file JEA_STUB_CUDNN.
//
// cuDNN proposes three engines: 7 has the note "tensor cores", 8 none, 9 "not deterministic"; each has one knob, of type 2
// and value 10 times its number, and a workspace of 1000 times its number. JEA_STUB_REFUSE=KIND makes every graph with a
// descriptor of that kind fail.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>
#include <cudnn.h>

namespace recorder {

struct Made {
    int number, type;
    int64_t engine = -1;
    std::vector<Made*> parts;
};

inline int& last() { static int number = 0; return number; }
inline int64_t& running() { static int64_t engine = -1; return engine; }
inline bool& refusing() { static bool refuse = false; return refuse; }

inline FILE* log() {
    static FILE* file = [] {
        const char* path = std::getenv("JEA_STUB_CUDNN");
        return path ? std::fopen(path, "a") : nullptr;
    }();
    return file;
}

inline void write(const char* what, const Made* made, const char* rest = "") {
    if (!log()) return;
    std::fprintf(log(), "%s %d %s\n", what, made->number, rest);
    std::fflush(log());
}

inline void write_values(const Made* made, int name, int type, int64_t count, const void* values) {
    if (!log()) return;
    std::fprintf(log(), "set %d %d", made->number, name);
    for (int64_t i = 0; i < count; i++) {
        switch (type) {
            case CUDNN_TYPE_INT64: std::fprintf(log(), " %lld", static_cast<long long>(static_cast<const int64_t*>(values)[i])); break;
            case CUDNN_TYPE_FLOAT: std::fprintf(log(), " %g", static_cast<const float*>(values)[i]); break;
            case CUDNN_TYPE_BOOLEAN: std::fprintf(log(), " %d", static_cast<int>(static_cast<const bool*>(values)[i])); break;
            case CUDNN_TYPE_BACKEND_DESCRIPTOR:
                std::fprintf(log(), " #%d", static_cast<Made* const*>(values)[i]->number); break;
            case CUDNN_TYPE_VOID_PTR: case CUDNN_TYPE_HANDLE:
                std::fprintf(log(), " %lld", static_cast<long long>(static_cast<const intptr_t*>(values)[i])); break;
            default: std::fprintf(log(), " %d", static_cast<const int*>(values)[i]);
        }
    }
    std::fprintf(log(), "\n");
    std::fflush(log());
}

}  // namespace recorder

extern "C" {

int stub_cudnnBackendCreateDescriptor(int type, void** made) {
    auto* one = new recorder::Made{++recorder::last(), type};
    *made = one;
    char kind[16];
    std::snprintf(kind, sizeof kind, "%d", type);
    recorder::write("create", one, kind);
    return 0;
}

int stub_cudnnBackendDestroyDescriptor(void*) { return 0; }  // what was made is read to the end

int stub_cudnnBackendSetAttribute(void* of, int name, int type, int64_t count, const void* values) {
    auto* made = static_cast<recorder::Made*>(of);
    recorder::write_values(made, name, type, count, values);
    if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR)
        for (int64_t i = 0; i < count; i++) made->parts.push_back(static_cast<recorder::Made* const*>(values)[i]);
    if (name == CUDNN_ATTR_ENGINE_GLOBAL_INDEX) made->engine = *static_cast<const int64_t*>(values);
    if (name == CUDNN_ATTR_ENGINECFG_ENGINE || name == CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)
        made->engine = made->parts.back()->engine;
    return 0;
}

int stub_cudnnBackendFinalize(void* of) {
    auto* made = static_cast<recorder::Made*>(of);
    recorder::write("finalize", made);
    const char* refuse = std::getenv("JEA_STUB_REFUSE");
    if (made->type == CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR && refuse)
        for (const auto* part : made->parts)
            if (part->type == std::atoi(refuse)) return CUDNN_STATUS_NOT_SUPPORTED;
    return 0;
}

int stub_cudnnBackendGetAttribute(void* of, int name, int, int64_t wanted, int64_t* count, void* values) {
    auto* made = static_cast<recorder::Made*>(of);
    auto* const* parts = static_cast<recorder::Made* const*>(values);
    auto* number = static_cast<int64_t*>(values);
    *count = 1;
    switch (name) {
        case CUDNN_ATTR_ENGINEHEUR_RESULTS:
            for (*count = 0; *count < 3 && *count < wanted; ++*count) parts[*count]->engine = 7 + *count;
            break;
        case CUDNN_ATTR_ENGINECFG_ENGINE: parts[0]->engine = made->engine; break;
        case CUDNN_ATTR_ENGINECFG_KNOB_CHOICES: parts[0]->engine = made->engine; break;
        case CUDNN_ATTR_ENGINE_GLOBAL_INDEX: *number = made->engine; break;
        case CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE: *static_cast<int*>(values) = 2; break;
        case CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE: *number = 10 * made->engine; break;
        case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE: *number = 1000 * made->engine; break;
        case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE:
            *count = made->engine != 8;
            *static_cast<int*>(values) = made->engine == 7 ? CUDNN_NUMERICAL_NOTE_TENSOR_CORE
                                                           : CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC;
            break;
        default: *count = 0;
    }
    return 0;
}

int stub_cudnnBackendExecute(void*, void* plan, void* pack) {
    auto* made = static_cast<recorder::Made*>(plan);
    char rest[32];
    std::snprintf(rest, sizeof rest, "#%d", static_cast<recorder::Made*>(pack)->number);
    recorder::write("execute", made, rest);
    recorder::running() = made->engine;
    return 0;
}

}
