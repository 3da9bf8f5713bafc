"""A progress line on stderr: redrawn on a terminal, one line now and then in a log."""

import sys
import time


def clock(seconds: float) -> str:
    seconds = max(0, round(seconds))
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


class Progress:
    """`total` may be an estimate; `done` rows of an earlier run are not counted in the rate."""

    def __init__(self, name: str, total: int, unit: str = "rows", done: int = 0,
                 quiet: bool = False):
        self.name, self.total, self.unit = name, total, unit
        self.done, self.start_done, self.start = done, done, time.monotonic()
        self.on_terminal = sys.stderr.isatty()
        self.interval = 0.2 if self.on_terminal else 10.0
        self.shown = float("inf") if quiet else time.monotonic()

    def advance(self, count: int, note: str = ""):
        self.done += count
        now = time.monotonic()
        if now - self.shown >= self.interval:
            self.shown = now
            self._show(note)

    def skip(self, count: int):
        self.done += count
        self.start_done += count

    def rate(self) -> float:
        return (self.done - self.start_done) / max(time.monotonic() - self.start, 1e-9)

    def _show(self, note: str):
        total = max(self.total, self.done, 1)
        share = self.done / total
        left = (total - self.done) / max(self.rate(), 1e-9)
        filled = round(24 * share)
        line = (f"{self.name}: [{'#' * filled}{'.' * (24 - filled)}] {share:4.0%} "
                f"{self.done:,}/{total:,} {self.unit}  {self.rate():,.0f} {self.unit}/s  "
                f"ETA {clock(left)}{'  ' + note if note else ''}")
        if self.on_terminal:
            sys.stderr.write("\r\x1b[K" + line)
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def close(self):
        if self.on_terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
