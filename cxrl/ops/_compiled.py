"""How a compiled backend becomes a torch op, and what stands between it and wrong addresses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cxrl.ops import _dispatch

_LIBRARY = torch.library.Library("cxrl", "FRAGMENT")


def _check_backend(op: str, backend: str, tensors: list[Tensor]) -> None:
    """Refuse a call of ``torch.ops.cxrl.<op>`` whose backend is not compiled or cannot take the tensors."""
    if backend not in _dispatch.COMPILED:
        raise ValueError(
            f"{op}: torch.ops.cxrl has no backend {backend!r}; choose one of {', '.join(_dispatch.COMPILED)}"
        )
    needs = ("float64",) if torch.float64 in [t.dtype for t in tensors] else ()
    _dispatch.select(op, backend, tensors[0].device.type, needs)


def check_tensor(
    op: str, name: str, t: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """Refuse a tensor of another shape, dtype or device, naming it."""
    if t.shape != shape or t.dtype is not dtype or t.device != device:
        raise ValueError(
            f"{op}: {name} must be {dtype} {list(shape)} on {device}, "
            f"got {t.dtype} {list(t.shape)} on {t.device}"
        )


# What needs no dispatcher: a subclass of Tensor may want to see the call.
_PLAIN_ARGUMENTS = {Tensor, torch.nn.Parameter, type(None), bool, int, float, str}


_len_dispatch_stack = torch._C._len_torch_dispatch_stack
_len_function_stack = torch._C._len_torch_function_stack
_transforms_active = torch._C._are_functorch_transforms_active


def _watched() -> bool:
    """Whether something watches the dispatcher, so that going around it would be noticed."""
    return bool(_len_dispatch_stack() or _len_function_stack() or _transforms_active())


def _in_memory(op: str, name: str, t: Any) -> Any:
    """``t`` with its values where its address says: a pending minus sign applied, zeros written out."""
    if not isinstance(t, Tensor):
        return t
    t = t.resolve_neg()
    if t._is_zerotensor():
        t = t.clone()
    if t.numel() and not t.data_ptr():
        raise ValueError(f"{op}: {name} has elements but no memory: its storage was freed")
    return t


class CompiledOp:
    """``cxrl::<name>``, the torch op of the compiled backends.

    ``allocate`` takes the op's arguments and makes its empty outputs. The last argument of the schema is
    ``str backend``; the kernel is that provider's function ``name``, which gets the other arguments and
    ``out``, what ``allocate`` made, to write. ``check`` takes the op's arguments and refuses shapes, dtypes
    and devices that do not fit; it looks at no values, because it stands before the op's fake as well.

    Kernels are given addresses, so a call that comes by the dispatcher or by autograd is checked first. One
    of this object is not: the public function has just done that.

    A differentiable op has a second op for its backward: ``backward(ctx, run, *grads)`` calls ``run`` with
    that op's arguments, ``setup_context`` is autograd's.

    Calls go through the torch dispatcher only when something could see the difference (compilation, fake
    tensors, modes, transforms): at the sizes of a small latent it would cost several times the work itself.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        allocate: Callable[..., Any],
        check: Callable[..., None],
        *,
        setup_context: Callable[..., None] | None = None,
        backward: Callable[..., Any] | None = None,
        backward_op: CompiledOp | None = None,
    ) -> None:
        op_name = name.removesuffix("_backward")

        def kernel(*args: Any) -> Any:
            out = allocate(*args)
            getattr(_dispatch.provider(op_name, args[-1]), name)(*args[:-1], out)
            return out

        def check_all(*args: Any) -> None:
            for i in self._required:
                if args[i] is None:
                    raise ValueError(f"{name}: {self._names[i]} must be a tensor, got None")
            check(*args)

        def checked(*args: Any) -> Any:
            check_all(*args)
            tensors = [a for a in args if isinstance(a, Tensor)]
            _check_backend(op_name, args[-1], tensors)
            if any(map(Tensor.is_neg, tensors)) or not all(map(Tensor.data_ptr, tensors)):
                args = tuple(map(functools.partial(_in_memory, name), self._names, args))
            return kernel(*args)

        def fake(*args: Any) -> Any:
            check_all(*args)
            return allocate(*args)

        self.kernel = kernel
        self.checked = checked
        self._record = kernel
        _LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, checked, "CompositeExplicitAutograd")
        torch.library.register_fake(f"cxrl::{name}", fake, lib=_LIBRARY)
        self.overload = getattr(torch.ops.cxrl, name).default
        arguments = self.overload._schema.arguments
        self._names = [argument.name for argument in arguments]
        self._required = [i for i, argument in enumerate(arguments) if str(argument.type) == "Tensor"]
        if setup_context is not None and backward is not None and backward_op is not None:
            run = backward_op.overload
            torch.library.register_autograd(
                f"cxrl::{name}",
                lambda ctx, *grads: backward(ctx, run, *grads),
                setup_context=setup_context,
                lib=_LIBRARY,
            )
            self._record = _eager_function(name, kernel, setup_context, backward, backward_op.checked)

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.overload(*args)
        if not _PLAIN_ARGUMENTS.issuperset(map(type, args)) or _watched():
            return self.overload(*args)
        recorded = False
        for argument in args:
            if isinstance(argument, Tensor):
                if argument.is_neg() or not argument.data_ptr():
                    return self.overload(*args)  # its values are not what is at its address
                recorded = recorded or argument.requires_grad
        return self._record(*args) if recorded and torch.is_grad_enabled() else self.kernel(*args)


def _eager_function(
    name: str,
    kernel: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    backward_kernel: Callable[..., Any],
) -> Callable[..., Any]:
    """The op for eager autograd, without the dispatcher."""

    def eager_forward(ctx: Any, *args: Any) -> Any:
        # In one piece: with setup_context apart, autograd binds arguments by inspect.signature, 100 µs a
        # call.
        out = kernel(*args)
        setup_context(ctx, args, out)
        return out

    def eager_backward(ctx: Any, *grads: Any) -> Any:
        # What once_differentiable is for, which takes 8 µs a call.
        if torch.is_grad_enabled():
            raise RuntimeError(f"cxrl::{name} is not twice differentiable; use backend='reference'")
        return backward(ctx, backward_kernel, *grads)

    members = {"forward": staticmethod(eager_forward), "backward": staticmethod(eager_backward)}
    function: Any = type(f"cxrl_{name}", (torch.autograd.Function,), members)
    return function.apply


def wants_grad(*args: Any) -> bool:
    """Whether autograd would record an op on ``args``."""
    for argument in args:
        if isinstance(argument, Tensor) and argument.requires_grad:
            return torch.is_grad_enabled()
    return False


def empty_dense_like(t: Tensor) -> Tensor:
    """An empty tensor like ``t``: channels last if ``t`` is, else contiguous."""
    if t.is_contiguous():
        return torch.empty_like(t)
    if t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last):
        return torch.empty_like(t, memory_format=torch.channels_last)
    return torch.empty_like(t, memory_format=torch.contiguous_format)
