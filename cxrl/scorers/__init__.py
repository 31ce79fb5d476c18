"""Models that score films: what each task must offer, and the networks that do."""
