"""The reference model on several ranks: pipeline schedules that really run, expert parallelism, its traffic."""
