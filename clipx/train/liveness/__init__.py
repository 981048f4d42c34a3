"""What ends a run in time and says why: watchdog, heartbeats, requests to stop, the folder's lock, the status."""
