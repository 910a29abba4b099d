// Functions of plan.h by their addresses, which Python hands on with those of the plans.
#pragma once
namespace jea {
using Forward = void (*)(const void* plan, const void* x, const void* w, long w_type, void* y, const void* bias,
                         const void* residual);
using Backward = void (*)(const void* data, const void* weight, const void* x, const void* w, long w_type, const void* dy,
                          void* dx, void* dw);
}  // namespace jea
