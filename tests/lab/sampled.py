"""Looks at something all the time, in a thread of its own."""

import os
import threading
import time


class Sampled:
    """Context manager: calls `sample` every so often; `series` has (seconds since the beginning, what it said...)."""

    def __init__(self, sample, every_s):
        self.sample, self.every_s, self.series, self.ended = sample, every_s, [], threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def _look(self):
        begin = time.monotonic()
        while not self.ended.is_set():
            self.series.append((round(time.monotonic() - begin, 3), *self.sample()))
            self.ended.wait(self.every_s)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()

    def most(self, place=0):
        """The largest of the figures in this place of what `sample` returns."""
        return max((figures[place] for _, *figures in self.series), default=0)


def allocated(directory, ending=""):
    """Bytes of memory that the files in it have."""
    found = 0
    for name in os.listdir(directory):
        try:
            found += os.stat(f"{directory}/{name}").st_blocks * 512 if name.endswith(ending) else 0
        except FileNotFoundError:
            pass
    return found
