"""How a command starts, and how it ends: a mistake of the user's is one line."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from experiments import hosts
from kdjax.training import CheckpointError, NonFiniteLoss


def launch(main: Callable[[Sequence[str]], Any], *, several: bool = False) -> None:
    """`app.run` in which a mistake of the user's is one line on stderr, and exit status 2.

    Args:
      main: the command.
      several: it runs on several processes too, which have joined before it is called.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
        except (AttributeError, KeyError) as error:
            text = str(error.args[0]).encode().decode("unicode_escape") if error.args else ""
            _fail(" ".join(text.replace("'\"", "").split()).strip("'\" "))
        except flags.Error as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            _fail(" ".join(dict.fromkeys((lines[0], lines[-1]))))
        if len(rest) > 1:
            _fail(f"unexpected argument {rest[1]!r}")
        return rest

    def run(argv: Sequence[str]) -> Any:
        logging.set_verbosity(logging.WARNING)
        try:
            hosts.join(several)
            return main(argv)
        except (
            ValueError,
            OSError,
            ImportError,
            NonFiniteLoss,
            CheckpointError,
        ) as error:
            if os.environ.get("KDJAX_TRACEBACK"):
                raise
            if line := hosts.lost(error):
                _fail(line, 1)
            _fail(" ".join(str(error).split()))
        except (Exception, KeyboardInterrupt) as error:
            if not hosts.several():
                raise
            if line := hosts.lost(error):
                _fail(line, 1)
            traceback.print_exc()
            hosts.leave(1)

    app.run(run, flags_parser=parse)


def _fail(line: str, status: int = 2) -> None:
    print(f"error: {line}", file=sys.stderr)
    hosts.leave(status)
