"""From a timeline to numbers: metrics, `Result`, and `simulate`."""
