"""What is trained, one file per objective; `objective.py` says what one owns, `build.py` picks the config's."""
