"""Communication parameters by cluster: data files only."""
