"""Runs in a browser, live: reads run directories, and nothing else."""
