"""Triton kernels of :mod:`cxrl.ops`, one file per op. Importing it imports no Triton."""
