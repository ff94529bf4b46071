"""Records the page traces that `godwit-perf heat` replays: which pages real programs touch, in which order.

    python3 perf/traces/record.py [--only NAME] [--qemu PROGRAM] [--memcached PROGRAM] [DIRECTORY]

Needs qemu-user, memcached, sqlite3, perl, g++ and python3 of Debian 12 on x86-64, and a minute. page_trace_plugin.cpp has the format; files are
compressed by gzip. Recorded once: other versions of the programs give other traces.
"""

import argparse
import gzip
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WINDOW_ACCESSES = 50_000
WINDOWS = 4_000

# A table of 3000 pages is read from end to end again and again; between two such scans rows of a smaller one are looked up by their key.
SCAN_FILL = """
create table big (id integer primary key, body text);
create table small (id integer primary key, body text);
with recursive n(i) as (select 0 union all select i + 1 from n where i < 2999) insert into big select i, printf('%.4000c', 'a') from n;
with recursive n(i) as (select 0 union all select i + 1 from n where i < 2999) insert into small select i, printf('%.200c', 'b') from n;
"""
SCAN_ROUNDS = 200
SCAN_LOOKUPS = 300

# Orders of customers: inserted, changed and summed up by turns, nine of ten for one in ten of the customers; an index that is made and dropped.
SHOP_FILL = """
create table customer (id integer primary key, name text, total integer default 0);
create table purchase (id integer primary key, customer integer, amount integer, note text);
create index by_customer on purchase (customer);
with recursive n(i) as (select 0 union all select i + 1 from n where i < 9999) insert into customer (id, name) select i, printf('%.100c', 'c') from n;
"""
SHOP_ROUNDS = 100
SHOP_PURCHASES = 300

# Records as JSON and back, a dictionary of them, walks along random links between them, and a sort now and then.
PYTHON = """
import json, random
draw = random.Random(7)
records = {i: {"id": i, "links": [draw.randrange(8000) for _ in range(4)], "text": "x" * draw.randrange(20, 400)} for i in range(8000)}
while True:
    at = draw.randrange(8000)
    for _ in range(4000):
        at = records[at]["links"][draw.randrange(4)] if draw.random() < 0.9 else int(8000 * draw.random() ** 3)
    part = draw.randrange(8) * 1000
    for record in json.loads(json.dumps([records[i] for i in range(part, part + 1000)])):
        records[record["id"]] = record
    best = sorted(records.values(), key=lambda record: (record["links"][0], record["id"]))[:500]
    for record in best:
        record["text"] = "y" * draw.randrange(20, 400)
"""

# Counts words of a text in which some come back all the time, then looks for the rarest, then forgets half of them.
PERL = """
srand(11);
while (1) {
  for (1 .. 60000) { my $word = sprintf('%x', int(40000 * rand() ** 4)); $count{$word}++; push @{$where{$word}}, $_ if $_ % 7 == 0; }
  my @rare = (sort { $count{$a} <=> $count{$b} } keys %count)[0 .. 99];
  delete @where{@rare};
  for my $word (keys %count) { if (rand() < 0.5) { delete $count{$word}; delete $where{$word}; } }
}
"""

# Two tables joined by their key and by a range, over and over, and rewritten a tenth at a time.
JOIN_FILL = """
create table left_side (id integer primary key, other integer, body text);
create table right_side (id integer primary key, body text);
with recursive n(i) as (select 0 union all select i + 1 from n where i < 19999) insert into left_side select i, i * 7919 % 5000, printf('%.150c', 'l') from n;
with recursive n(i) as (select 0 union all select i + 1 from n where i < 4999) insert into right_side select i, printf('%.900c', 'r') from n;
"""
JOIN_ROUNDS = 40

# The nearest of all nodes from one after the other, in a graph that changes a little each time.
GRAPH = """
import heapq, random
draw = random.Random(17)
edges = [[(draw.randrange(20000), draw.random()) for _ in range(5)] for _ in range(20000)]
while True:
    start = draw.randrange(20000)
    distance, queue = {start: 0.0}, [(0.0, start)]
    while queue and len(distance) < 12000:
        so_far, node = heapq.heappop(queue)
        for to, length in edges[node]:
            if so_far + length < distance.get(to, 9.0):
                distance[to] = so_far + length
                heapq.heappush(queue, (so_far + length, to))
    for _ in range(500):
        edges[draw.randrange(20000)] = [(draw.randrange(20000), draw.random()) for _ in range(5)]
"""

ITEMS = 20_000
KEYS_A_REQUEST = 32


def scan_statements():
    draw = random.Random(1)
    statements = [SCAN_FILL]
    for _ in range(SCAN_ROUNDS):
        statements.append("select count(*) from big where substr(body, 1, 1) = 'q';")
        statements += [f"select length(body) from small where id = {draw.randrange(3000)};" for _ in range(SCAN_LOOKUPS)]
    return "\n".join(statements)


def shop_statements(seed):
    draw = random.Random(seed)
    statements = [SHOP_FILL]
    for turn in range(SHOP_ROUNDS):
        statements.append("begin;")
        for _ in range(SHOP_PURCHASES):
            customer = draw.randrange(1000) * 10 if draw.random() < 0.9 else draw.randrange(10_000)
            statements.append(f"insert into purchase (customer, amount, note) values ({customer}, {draw.randrange(1000)}, printf('%.300c', 'n'));")
            statements.append(f"update customer set total = (select sum(amount) from purchase where customer = {customer}) where id = {customer};")
        statements.append("commit;")
        if turn % 10 == 9:
            statements.append("select max(total), avg(total) from customer; select sum(amount) from purchase;")
        if turn % 25 == 24:
            statements.append("create index by_amount on purchase (amount); select sum(id) from purchase where amount < 50; drop index by_amount;")
            statements.append(f"delete from purchase where id < {turn * SHOP_PURCHASES // 2};")
    return "\n".join(statements)


def join_statements():
    draw = random.Random(13)
    statements = [JOIN_FILL]
    for turn in range(JOIN_ROUNDS):
        first = draw.randrange(18_000)
        statements.append(f"select sum(length(r.body)) from left_side l join right_side r on r.id = l.other where l.id between {first} and {first + 2000};")
        statements.append("select count(*) from left_side where length(body) = 3;")
        statements.append(f"update right_side set body = printf('%.900c', 's') where id between {turn % 10 * 500} and {turn % 10 * 500 + 499};")
    return "\n".join(statements)


def words(draw, count):
    """Text in which words come back, as in logs."""
    vocabulary = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randrange(3, 12))) for _ in range(5000)]
    return "\n".join(" ".join(vocabulary[int(5000 * draw.random() ** 3)] for _ in range(6)) for _ in range(count)) + "\n"


def wait_for(path):
    while True:
        try:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(path))
            return connection
        except OSError:
            time.sleep(0.1)


def ask_memcached(path, seed, exponent):
    """Fills it, then reads keys as YCSB draws them: Zipf's law, there with the exponent 0.99."""
    connection = wait_for(path)
    answers = connection.makefile("rb")
    draw = random.Random(seed)
    for item in range(ITEMS):
        connection.sendall(b"set key%d 0 0 1000 noreply\r\n%s\r\n" % (item, bytes([97 + item % 26]) * 1000))
    weights = [1 / (rank + 1) ** exponent for rank in range(ITEMS)]
    ranked = list(range(ITEMS))
    draw.shuffle(ranked)
    while True:
        keys = draw.choices(ranked, weights, k=KEYS_A_REQUEST)
        connection.sendall(b"get " + b" ".join(b"key%d" % key for key in keys) + b"\r\n")
        while (line := answers.readline()) != b"END\r\n":
            if not line:
                return


class Recorder:
    def __init__(self, qemu, scratch, out):
        self.qemu, self.scratch, self.out = qemu, scratch, out
        self.plugin = scratch / "page_trace_plugin.so"
        subprocess.run(["g++", "-O2", "-shared", "-fPIC", "-o", self.plugin, HERE / "page_trace_plugin.cpp"], check=True)

    def record(self, name, command, said="", drive=None):
        """The trace ends with the program, or after WINDOWS: then the plugin ends it."""
        raw = self.scratch / "raw"
        plugin = f"{self.plugin},trace={raw},window={WINDOW_ACCESSES},windows={WINDOWS}"
        traced = subprocess.Popen([self.qemu, "-plugin", plugin, *command], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=ROOT)
        driver = os.fork() if drive else None
        if driver == 0:
            try:
                drive()
            except OSError:
                pass  # the traced program has ended
            os._exit(0)
        try:
            traced.communicate(said.encode())
        except BrokenPipeError:
            traced.wait()
        if driver:
            os.kill(driver, signal.SIGKILL)
            os.waitpid(driver, 0)
        with gzip.GzipFile(self.out / f"{name}.trace.gz", "wb", compresslevel=9, mtime=0) as file:
            file.write(raw.read_bytes())
        print(f"{name}: {raw.stat().st_size} bytes, {(self.out / f'{name}.trace.gz').stat().st_size} compressed", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only")
    parser.add_argument("--qemu", default="qemu-x86_64")
    parser.add_argument("--memcached", default="/usr/bin/memcached")
    parser.add_argument("directory", nargs="?", type=Path, default=HERE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        recorder = Recorder(options.qemu, scratch, options.directory)
        compiler = subprocess.run(["g++", "-print-prog-name=cc1plus"], check=True, capture_output=True, text=True).stdout.strip()
        source = scratch / "table_codec.ii"
        subprocess.run(["g++", "-E", "-std=c++23", "-I", ROOT, "-o", source, ROOT / "dataplane/pages/table_codec.cpp"], check=True)
        other_source = scratch / "source_rounds.ii"
        subprocess.run(["g++", "-E", "-std=c++23", "-I", ROOT, "-o", other_source, ROOT / "dataplane/transfer/source_rounds.cpp"], check=True)
        door = scratch / "memcached.sock"
        text = scratch / "text"
        text.write_text(words(random.Random(3), 150_000))
        programs = {
            "compiler": ([compiler, "-fpreprocessed", "-quiet", "-O2", "-std=c++23", "-o", "/dev/null", str(source)],),
            "memcached": ([options.memcached, "-u", "root", "-t", "1", "-m", "64", "-s", str(door)], "", lambda: ask_memcached(door, 1, 0.99)),
            "scan": (["/usr/bin/sqlite3", ":memory:"], scan_statements()),
            "python": (["/usr/bin/python3", "-S", "-c", PYTHON],),
            "shop": (["/usr/bin/sqlite3", ":memory:"], shop_statements(5)),
            "sort": (["/usr/bin/sort", "--parallel=1", "-S", "64M", str(text)],),
            "compiler-debug": ([compiler, "-fpreprocessed", "-quiet", "-g", "-std=c++23", "-o", "/dev/null", str(other_source)],),
            "join": (["/usr/bin/sqlite3", ":memory:"], join_statements()),
            "memcached-flat": ([options.memcached, "-u", "root", "-t", "1", "-m", "64", "-s", str(door)], "", lambda: ask_memcached(door, 2, 0.7)),
            "perl": (["/usr/bin/perl", "-e", PERL],),
            # Held out: recorded when the ranking was finished.
            "graph": (["/usr/bin/python3", "-S", "-c", GRAPH],),
            "shop-2": (["/usr/bin/sqlite3", ":memory:"], shop_statements(19)),
            "sort-field": (["/usr/bin/sort", "--parallel=1", "-S", "24M", "-k", "3,3", "-k", "1,1r", str(text)],),
        }
        for name, what in programs.items():
            if options.only in (None, name):
                recorder.record(name, *what)
    return 0


if __name__ == "__main__":
    sys.exit(main())
