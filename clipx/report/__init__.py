"""Reports of runs as pages: what a run folder tells, one run alone (`report`) or several side by side (`compare`)."""
