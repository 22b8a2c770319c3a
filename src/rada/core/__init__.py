"""What every room stands on: errors, configuration, registries, storage."""
