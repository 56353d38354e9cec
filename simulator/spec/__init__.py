"""The frozen values that a forecast depends on."""
