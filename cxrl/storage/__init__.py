"""What a run leaves on disk: names, writing, reading, ownership, checkpoints."""
