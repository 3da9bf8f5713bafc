"""What the Python tools share. Read in this order: errors, progress, text, models, shards."""
