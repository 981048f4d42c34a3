"""What a run shows: its steps as figures, rows and warnings, where its time goes, and its bad samples."""
