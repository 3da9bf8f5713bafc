"""What the Python tools share. Read in this order: environment, errors, progress, text, models, shards."""
