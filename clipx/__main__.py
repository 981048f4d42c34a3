"""`python -m clipx`, for launchers that start a module."""

from clipx.cli import main

if __name__ == "__main__":
    main()
