"""Scores of generated images by models that gave no reward."""
