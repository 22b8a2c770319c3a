"""Methods that train the encoder itself, one file each."""
