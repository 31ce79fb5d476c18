"""Maths of scores: tensors in, numbers out."""
