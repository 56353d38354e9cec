"""What mixes tokens in other ways than attention to all of them, and streams instead of a residual."""
