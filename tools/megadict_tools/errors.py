"""Errors as the megadict binary gives them: one line that says what, where, what is allowed.

Exit codes: 0 done, 1 error, 2 bad flag or combination, 3 bad data.
"""

import argparse
import difflib
import signal
import sys
from pathlib import Path

ERROR, USAGE, BAD_DATA = 1, 2, 3


class ToolError(Exception):
    """A failure the user can act on; main_guard() prints it as one line and exits with `code`."""

    def __init__(self, code: int, message: str, hint: str = ""):
        super().__init__(message + (f". hint: {hint}" if hint else ""))
        self.code = code


def refuse_output_file(path: Path) -> None:
    """Before any work: where the folder of `path` is missing, or `path` is one."""
    why = ("it is a folder" if path.is_dir() else "" if path.parent.is_dir() else
           f"'{path.parent}' is no folder" if path.parent.exists() else f"there is no folder '{path.parent}'")
    if why:
        raise ToolError(USAGE, f"cannot write '{path}': {why}", "name a file in a folder that is there")


class OneLineParser(argparse.ArgumentParser):
    """Refuses bad flags in one line, with the nearest known name; takes no abbreviations."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str):
        raise ToolError(USAGE, message, f"{self.prog} --help")

    def parse_args(self, args=None, namespace=None):
        words = list(sys.argv[1:] if args is None else args)
        known = [name for action in self._actions for name in action.option_strings]
        # Before what is missing: a misspelt flag is what is missing.
        for word in words:
            if word.startswith("--") and word != "--" and word.split("=")[0] not in known:
                self._refuse(word, known)
        found, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self._refuse(unknown[0], known)
        return found

    def _refuse(self, word: str, known: list[str]):
        near = difflib.get_close_matches(word.split("=")[0], known, n=1)
        raise ToolError(USAGE, f"unknown argument '{word}'",
                        f"did you mean {near[0]}?" if near else f"{self.prog} --help")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value


def add_quiet(parser: argparse.ArgumentParser):
    parser.add_argument("--quiet", action="store_true", help="no progress lines")


def _on_term(_signal, _frame):
    raise SystemExit(143)


STOPS = {SystemExit: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}


def _send_again(lost) -> None:
    """sys.unraisablehook: a stop that arrived inside the callback of a weak reference, where Python drops every
    exception, comes again a moment later."""
    if lost.exc_type not in STOPS:
        return sys.__unraisablehook__(lost)
    stop = signal.getsignal(STOPS[lost.exc_type])
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.01)


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else text[:400] + " ..."


def main_guard(name: str, main, after_interrupt: str = "") -> int:
    """Runs main() and turns what can go wrong for a user into one line on stderr and a code."""
    signal.signal(signal.SIGTERM, _on_term)
    sys.unraisablehook = _send_again
    try:
        return main() or 0
    except ToolError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        hint = f". hint: {after_interrupt}" if after_interrupt else ""
        print(f"\n{name}: interrupted{hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return ERROR
    except (OSError, MemoryError) as error:
        print(f"{name}: {one_line(error) or type(error).__name__}", file=sys.stderr)
        return ERROR
