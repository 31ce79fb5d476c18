"""``python -m cxrl.data.inspect``, the former name of ``cxrl inspect``."""

from __future__ import annotations

import sys

from cxrl.inspect_data import main

if __name__ == "__main__":
    sys.exit(main())
