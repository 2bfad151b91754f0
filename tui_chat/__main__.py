"""`python -m tui_chat`.

Python puts the working directory before everything else on the import path, and checkpoints lie in
directories that others have filled: a json.py beside one must not run. The console script has no
such entry.
"""

import sys

if not sys.flags.safe_path and sys.path:
    del sys.path[0]
sys.path[:] = [entry for entry in sys.path if entry]

from tui_chat.cli.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
