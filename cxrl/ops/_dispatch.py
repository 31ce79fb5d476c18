"""Which backend runs an op."""

from __future__ import annotations

BACKENDS = ("auto", "reference", "sdpa", "cpp", "triton", "cuda", "xformers")


def unavailable_reason(op: str, backend: str) -> str | None:
    """Why ``backend`` cannot run ``op`` here, or None if it can."""
    return None if backend in ("auto", "reference") else f"{op} has no {backend} backend yet"
