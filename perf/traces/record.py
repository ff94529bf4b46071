"""Records the page traces that `godwit-perf heat` replays: which pages real programs touch, in which order.

    python3 perf/traces/record.py [--only NAME] [--memcached PROGRAM] [DIRECTORY]

Needs valgrind, memcached, g++ and python3 of Debian 12, and some minutes for each trace. page_filter.cpp has the format;
files are compressed by gzip. Recorded once: other versions of the programs give other traces.
"""

import argparse
import gzip
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WINDOW = 10_000
ACCESSES = 100_000_000

# A table of 3000 rows of some 4000 bytes is read from end to end again and again; between two such scans rows of a
# smaller table are looked up by their key.
SCAN = """
import random, sqlite3
draw = random.Random(1)
db = sqlite3.connect(":memory:")
db.execute("create table big (id integer primary key, text)")
db.execute("create table small (id integer primary key, text)")
db.executemany("insert into big values (?, ?)", ((i, draw.choice("abcdef") * 4000) for i in range(3000)))
db.executemany("insert into small values (?, ?)", ((i, draw.choice("abcdef") * 200) for i in range(3000)))
while True:
    db.execute("select count(*) from big where substr(text, 1, 1) = 'q'").fetchone()
    for _ in range(300):
        db.execute("select text from small where id = ?", (draw.randrange(3000),)).fetchone()
"""

ITEMS = 20_000
# memcached sets its limit of descriptors to this, which valgrind allows for no other than its own: the process's less 12.
CONNECTIONS = 88
DESCRIPTORS = CONNECTIONS + 12
KEYS_A_REQUEST = 32


def wait_for(path: Path) -> socket.socket:
    while True:
        try:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(path))
            return connection
        except OSError:
            time.sleep(0.1)


def ask_memcached(path: Path) -> None:
    """Fills it, then reads keys as YCSB draws them: Zipf's law with the exponent 0.99."""
    connection = wait_for(path)
    answers = connection.makefile("rb")
    draw = random.Random(1)
    for item in range(ITEMS):
        connection.sendall(b"set key%d 0 0 1000 noreply\r\n%s\r\n" % (item, bytes([97 + item % 26]) * 1000))
    weights = [1 / (rank + 1) ** 0.99 for rank in range(ITEMS)]
    ranked = list(range(ITEMS))
    draw.shuffle(ranked)
    while True:
        keys = draw.choices(ranked, weights, k=KEYS_A_REQUEST)
        connection.sendall(b"get " + b" ".join(b"key%d" % key for key in keys) + b"\r\n")
        while (line := answers.readline()) != b"END\r\n":
            if not line:
                return


def record(name: str, command: list[str], out: Path, page_filter: Path, drive=None) -> None:
    """The trace ends with the program, or after ACCESSES: then the program dies of its broken pipe."""
    read_end, write_end = os.pipe()
    traced = subprocess.Popen(
        ["valgrind", "--tool=lackey", "--trace-mem=yes", f"--log-fd={write_end}", *command],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[write_end], cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS)))
    os.close(write_end)
    with subprocess.Popen([page_filter, str(WINDOW), str(ACCESSES)], stdin=read_end, stdout=subprocess.PIPE) as filtering:
        os.close(read_end)
        if drive is not None:
            driver = os.fork()
            if driver == 0:
                try:
                    drive()
                except OSError:
                    pass  # the traced program has ended
                os._exit(0)
        raw = filtering.stdout.read()
    traced.kill()
    traced.wait()
    if drive is not None:
        os.kill(driver, signal.SIGKILL)
        os.waitpid(driver, 0)
    with gzip.GzipFile(out / f"{name}.trace.gz", "wb", compresslevel=9, mtime=0) as file:
        file.write(raw)
    print(f"{name}: {len(raw)} bytes, {(out / f'{name}.trace.gz').stat().st_size} compressed", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only")
    parser.add_argument("--memcached", default="memcached")
    parser.add_argument("directory", nargs="?", type=Path, default=HERE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        page_filter = Path(scratch) / "page_filter"
        subprocess.run(["g++", "-O2", "-o", page_filter, HERE / "page_filter.cpp"], check=True)
        compiler = subprocess.run(["g++", "-print-prog-name=cc1plus"], check=True, capture_output=True, text=True)
        source = Path(scratch) / "table_codec.ii"
        subprocess.run(["g++", "-E", "-std=c++23", "-I", ROOT, "-o", source, ROOT / "dataplane/pages/table_codec.cpp"], check=True)
        door = Path(scratch) / "memcached.sock"
        programs = {
            "compiler": ([compiler.stdout.strip(), "-fpreprocessed", "-quiet", "-O2", "-std=c++23", "-o", "/dev/null", str(source)], None),
            "memcached": ([options.memcached, "-u", "root", "-t", "1", "-c", str(CONNECTIONS), "-m", "64", "-s", str(door)],
                          lambda: ask_memcached(door)),
            "scan": (["python3", "-S", "-c", SCAN], None),
        }
        for name, (command, drive) in programs.items():
            if options.only in (None, name):
                record(name, command, options.directory, page_filter, drive)
    return 0


if __name__ == "__main__":
    sys.exit(main())
