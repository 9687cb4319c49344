"""What holds for all tests."""

from __future__ import annotations

import signal

# A shell that starts pytest in the background lets it, and all that it starts, ignore Ctrl-C: what Ctrl-C does could
# not be tested then.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
