"""The procedural chest phantom: films with known pose, findings and report."""
