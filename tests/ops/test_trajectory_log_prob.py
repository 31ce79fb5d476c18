from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cxrl.ops import denoise_step, trajectory_log_prob
from cxrl.ops.trajectory_log_prob import denoise_step_reference, trajectory_log_prob_reference

# Odd, prime, one, empty, a whole tile, more than a tile, no multiple of any vector.
SHAPES = [
    (3, 4, 16, 16),
    (2, 3, 5, 7),
    (1, 1, 1, 1),
    (0, 4, 2, 2),
    (2, 4, 33, 31),
    (5, 13),
    (2, 3, 4, 5, 6),
    (2, 1031),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Accumulation in float32 vectors, then float64: a few roundings of the squared error.
LOG_PROB_TOLERANCE = {"rtol": 2e-6, "atol": 2e-6}
# One rounding into the gradient's own dtype (half an ulp) on top of float32 arithmetic.
GRAD_TOLERANCE = {
    torch.float32: {"rtol": 2e-5, "atol": 1e-6},
    torch.float16: {"rtol": 1e-3, "atol": 1e-6},
    torch.bfloat16: {"rtol": 8e-3, "atol": 1e-6},
}

# opcheck reads .grad of what it made itself
OPCHECK_READS_GRAD = "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"


def make(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, guided: bool = True) -> tuple[Any, ...]:
    cond, uncond = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    rows = torch.rand(shape[0], 3) + 0.1
    return (
        cond,
        uncond if guided else None,
        3.0 if guided else 1.0,
        torch.randn(shape),
        torch.randn(shape),
        rows,
    )


def double(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.detach().double() if isinstance(a, Tensor) else a for a in args)


def gradients(output: Tensor, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(output, inputs, grad.to(output.dtype)))


def check_against_float64(args: tuple[Any, ...], backend: str) -> None:
    dtype = args[0].dtype
    args = tuple(a.requires_grad_() if i < 2 and a is not None else a for i, a in enumerate(args))
    expected_args = double(args)
    leaves = [a for a in args[:2] if a is not None]
    expected_leaves = [a.requires_grad_() for a in expected_args[:2] if a is not None]
    expected = trajectory_log_prob_reference(*expected_args)
    actual = trajectory_log_prob(*args, backend=backend)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, **LOG_PROB_TOLERANCE)
    grad = torch.randn(len(args[0]))
    for a, e in zip(gradients(actual, leaves, grad), gradients(expected, expected_leaves, grad), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), e, **GRAD_TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("guided", [True, False])
def test_matches_float64(backend: str, shape: tuple[int, ...], dtype: torch.dtype, guided: bool) -> None:
    check_against_float64(make(shape, dtype, guided), backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", ["all", "outputs", "one", "latents"])
def test_channels_last(backend: str, which: str, dtype: torch.dtype) -> None:
    args = list(make((3, 4, 17, 19), dtype))
    chosen = {"all": (0, 1, 3, 4), "outputs": (0, 1), "one": (1,), "latents": (3, 4)}[which]
    for i in chosen:
        args[i] = args[i].to(memory_format=torch.channels_last)
    check_against_float64(tuple(args), backend)


def test_strides(backend: str) -> None:
    # A trajectory's latents as views [N, T+1, ...], a broadcast table, every second row, a transposed
    # output, an offset storage.
    trajectory = torch.randn(4, 6, 3, 5, 7)
    cond = torch.randn(8, 3, 7, 5).transpose(2, 3)[::2]
    uncond = torch.randn(1000)[13 : 13 + 420].view(4, 3, 5, 7)
    rows = torch.tensor([[0.9, -0.3, 0.2]]).expand(4, 3)
    check_against_float64((cond, uncond, 5.0, trajectory[:, 2], trajectory[:, 3], rows), backend)
    column_major = (torch.rand(3, 4) + 0.1).t()
    check_against_float64((cond, uncond, 5.0, trajectory[:, 2], trajectory[:, 3], column_major), backend)
    shared = torch.randn(1, 3, 5, 7).expand(4, 3, 5, 7)
    check_against_float64((cond, uncond, 0.5, shared, trajectory[:, 3], rows), backend)


def test_expanded_gradient(backend: str) -> None:
    args = make((4, 4, 8, 8))
    args[0].requires_grad_()
    trajectory_log_prob(*args, backend=backend).sum().backward()
    once = args[0].grad.clone()
    args[0].grad = None
    trajectory_log_prob(*args, backend=backend).backward(torch.ones(4))
    assert torch.equal(once, args[0].grad)


def test_torch_distributions(backend: str) -> None:
    cond, uncond, guidance, x_t, x_prev, rows = make((3, 4, 6, 5))
    mean = rows[:, 0].view(-1, 1, 1, 1) * x_t
    mean = mean + rows[:, 1].view(-1, 1, 1, 1) * (uncond + guidance * (cond - uncond))
    normal = torch.distributions.Normal(mean.double(), rows[:, 2].view(-1, 1, 1, 1).double())
    expected = normal.log_prob(x_prev.double()).mean((1, 2, 3))
    actual = trajectory_log_prob(cond, uncond, guidance, x_t, x_prev, rows, backend=backend)
    torch.testing.assert_close(actual.double(), expected, **LOG_PROB_TOLERANCE)


def test_known_value(backend: str) -> None:
    # μ = 2 · 1 + 0.5 · 4 = 4, x_prev = 4 + σ: one standard deviation off, everywhere.
    ones = torch.ones(1, 4, 3, 3)
    rows = torch.tensor([[2.0, 0.5, 0.25]])
    actual = trajectory_log_prob(4 * ones, None, 1.0, ones, 4.25 * ones, rows, backend=backend)
    expected = -0.5 - math.log(0.25) - 0.5 * math.log(2 * math.pi)
    assert actual.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_step_matches_float64(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    args = make(shape, dtype)
    x_prev, log_prob = denoise_step(*args, backend=backend)
    expected_x, expected_log_prob = denoise_step_reference(*double(args))
    torch.testing.assert_close(x_prev.double(), expected_x, rtol=1e-6, atol=2e-6)
    # x_prev − μ loses what rounding x_prev to float32 costs: ulp(x_prev) / σ.
    torch.testing.assert_close(log_prob.double(), expected_log_prob, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_scoring_a_step_again_gives_the_same_bits(
    backend: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    cond, uncond, guidance, x_t, noise, rows = make(shape, dtype)
    x_prev, log_prob = denoise_step(cond, uncond, guidance, x_t, noise, rows, backend=backend)
    again = trajectory_log_prob(cond, uncond, guidance, x_t, x_prev, rows, backend=backend)
    assert torch.equal(log_prob, again)


def test_rows_do_not_depend_on_their_batch(backend: str) -> None:
    args = make((6, 4, 12, 12))
    whole = trajectory_log_prob(*args, backend=backend)
    parts = [
        trajectory_log_prob(*(a[i : i + 2] if isinstance(a, Tensor) else a for a in args), backend=backend)
        for i in (0, 2, 4)
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_step_without_noise_is_the_mean(backend: str) -> None:
    cond, uncond, guidance, x_t, noise, rows = make((3, 4, 5, 5))
    rows[1, 2] = 0.0
    x_prev, log_prob = denoise_step(cond, uncond, guidance, x_t, noise, rows, backend=backend)
    assert log_prob[1] == 0
    assert log_prob.isfinite().all()
    mean = rows[1, 0] * x_t[1] + rows[1, 1] * (uncond[1] + guidance * (cond[1] - uncond[1]))
    torch.testing.assert_close(x_prev[1], mean)


def test_step_is_not_recorded(backend: str) -> None:
    args = make((2, 4, 4, 4))
    args[0].requires_grad_()
    x_prev, log_prob = denoise_step(*args, backend=backend)
    assert not x_prev.requires_grad
    assert not log_prob.requires_grad


def test_outputs_are_written_completely(backend: str, poisoned: None) -> None:
    for memory_format in (torch.contiguous_format, torch.channels_last):
        args = [
            a.to(memory_format=memory_format) if isinstance(a, Tensor) and a.ndim == 4 else a
            for a in make((3, 3, 11, 13), torch.bfloat16)
        ]
        for a in args[:2]:
            a.requires_grad_()
        log_prob = trajectory_log_prob(*args, backend=backend)
        x_prev, step_log_prob = denoise_step(*args, backend=backend)
        for t in (log_prob, x_prev, step_log_prob, *torch.autograd.grad(log_prob.sum(), args[:2])):
            assert t.isfinite().all()


def test_deterministic(backend: str) -> None:
    args = make((4, 4, 40, 40))
    args[0].requires_grad_()
    runs = []
    for threads in (1, 2, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            output = trajectory_log_prob(*args, backend=backend)
            runs.append((output.detach(), *torch.autograd.grad(output.sum(), args[0])))
        finally:
            torch.set_num_threads(before)
    for other in runs[2:]:  # run to run
        assert all(torch.equal(a, b) for a, b in zip(runs[1], other, strict=True))
    if backend == "cpp":  # and whatever the number of threads
        assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))


def test_nothing_else_is_touched(cpp: str) -> None:
    args = make((2, 4, 5, 5))
    args[0].requires_grad_()
    copies = [a.detach().clone() if isinstance(a, Tensor) else a for a in args]
    trajectory_log_prob(*args, backend=cpp).sum().backward()
    for a, b in zip(args, copies, strict=True):
        assert a == b if isinstance(a, float) else torch.equal(a, b)


def test_gradcheck_of_the_reference() -> None:
    cond, uncond, guidance, x_t, x_prev, rows = double(make((2, 2, 3, 2)))
    leaves = [t.requires_grad_() for t in (cond, uncond, x_t, x_prev, rows)]

    def function(cond: Tensor, uncond: Tensor, x_t: Tensor, x_prev: Tensor, rows: Tensor) -> Tensor:
        return trajectory_log_prob(cond, uncond, guidance, x_t, x_prev, rows)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.filterwarnings(OPCHECK_READS_GRAD)
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_opcheck(cpp: str, guided: bool, memory_format: torch.memory_format) -> None:
    args = make((2, 4, 3, 3), torch.bfloat16, guided)
    args = tuple(
        a.to(memory_format=memory_format) if isinstance(a, Tensor) and a.ndim == 4 else a for a in args
    )
    for a in args[:2]:
        if a is not None:
            a.requires_grad_()
    torch.library.opcheck(torch.ops.cxrl.trajectory_log_prob.default, (*args, cpp))
    plain = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
    torch.library.opcheck(torch.ops.cxrl.trajectory_log_prob_backward.default, (torch.randn(2), *plain, cpp))
    torch.library.opcheck(torch.ops.cxrl.denoise_step.default, (*plain, cpp))


def test_both_ways_to_the_kernel_agree(cpp: str) -> None:
    # Past the dispatcher (eager) and through it.
    args = make((3, 4, 7, 7), torch.float16)
    for a in args[:2]:
        a.requires_grad_()
    direct = trajectory_log_prob(*args, backend=cpp)
    dispatched = torch.ops.cxrl.trajectory_log_prob(*args, cpp)
    assert torch.equal(direct, dispatched)
    for a, b in zip(
        torch.autograd.grad(direct.sum(), args[:2]),
        torch.autograd.grad(dispatched.sum(), args[:2]),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_compiles_in_one_graph(cpp: str) -> None:
    args = make((2, 4, 5, 5))

    def function(cond: Tensor, uncond: Tensor) -> Tensor:
        x_prev, old = denoise_step(cond, uncond, *args[2:], backend=cpp)
        new = trajectory_log_prob(cond * 1.01, uncond, *args[2:4], x_prev, args[5], backend=cpp)
        return torch.exp(new - old)

    compiled = torch.compile(function, fullgraph=True)
    results = []
    for f in (function, compiled):
        leaves = [args[0].clone().requires_grad_(), args[1].clone().requires_grad_()]
        ratio = f(*leaves)
        results.append((ratio.detach(), *torch.autograd.grad(ratio.sum(), leaves)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast(backend: str) -> None:
    args = make((2, 4, 5, 5), torch.bfloat16)
    outside = trajectory_log_prob(*args, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = trajectory_log_prob(*args, backend=backend)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, outside)


def test_no_second_derivative_of_a_kernel(cpp: str) -> None:
    args = make((2, 4, 3, 3))
    args[0].requires_grad_()
    output = trajectory_log_prob(*args, backend=cpp).sum()
    with pytest.raises(RuntimeError, match="not twice differentiable"):
        torch.autograd.grad(output, args[0], create_graph=True)


GOOD = {
    "model_output_cond": torch.zeros(2, 4, 3, 3),
    "model_output_uncond": torch.zeros(2, 4, 3, 3),
    "guidance": 2.0,
    "x_t": torch.zeros(2, 4, 3, 3),
    "x_prev": torch.zeros(2, 4, 3, 3),
    "table_rows": torch.ones(2, 3),
}
BAD = [
    ({"x_t": torch.zeros(2, 4, 3, 3, dtype=torch.bfloat16)}, "x_t must be float32"),
    ({"x_t": torch.zeros(2)}, "x_t must be"),
    ({"x_prev": torch.zeros(2, 4, 3, 2)}, r"x_prev has shape \(2, 4, 3, 2\)"),
    ({"x_prev": torch.zeros(2, 4, 3, 3, dtype=torch.float64)}, "x_prev and table_rows must be torch.float32"),
    ({"model_output_cond": torch.zeros(1, 4, 3, 3)}, "model_output_cond has shape"),
    ({"model_output_cond": torch.zeros(2, 4, 3, 3, dtype=torch.int32)}, "model_output_uncond is"),
    ({"model_output_uncond": torch.zeros(2, 4, 9)}, "model_output_uncond has shape"),
    ({"model_output_uncond": torch.zeros(2, 4, 3, 3).half()}, "model_output_uncond is torch.float16"),
    ({"model_output_uncond": None}, "guidance 2.0 needs model_output_uncond"),
    ({"guidance": math.nan}, "guidance must be finite"),
    ({"table_rows": torch.ones(3, 3)}, r"table_rows must be \[2, 3\]"),
    ({"table_rows": torch.ones(2, 3).half()}, "x_prev and table_rows must be"),
    ({"table_rows": torch.ones(2, 3, device="meta")}, "table_rows is on meta"),
    ({"x_prev": torch.zeros(2, 4, 3, 3, device="meta")}, "x_prev is on meta"),
    ({"table_rows": torch.tensor([[1.0, 1, 1], [1, 1, 0]])}, r"table_rows\[1\].*sigma > 0"),
    ({"table_rows": torch.tensor([[1.0, 1, -1], [1, 1, 1]])}, r"table_rows\[0\].*sigma > 0"),
    ({"table_rows": torch.tensor([[1.0, 1, 1], [math.nan, 1, 1]])}, r"table_rows\[1\].*finite"),
    ({"table_rows": torch.tensor([[1.0, math.inf, 1], [1, 1, 1]])}, r"table_rows\[0\].*finite"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_refuses(cpu_backend: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trajectory_log_prob(**{**GOOD, **change}, backend=cpu_backend)


def test_step_refuses(cpu_backend: str) -> None:
    args = make((2, 4, 3, 3))
    args[5][1, 2] = -0.1
    with pytest.raises(ValueError, match=r"denoise_step: table_rows\[1\].*sigma >= 0"):
        denoise_step(*args, backend=cpu_backend)


def test_kernel_refuses_what_it_would_ignore(cpp: str) -> None:
    args = make((2, 4, 3, 3))
    args[3].requires_grad_()
    with pytest.raises(ValueError, match="does not support gradients of the latents"):
        trajectory_log_prob(*args, backend=cpp)
    with pytest.raises(ValueError, match="does not support float64"):
        trajectory_log_prob(*double(args), backend=cpp)
