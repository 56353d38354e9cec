"""Self-contained pages: one file, no network, for someone who did not run the forecast."""

from reports.html.comparison_page import Shown, write_comparison
from reports.html.memory_page import write_memory
from reports.html.replay_page import write_replay
from reports.html.search_page import write_search
from reports.html.serving_page import write_serving
from reports.html.step_page import write_simulation

__all__ = [
    "Shown",
    "write_comparison",
    "write_memory",
    "write_replay",
    "write_search",
    "write_serving",
    "write_simulation",
]
