"""Queues, threads and capacities that callers share fairly."""
