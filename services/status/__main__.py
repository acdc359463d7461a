"""The status server, in a process of its own.

Where root has started it, it becomes the service's account, and leaves to a fork what it may ask supervisord.
"""

from __future__ import annotations

import os

from baselayer import keyhole

_SUPERVISOR_SECONDS = 2.0

if __name__ == "__main__":
    hole = keyhole.separate(_SUPERVISOR_SECONDS) if os.geteuid() == 0 else None

    from services.status.server import main

    main(obj=hole)
