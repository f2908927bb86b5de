"""The ground that every other chapter stands on: files, errors, devices, keys, checkpoints."""
