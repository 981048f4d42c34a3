"""Names of weights here and in other libraries, one file each."""
