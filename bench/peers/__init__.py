"""The peers: how each one is installed, pinned, and run at its best on a CPU."""
