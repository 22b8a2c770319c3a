"""WebDataset shards as ordinary data sets."""
