"""Functions that bring their own backward pass and still differentiate in every other way.

`jax.custom_vjp` refuses forward mode (`jax.jvp`, `jax.linearize`). Here a function also says how a
tangent is pushed through it. Reverse mode never runs that part: it takes the function's own
backward pass, as with `jax.custom_vjp`. Higher derivatives are those of these parts.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

FLOAT0 = jax.dtypes.float0  # type of an integer's tangent
Names = str | tuple[str, ...]


def with_backward(
    value: Callable,
    forward: Callable,
    backward: Callable,
    push: Callable,
    *,
    name: Names | None = None,
    unused_are_none: bool = False,
) -> Any:
    """The function `value(static, *arrays)` with derivatives of its own.

    static is hashable; arrays are trees, integers and None among them.
      forward(static, *arrays) -> (value, residuals): runs instead of `value` where a derivative is
          taken.
      backward(static, residuals, cotangents) -> cotangents of the arrays (None for integers).
          With unused_are_none the cotangent of a result that nobody uses is None, else zeros.
      push(static, residuals, tangents) -> tangents of the value, linear in tangents; the tangent of
          an integer has the type float0, as in `jax.jvp`.

    With a name, all that `forward` made carries it (`jax.ad_checkpoint.checkpoint_name`): value and
    residuals, but for those that are arrays given to it; with a tuple of names, each of these
    arrays in turn has its own. A policy of `jax.checkpoint` that saves the name then spares running
    `forward` again.
    """
    if name is not None:
        forward = _naming(name, forward)
    function = functools.partial(jax.custom_jvp, nondiff_argnums=(0,))(value)

    @function.defjvp
    def _(static: Any, arrays: Any, tangents: Any) -> Any:
        out, residuals = forward(static, *arrays)
        flat_residuals, residuals_tree = jax.tree.flatten(residuals)
        flat, tree = jax.tree.flatten(tangents)
        inexact = [x.dtype != FLOAT0 for x in flat]
        flat_out, out_tree = jax.tree.flatten(out)

        def push_flat(residuals: list[Array], tangents: list[Array]) -> list[Array]:
            given = iter(tangents)
            full = [next(given) if real else x for x, real in zip(flat, inexact, strict=True)]
            residuals, full = residuals_tree.unflatten(residuals), tree.unflatten(full)
            return jax.tree.leaves(push(static, residuals, full))

        def pull_flat(residuals: list[Array], cotangents: list[Array]) -> list[Array]:
            residuals = residuals_tree.unflatten(residuals)
            result = backward(static, residuals, out_tree.unflatten(cotangents))
            result = tree.flatten_up_to(result)
            return [x for x, real in zip(result, inexact, strict=True) if real]

        tangents_out = _linear_p.bind(
            *flat_residuals, *(x for x, real in zip(flat, inexact, strict=True) if real),
            push=push_flat, pull=pull_flat, residuals=len(flat_residuals),
            types=tuple(jax.typeof(x) for x in flat_out), unused_are_none=unused_are_none,
        )  # fmt: skip
        return out, out_tree.unflatten(tangents_out)

    return function


def _naming(
    name: Names, function: Callable, guard: Callable[[Callable], Callable] = lambda made: made
) -> Callable:
    """The function with a name on the arrays that it makes. Arrays that it was given and gives back
    go round it and its guard: what comes out of a guard is another array, which `jax.checkpoint`
    would have to keep or run the guard for.
    """

    def make(static: Any, *arrays: Any) -> _Made:
        given = jax.tree.leaves(arrays)
        leaves, tree = jax.tree.flatten(function(static, *arrays))
        known = {id(x) for x in given}
        made = list({id(x): x for x in leaves if id(x) not in known}.values())
        places = {id(x): place for place, x in enumerate([*given, *made])}
        return _Made(made, tree, tuple(places[id(x)] for x in leaves))

    make = guard(make)

    def run(static: Any, *arrays: Any) -> Any:
        made = make(static, *arrays)
        names = (name,) * len(made.arrays) if isinstance(name, str) else name
        named = [checkpoint_name(x, own) for x, own in zip(made.arrays, names, strict=True)]
        every = [*jax.tree.leaves(arrays), *named]
        return made.tree.unflatten([every[place] for place in made.places])

    return run


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["tree", "places"]
)
@dataclasses.dataclass(frozen=True)
class _Made:
    """The arrays that a function made, the structure of its result, and where each of the result's
    leaves is among what it was given and these.
    """

    arrays: list[Array]
    tree: Any
    places: tuple[int, ...]


def with_first_backward_only(
    value: Callable,
    forward: Callable,
    backward: Callable,
    refusal: str,
    *,
    name: Names | None = None,
    unused_are_none: bool = False,
) -> Any:
    """As `with_backward`, for functions that call Pallas kernels: they have gradients alone,
    forward mode and second derivatives raise TypeError(refusal), and they are traced without 64-bit
    types.

    Each is traced and its kernels are lowered once for all calls that are alike, as those of a
    model's blocks are: a kernel of Mosaic GPU takes most of a second, and a block nine. So nothing
    but `static` and the arrays' types may decide what they are.
    """
    value, forward, backward = (in_32_bits(part) for part in (value, forward, backward))

    def refuse(*_: Any) -> NoReturn:
        raise TypeError(refusal)

    def guarded(function: Callable) -> Any:
        function = functools.partial(jax.custom_jvp, nondiff_argnums=(0,))(once(function))
        function.defjvp(refuse)
        return function

    def once(function: Callable) -> Callable:
        return jax.jit(function, static_argnums=0)

    forward = guarded(forward) if name is None else _naming(name, forward, guarded)
    return with_backward(
        once(value), forward, guarded(backward), refuse, unused_are_none=unused_are_none
    )


def in_32_bits(function: Callable) -> Callable:
    """Traced as if jax_enable_x64 were not set. With it every number in a kernel and in its blocks'
    places would be an int64, which Mosaic does not know. The arrays given have 32 bits or less.
    """

    @functools.wraps(function)
    def narrow(*args: Any) -> Any:
        with jax.enable_x64(False):
            return function(*args)

    return narrow


def gradients_alone(op: str, backend: str) -> str:
    """The refusal of a Pallas backend."""
    able = {
        "mlstm": '"chunkwise" (or "recurrent", "parallel")',
        "slstm": '"recurrent"',
        "mlstm_front": '"reference"',
        "mlstm_back": '"reference"',
    }[op]
    return (
        f"{op}: the backend {backend!r} has gradients and no other derivative: neither forward "
        f"mode (jax.jvp, jax.linearize) nor second derivatives. Give backend={able} for those."
    )


# A linear function of its last operands, given the others (the residuals), which knows its
# transpose: `jax.custom_derivatives.linear_call` with rules for vmap and for derivatives by the
# residuals.
_linear_p = Primitive("linear_with_transpose")
_linear_p.multiple_results = True


def _apply(*operands: Array, push: Callable, residuals: int, **_: Any) -> list[Array]:
    return push(list(operands[:residuals]), list(operands[residuals:]))


def _jvp(operands: Any, tangents: Any, **parameters: Any) -> Any:
    count = parameters["residuals"]
    if all(type(x) is ad.Zero for x in tangents[:count]):
        moved = [ad.instantiate_zeros(x) for x in tangents[count:]]
        return (
            _linear_p.bind(*operands, **parameters),
            _linear_p.bind(*operands[:count], *moved, **parameters),
        )
    tangents = tuple(
        _zero_tangent(x) if type(t) is ad.Zero else t
        for x, t in zip(operands, tangents, strict=True)
    )
    out, out_tangents = jax.jvp(functools.partial(_apply, **parameters), tuple(operands), tangents)
    return list(out), list(out_tangents)


def _zero_tangent(x: Array) -> Any:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, FLOAT0)


def _transpose(
    cotangents: Any,
    *operands: Any,
    pull: Callable,
    residuals: int,
    types: Any,
    unused_are_none: bool,
    **_: Any,
) -> list[Any]:
    def given(x: Any, kind: Any) -> Array | None:
        if type(x) is not ad.Zero:
            return x
        return None if unused_are_none else jnp.zeros(kind.shape, kind.dtype)

    cotangents = [given(x, kind) for x, kind in zip(cotangents, types, strict=True)]
    return [None] * residuals + pull(list(operands[:residuals]), cotangents)


def _batch(
    operands: Any,
    axes: Any,
    *,
    push: Callable,
    pull: Callable,
    residuals: int,
    types: Any,
    unused_are_none: bool,
) -> Any:
    """All linear operands are given the new axis, so that each has its own cotangent."""
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    given = [
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands[residuals:], axes[residuals:], strict=True)
    ]
    in_axes = (list(axes[:residuals]), 0)
    out = _linear_p.bind(
        *operands[:residuals], *given, residuals=residuals,
        push=jax.vmap(push, in_axes), pull=jax.vmap(pull, in_axes),
        types=tuple(kind.update(shape=(size, *kind.shape)) for kind in types),
        unused_are_none=unused_are_none,
    )  # fmt: skip
    return out, [0] * len(out)


_linear_p.def_impl(_apply)
_linear_p.def_abstract_eval(lambda *_, types, **__: list(types))
ad.primitive_jvps[_linear_p] = _jvp
ad.primitive_transposes[_linear_p] = _transpose
batching.primitive_batchers[_linear_p] = _batch
mlir.register_lowering(_linear_p, mlir.lower_fun(_apply, multiple_results=True))
