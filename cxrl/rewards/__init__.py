"""What an image is scored for: posture alignment, diagnostic condition, report-image consistency, and a
registry.
"""
