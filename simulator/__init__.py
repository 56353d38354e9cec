"""The engine room of foretrain: hardware, graphs, costs, schedules and the two engines."""
