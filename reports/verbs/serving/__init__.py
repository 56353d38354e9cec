"""Verbs that replay requests."""
