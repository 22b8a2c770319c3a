"""The three class-by-class maps of the head: joint softmax, average, product with the values.

For one image and one attention head, with `c = 1 / (tau sqrt(d))`, queries `q_m` of the three kinds
`m` and shared keys `k` and values `v`:

    E_m = exp(c q_m k^T)        Z_m = sum of all entries of E_m
    o = sum_m w_m E_m v         w_m = K / (3 Z_m); the image's single row has 1 / (3 Z_m)

and backward, from `do`, with `G = do v^T` and `delta_m = sum(E_m G) / Z_m`:

    dv = sum_m w_m E_m^T do,    dS_m = w_m E_m (G - delta_m),    dq_m = c dS_m k,
    dk = c sum_m dS_m^T q_m

The queries are stacked into `(2 K + 1, d)`: K rational rows, K text rows and the image's row, which
stands for K equal ones. Exponentials are taken in base two, which is the faster one. The joint
maximum is subtracted only where the scores are not known to be small, and it is kept apart from the
sum: in float32 their logarithms added up would cost sharp maps all accuracy.
"""

from __future__ import annotations

from torch import Tensor

from rada.head.kernels.plan import KernelPlan
from rada.head.kernels.scores import MapState, Operands, classes_are_few, is_bounded
from rada.head.kernels.tiles import tiled_backward, tiled_forward
from rada.head.kernels.whole import whole_backward, whole_forward

__all__ = ["MapState", "maps_backward", "maps_forward"]


def maps_forward(
    queries: Tensor, keys: Tensor, values: Tensor, factor: float, plan: KernelPlan
) -> tuple[Tensor, MapState]:
    """Attend with all three maps.

    Args:
        queries: stacked, `(N, 2 K + 1, d)`, for N pairs of image and attention head.
        keys: `(N, K, d)`, with any strides.
        values: `(N, K, d)`, with any strides.
        factor: `c = 1 / (tau sqrt(d))`.
        plan: sizes of the pieces.

    Returns:
        The output, `(N, K, d)`, and the state for `maps_backward`.
    """
    operands = Operands(queries, keys, values, factor, plan)
    if plan.rows is not None:
        return tiled_forward(operands, is_bounded(operands))
    few = classes_are_few(operands)
    return whole_forward(operands, not few and is_bounded(operands))


def maps_backward(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    output: Tensor,
    state: MapState,
    gradient: Tensor,
    factor: float,
    plan: KernelPlan,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries `(N, 2 K + 1, d)`, keys and values `(N, K, d)`.

    The queries are overwritten.

    Args:
        queries: as in the forward pass.
        keys: as in the forward pass.
        values: as in the forward pass.
        output: what the forward pass returned.
        state: what the forward pass returned.
        gradient: of the output, `(N, K, d)`.
        factor: as in the forward pass.
        plan: as in the forward pass.
    """
    operands = Operands(queries, keys, values, factor, plan)
    if plan.rows is None:
        return whole_backward(operands, state, gradient)
    return tiled_backward(operands, output, state, gradient)
