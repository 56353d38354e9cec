"""What each op costs on a given GPU and network, and why."""
