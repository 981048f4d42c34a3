"""`clipx launch`: starts a run by the files in launch/, after what can be checked before a scheduler is asked.

`nodes` checks that the batch falls evenly on the processes, `commands` makes the command line of a launcher, `start`
runs it; `supervise` stands over torchrun and accelerate launch, also where launch/torchrun.sh is started by hand. The
files are part of the package (clipx/launch_files is a link to launch/), so that a wheel has them.
"""
