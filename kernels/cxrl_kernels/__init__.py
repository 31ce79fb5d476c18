"""Triton kernels of :mod:`cxrl.ops`, one file per op. Importing this package imports no kernel and no Triton."""
