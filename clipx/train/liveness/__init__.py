"""What keeps a run alive or says why it is not: watchdog, heartbeats, stops, the lock of its folder, its status."""
