"""`clipx launch`: starts a run by the files in launch/, after the checks that need no scheduler.

`nodes` checks that the batch divides evenly among the processes, `commands` makes the command line of a launcher and
runs it; `supervise` runs torchrun and accelerate launch, also when a person starts launch/torchrun.sh. The files are
part of the package (clipx/launch_files is a link to launch/), so that a wheel has them.
"""
