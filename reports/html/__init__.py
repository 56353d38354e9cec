"""Self-contained pages: one file, no network, for someone who did not run the forecast."""

from reports.html.simulation import write_simulation

__all__ = ["write_simulation"]
