from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cxrl.ops import _dispatch, attention
from cxrl.ops.attention import attention_case, attention_reference

# B, H, N, L, E, D, rows of k (0: as many as B), extra shared by all rows
SIZES = [
    (2, 2, 16, 77, 8, 40, 0, True),
    (4, 3, 50, 7, 3, 13, 2, True),
    (4, 3, 50, 7, 3, 13, 2, False),
    (3, 2, 100, 77, 4, 64, 0, False),
    (2, 4, 49, 77, 0, 80, 0, True),
    (5, 2, 9, 77, 4, 160, 3, True),
    (1, 1, 1, 2, 0, 1, 0, True),
    (0, 2, 5, 7, 2, 8, 0, True),
    (2, 1, 97, 300, 1, 24, 1, True),
    (6, 2, 1, 1, 1, 8, 4, False),
]
# float32: PyTorch's own float32 attention is off by as much; half precision: one rounding of the result,
# half an ulp of values up to 4 (forward), of the gradient's own size (relative to its norm).
FORWARD = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
BACKWARD = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
BACKENDS = ["reference", "sdpa", "cpp"]


def make(size: tuple[Any, ...], dtype: torch.dtype = torch.float32) -> dict[str, Tensor | None]:
    b, h, n, keys, e, d, kv, shared = size

    def heads(batch: int, rows: int) -> Tensor:
        # As a projection leaves them: [B, N, H·D] seen as heads.
        return torch.randn(batch, rows, h * d).to(dtype).view(batch, rows, h, d).transpose(1, 2)

    args: dict[str, Tensor | None] = {"q": heads(b, n), "k": heads(kv or b, keys), "v": heads(kv or b, keys)}
    for name in ("extra_k", "extra_v"):
        args[name] = torch.randn(h if shared else b * h, e, d).to(dtype) if e else None
    args["kv_index"] = torch.randint(kv, (b,)) if kv else None
    return args


def leaves_of(args: dict[str, Any]) -> list[Tensor]:
    return [a.requires_grad_() for a in args.values() if a is not None and a.is_floating_point()]


def double(args: dict[str, Any]) -> dict[str, Any]:
    return {n: a.detach().double() if a is not None and a.is_floating_point() else a for n, a in args.items()}


def check_against_float64(args: dict[str, Any], backend: str, scale: float | None = None) -> None:
    dtype = args["q"].dtype
    expected_args = double(args)
    expected_leaves = leaves_of(expected_args)
    expected = attention_reference(**expected_args, scale=scale)
    leaves = leaves_of(args)
    actual = attention(**args, scale=scale, backend=backend)
    assert actual.dtype == dtype
    assert actual.shape == args["q"].shape
    torch.testing.assert_close(actual.double(), expected, rtol=FORWARD[dtype], atol=FORWARD[dtype])
    grad = torch.randn(actual.shape).to(dtype)
    actual_grads = torch.autograd.grad(actual, leaves, grad)
    expected_grads = torch.autograd.grad(expected, expected_leaves, grad.double())
    for a, e in zip(actual_grads, expected_grads, strict=True):
        assert a.dtype == dtype
        assert (a.double() - e).norm() <= BACKWARD[dtype] * e.norm() + 1e-6 * math.sqrt(e.numel())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_matches_float64(backend: str, size: tuple[Any, ...], dtype: torch.dtype) -> None:
    check_against_float64(make(size, dtype), backend)


@pytest.mark.parametrize("size", SIZES)
def test_sdpa_matches_float64(size: tuple[Any, ...]) -> None:
    check_against_float64(make(size), "sdpa")


def test_strides(backend: str) -> None:
    args = make((4, 2, 11, 13, 3, 16, 0, True))
    args["q"] = torch.randn(4, 2, 16, 22)[..., ::2].transpose(2, 3)  # last dimension not dense
    args["k"] = torch.randn(1, 2, 13, 16).expand(4, 2, 13, 16)  # one row for all
    args["v"] = torch.randn(10_000)[17 : 17 + 4 * 2 * 13 * 16].view(4, 2, 13, 16)
    args["extra_k"] = torch.randn(2, 6, 16)[:, ::2]
    check_against_float64(args, backend)


@pytest.mark.parametrize("scale", [0.0, 0.37, -0.5, 20.0])
def test_scale(backend: str, scale: float) -> None:
    args = make((2, 2, 9, 21, 2, 8, 0, True))
    expected = attention_reference(**double(args), scale=scale)
    actual = attention(**args, scale=scale, backend=backend)
    torch.testing.assert_close(actual.double(), expected, rtol=2e-5, atol=2e-5)  # scores of ±100 at scale 20


def test_large_scores(backend: str) -> None:
    args = make((1, 1, 3, 5, 0, 8, 0, True))
    args["q"], args["k"] = 100 * args["q"], 100 * args["k"]
    leaves = leaves_of(args)
    actual = attention(**args, backend=backend)
    for t in (actual, *torch.autograd.grad(actual.sum(), leaves)):
        assert t.isfinite().all()
    torch.testing.assert_close(actual.double(), attention_reference(**double(args)), rtol=1e-3, atol=1e-3)


def test_known_values(backend: str) -> None:
    # One key: its value. Equal keys: the mean of the values, extra ones included.
    q, k, v = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 1, 4), torch.randn(1, 1, 1, 4)
    torch.testing.assert_close(attention(q, k, v, backend=backend), v.expand(1, 1, 3, 4))
    extra_v = torch.randn(1, 2, 4)
    actual = attention(q, k, v, extra_k=k[0].expand(1, 2, 4), extra_v=extra_v, backend=backend)
    expected = torch.cat([v[0], extra_v], 1).mean(1).expand(1, 1, 3, 4)
    torch.testing.assert_close(actual, expected)


def test_outputs_are_written_completely(backend: str, poisoned: None) -> None:
    args = make((3, 2, 53, 7, 3, 13, 2, True), torch.bfloat16)
    args["kv_index"] = torch.tensor([1, 1, 1])  # row 0 of k is attended to by nobody: gradient 0
    leaves = leaves_of(args)
    output = attention(**args, backend=backend)
    grads = torch.autograd.grad(output.sum(), leaves)
    assert all(t.isfinite().all() for t in (output, *grads))
    assert (grads[1][0] == 0).all()


def test_deterministic(cpp: str) -> None:
    args = make((6, 2, 64, 77, 4, 32, 3, True))
    leaves = leaves_of(args)
    runs = []
    for threads in (1, 2, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            output = attention(**args, backend=cpp)
            runs.append((output.detach(), *torch.autograd.grad(output.square().sum(), leaves)))
        finally:
            torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_result_merges_heads_without_a_copy(cpp: str) -> None:
    output = attention(**make((2, 4, 6, 5, 0, 8, 0, True)), backend=cpp)
    assert output.transpose(1, 2).is_contiguous()


def test_gradcheck_of_the_reference() -> None:
    args = double(make((3, 2, 3, 4, 2, 3, 2, False)))
    leaves = leaves_of(args)

    def function(q: Tensor, k: Tensor, v: Tensor, extra_k: Tensor, extra_v: Tensor) -> Tensor:
        return attention(
            q, k, v, extra_k=extra_k, extra_v=extra_v, kv_index=args["kv_index"], backend="reference"
        )

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("size", [SIZES[1], SIZES[4]])
@pytest.mark.parametrize("keep", [False, True])
def test_opcheck(cpp: str, size: tuple[Any, ...], keep: bool) -> None:
    args = make(size)
    leaves_of(args)
    inputs = (*args.values(), 0.3, keep)
    torch.library.opcheck(torch.ops.cxrl.attention.default, (*inputs, cpp))
    plain = tuple(a.detach() if isinstance(a, Tensor) else a for a in inputs)
    output, saved = torch.ops.cxrl.attention(*plain, cpp)
    torch.library.opcheck(
        torch.ops.cxrl.attention_backward.default,
        (torch.randn_like(output), *plain[:-1], output, saved, cpp),
    )


@pytest.mark.slow
def test_compiles_in_one_graph(cpp: str) -> None:
    args = make((3, 2, 6, 5, 2, 8, 2, True))
    leaves = leaves_of(args)

    def function(q: Tensor) -> Tensor:
        return attention(q, *list(args.values())[1:3], **dict(list(args.items())[3:]), backend=cpp).tanh()

    results = []
    for f in (function, torch.compile(function, fullgraph=True)):
        output = f(args["q"])
        results.append((output.detach(), *torch.autograd.grad(output.sum(), leaves)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", BACKENDS)
def test_autocast(cpp: str, name: str) -> None:
    args = make((2, 2, 6, 5, 2, 8, 0, True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = attention(**args, backend=name)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), attention_reference(**args), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("shape", "num_keys", "backend"),
    [((8, 4, 256, 64), 85, "cpp"), ((8, 4, 256, 64), 300, "sdpa"), ((1, 4, 32, 64), 85, "sdpa")],
)
def test_what_auto_takes(cpp: str, shape: tuple[int, ...], num_keys: int, backend: str) -> None:
    case = attention_case(shape, num_keys, torch.float32)
    assert _dispatch.select("attention", None, "cpu", (), case) == backend
    b, h, n, d = shape
    args = make((b, h, n, num_keys, 0, d, 0, True))
    assert torch.equal(attention(**args), attention(**args, backend=backend))


def changed(**change: Any) -> dict[str, Any]:
    return {**make((2, 3, 4, 5, 2, 8, 0, True)), **change}


BAD = [
    (changed(q=torch.zeros(2, 3, 4)), r"q must be floating \[B, H, N, D >= 1\]"),
    (changed(q=torch.zeros(2, 3, 4, 8, dtype=torch.int64)), "q must be floating"),
    (changed(k=torch.zeros(2, 3, 5, 7)), r"k must be \[Bk, 3, L >= 1, 8\]"),
    (changed(k=torch.zeros(2, 3, 0, 8)), "k must be"),
    (changed(v=torch.zeros(2, 3, 6, 8)), "v has shape"),
    (changed(v=torch.zeros(2, 3, 5, 8).half()), "v is torch.float16"),
    (changed(k=torch.zeros(2, 3, 5, 8, device="meta")), "k is torch.float32 on meta"),
    (changed(extra_k=None), "give both extra_k and extra_v"),
    (changed(extra_k=torch.zeros(2, 2, 8)), r"extra_k must be \[3, E, 8\] or \[6, E, 8\]"),
    (changed(extra_v=torch.zeros(3, 1, 8)), "extra_v has shape"),
    (changed(k=torch.zeros(1, 3, 5, 8), v=torch.zeros(1, 3, 5, 8)), "give kv_index to share keys"),
    (changed(kv_index=torch.zeros(3, dtype=torch.int64)), r"kv_index must be int64 \[2\]"),
    (changed(kv_index=torch.zeros(2)), "kv_index must be int64"),
    (changed(kv_index=torch.tensor([0, 2])), r"kv_index\[1\] = 2, expected 0 to 1"),
]


@pytest.mark.parametrize(("args", "message"), BAD)
def test_refuses(cpu_backend: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(**args, backend=cpu_backend)
