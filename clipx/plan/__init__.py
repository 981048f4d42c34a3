"""`clipx plan`: what a run will need and take, from its config and the kind and number of GPUs; nothing is computed.

    config -> model (FLOPs, a pass without arithmetic) -> memory, communication -> pace -> run -> report

It uses the code that trains: the towers, the loss and the optimizer are the run's own, without their numbers.
"""
