"""The verbs of the command line, one module each: parse, call the simulator, print.

A module imports nothing at its top but click and `reports.verbs.options`: its help must answer at once.
"""
