"""What `foretrain show` prints."""
