"""Code that both processes use: settings, logs, access, files, metrics and traces."""
