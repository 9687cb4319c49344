"""What holds for all tests."""

from __future__ import annotations

import os
import signal

# Before anything imports Triton, which looks at this once: here its kernels run in its interpreter, on the CPU.
os.environ["TRITON_INTERPRET"] = "1"

# A shell that starts pytest in the background lets it, and all that it starts, ignore Ctrl-C: what Ctrl-C does could
# not be tested then.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
