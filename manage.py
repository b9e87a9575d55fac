#!/usr/bin/env python
"""Commands of the control plane; `up` runs all of Tollgate on this machine."""

import os
import sys

from django.core.management import execute_from_command_line

from controlplane.up import main

if __name__ == "__main__":
    if sys.argv[1:] == ["up"]:
        sys.exit(main())  # Not a Django command: it comes before the settings, and supplies what they ask for.
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
    execute_from_command_line(sys.argv)
