"""Text above the engine: chat templates in, incremental detokenization and stop strings out."""
