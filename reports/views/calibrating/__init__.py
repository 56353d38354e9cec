"""What `foretrain calibrate` writes and prints."""
