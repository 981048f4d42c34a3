"""`clipx doctor`: what this machine and its ranks can do, what is wrong with them, and how to fix it."""
