"""`clipx doctor`: what this machine and the ranks on it can do, what is wrong with them, and what to do about it."""
