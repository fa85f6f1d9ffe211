"""The servers ours is compared to: how each is installed, pinned, and run at its best on a CPU."""
