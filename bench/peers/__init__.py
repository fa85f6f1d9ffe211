"""The peers. Each module installs one at a fixed version, and runs it at its best on a CPU."""
