"""The options of a process, from the command line, the environment, a file and defaults."""
