"""One file for each kind of data set; each registers itself with `register_dataset`."""
