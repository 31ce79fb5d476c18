"""Folders and tables of films, judged against each other without a run."""
