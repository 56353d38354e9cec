"""Recorded profiles next to forecasts."""
