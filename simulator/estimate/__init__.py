"""The quick third engine, at the granularity of actions, which search, sensitivity and feasibility share."""
