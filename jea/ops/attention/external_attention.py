"""External attention between a feature and two memories (paper, section 3)."""
from __future__ import annotations

from jea.ops import kernels
from jea.ops.attention.double_norm import EPSILON, double_norm
from jea.ops.common.declared import FLOAT, Support
from jea.ops.function import Function
from jea.ops.products.linear import linear
from jea.ops.shapes.transpose import transpose

SUPPORT = Support("external_attention", cpu=FLOAT, onednn=True, instead="two products around double_norm")

_SIZES = """
    const bool channels_first = data["channels_first"] != 0;
    const jea::ExternalAttention sizes{in0_shape0, channels_first ? in0_shape1 : in0_shape2,
                                       channels_first ? in0_shape2 : in0_shape1, in1_shape0, channels_first};
"""


class _ExternalAttention(Function):
    def execute(self, x, m_k, m_v, layout, eps):
        self.inputs, self.numbers = [x, m_k, m_v], {"channels_first": int(layout == "bcn"), "eps": eps}
        positions = x.shape[2 if layout == "bcn" else 1]
        maps = (x.shape[0], m_k.shape[0], positions)  # of this size; their layout is the kernel's own
        y, self.map, self.denominators = kernels.cpu_code(
            [x.shape, maps, (x.shape[0], positions)], ["float32"] * 3, self.inputs, onednn=True,
            kernel="attention/external_attention.h", data=self.numbers, source=_SIZES + """
            jea::external_attention_forward(sizes, data["eps"], in0_p, in1_p, in2_p, out0_p, out1_p, out2_p);""")
        return y

    def grad(self, dy):
        shapes = [v.shape for v in self.inputs] + [self.map.shape]
        return (*kernels.cpu_code(
            shapes, ["float32"] * 4, [*self.inputs, self.map, self.denominators, dy], onednn=True,
            kernel="attention/external_attention.h", data=self.numbers, source=_SIZES + """
            jea::external_attention_backward(sizes, in0_p, in1_p, in2_p, in3_p, in4_p, in5_p, out0_p, out1_p, out2_p,
                                             out3_p);""")[:3], None, None)


def external_attention_composed(x, m_k, m_v, *, layout: str = "bnc", eps: float = EPSILON, impl: str = "auto"):
    """external_attention as two matrix products around jea.ops.double_norm; returns y and the map (B, S, N)."""
    if layout == "bcn":
        x = transpose(x, (0, 2, 1))
    attention = double_norm(linear(x, m_k, impl=impl), layout="bns", eps=eps, impl=impl)  # B N S
    y = linear(attention, transpose(m_v, (1, 0)), impl=impl)  # B N C
    return transpose(y, (0, 2, 1)) if layout == "bcn" else y, transpose(attention, (0, 2, 1))


def external_attention(x, m_k, m_v, *, layout: str = "bnc", eps: float = EPSILON, return_attention: bool = False,
                       impl: str = "auto"):
    """A = double_norm(x m_k^T), y = A m_v.

    With g = dL/dy and dS = the double normalisation's gradient (jea.ops.double_norm) of dA = g m_v^T:

        dL/dx = dS m_k,   dL/dm_k = dS^T x,   dL/dm_v = A^T g

    The kernel (CPU, float32, with oneDNN) makes the map with matrix products and keeps it for the gradient: it has
    S / C of the feature's size and stays in the processor's cache, where recomputing its tiles would cost another
    2 N S C operations of 6 N S C. `return_attention`, CUDA and half precision take two matrix products around
    double_norm instead.

    Args:
        x: float (B, N, C) or, layout="bcn", (B, C, N).
        m_k, m_v: (S, C), key and value memory.
        layout: "bnc" or "bcn".
        eps: of the double normalisation.
        return_attention: also return A, (B, S, N).
        impl: "auto", "fused" or "ref".
    Returns:
        y, of x's shape, or (y, A).
    Raises:
        ValueError: unknown layout, shapes that do not agree, or "fused" where there is no kernel.
    """
    if layout not in ("bnc", "bcn"):
        raise ValueError(f'external_attention: layout is {layout!r}; expected "bnc" (B, N, C) or "bcn" (B, C, N)')
    shape = tuple(x.shape)
    channels = shape[2 if layout == "bnc" else 1] if len(shape) == 3 else None
    if (channels is None or m_k.ndim != 2 or m_k.shape[1] != channels or m_v.shape != m_k.shape
            or min(*shape, *m_k.shape) < 1):
        raise ValueError(f"external_attention: x is {shape}, m_k {tuple(m_k.shape)} and m_v {tuple(m_v.shape)}; "
                         f"expected {'(B, N, C)' if layout == 'bnc' else '(B, C, N)'}, (S, C) and (S, C), none empty")
    if kernels.use_fused(impl, SUPPORT, x, m_k, m_v, unless="it does not hand out the map" if return_attention else ""):
        return _ExternalAttention.apply(x, m_k, m_v, layout, float(eps))
    y, attention = external_attention_composed(x, m_k, m_v, layout=layout, eps=eps, impl=impl)
    return (y, attention) if return_attention else y
