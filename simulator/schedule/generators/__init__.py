"""The shipped schedules: a module each, or a family each.

A module of this folder that has `RECORDS` is found by `simulator.schedule.registry`; nothing else names it.
"""
