"""Reports: what leaves the program, as tables, JSON, traces, figures and pages."""
