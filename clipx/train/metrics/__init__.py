"""What a run reports: metrics and warnings, the time its steps take, and its bad samples."""
