"""What is asked of many forecasts: search, whole runs, sensitivity, what-ifs, explanations, single kernels."""
