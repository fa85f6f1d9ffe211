"""Code of both processes: settings, logs, access, files, metrics and traces."""
