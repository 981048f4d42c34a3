"""The run folder of a config that `clipx config` has printed, as it is: for shell scripts, which cannot read YAML.

`clipx config CONFIG.yaml ... | python -m clipx.launching.run_folder`
"""

import sys

from clipx.config.yaml_text import read_yaml


def run_folder(config: str) -> str:
    """The value of `run_dir` in YAML text."""
    return str(read_yaml(config)["run_dir"])


if __name__ == "__main__":
    sys.stdout.write(run_folder(sys.stdin.read()))
