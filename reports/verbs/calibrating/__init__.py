"""`foretrain calibrate`."""
