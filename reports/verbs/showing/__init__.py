"""Parts of `foretrain show` in modules of their own."""
