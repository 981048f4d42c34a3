import os
import time

import pytest

from clipx.storage import pipe


def read(command, timeout_s=5.0):
    return b"".join(pipe.stream(command, timeout_s))


def test_gives_what_the_command_writes():
    assert read("printf 'a b' | cat; printf c") == b"a bc"
    assert len(read("head -c 5000000 /dev/zero")) == 5_000_000


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("echo first >&2; echo 'no such bucket' >&2; exit 3", "the command ended with code 3: no such bucket$"),
        ("printf half; exit 1", "the command ended with code 1$"),
        ("true", "the command wrote nothing to its standard output$"),
        ("clipx-no-such-command", "ended with code 127: .*not found"),
    ],
)
def test_a_command_that_fails_is_an_os_error_with_its_last_line(command, message):
    with pytest.raises(OSError, match=message) as caught:
        read(command)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["sleep 300", "printf half; sleep 300", "printf all; exec 1>&-; sleep 300"])
def test_a_command_that_hangs_is_killed_with_its_children(command, tmp_path):
    pid_file = tmp_path / "pid"
    with pytest.raises(OSError, match=r"wrote nothing for 0.3 s"):
        read(f"sleep 300 > /dev/null & echo $! > {pid_file}; {command}", timeout_s=0.3)
    child = int(pid_file.read_text())
    for _ in range(200):  # the init process of the machine may take its time to bury it
        if not _runs(child):
            return
        time.sleep(0.01)
    pytest.fail("the command's child still runs")


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_stream_that_nobody_reads_on_ends_the_command(tmp_path):
    chunks = pipe.stream(f"echo $$ > {tmp_path}/pid; yes", 5.0)
    next(chunks)
    chunks.close()
    assert not _runs(int((tmp_path / "pid").read_text()))
    assert not os.path.exists(f"/proc/{(tmp_path / 'pid').read_text().strip()}/exe")
