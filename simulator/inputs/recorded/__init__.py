"""Recordings that a job may name."""
