"""Queues, threads and capacities that callers share in turns."""
