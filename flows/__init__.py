"""Order only: which step runs after which, and with what settings."""

import os
import sys

# Prefect without a server of its own: patient with a busy machine, silent towards the network. It reads these when it
# is first imported, so they stand here, before any flow; what the environment says comes first.
PREFECT_DEFAULTS = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_CLIENT_MAX_RETRIES": "3",  # 14 s until a server that is gone is given up, where 5 retries take 62
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "DO_NOT_TRACK": "1",
}
for _name, _value in PREFECT_DEFAULTS.items():
    os.environ.setdefault(_name, _value)
if "prefect.context" in sys.modules:  # it was imported first, as a notebook may do, and has read its settings
    sys.modules["prefect.context"].refresh_global_settings_context()
