"""Training: from a config to a finished run. A module imports only from the lines below its own.

trainer                 the loop: steps, saves, evaluations, stops and rollbacks; status.json says how it ended
saving, evaluations     what happens between steps
build                   config to `Run`: data by build_data, the step by build_stepper (step, accumulate, micro_batch)
loss_spikes             the detector and the rollback
liveness, metrics       watchdog, stops, lock, status; metrics.jsonl, trackers, warnings, bad samples
"""
